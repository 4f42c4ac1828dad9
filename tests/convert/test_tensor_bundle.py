"""Reading a checkpoint's bytes, on a bundle written by hand here."""

import struct

import numpy as np
import pytest

from spinenet_jax.convert import tensor_bundle
from spinenet_jax.convert.tensor_bundle import Bundle
from spinenet_jax.errors import UserError
from tests.convert.bundles import entry, field, table


@pytest.fixture
def prefix(tmp_path):
    """Two variables, 'net/a' f32[2,3] and 'net/ab' bfloat16 scalar."""
    values = np.arange(6, dtype='<f4')
    rows = [
        (b'', field(1, 1)),
        (b'net/a', entry(1, (2, 3), 0, 24)),
        (b'net/ab', entry(14, (), 24, 2)),
    ]
    (tmp_path / 'm.index').write_bytes(table(rows))
    data = values.tobytes() + struct.pack('<H', 0x3FC0)  # 1.5
    (tmp_path / 'm.data-00000-of-00001').write_bytes(data)
    return tmp_path / 'm'


def test_checksum_of_the_standards_example():
    assert tensor_bundle.crc32c(b'123456789') == 0xE3069283


def test_values_shapes_and_types(prefix):
    bundle = Bundle(prefix)
    assert list(bundle.entries) == ['net/a', 'net/ab']
    np.testing.assert_array_equal(bundle.read('net/a'), [[0, 1, 2], [3, 4, 5]])
    assert bundle.read('net/ab') == np.float32(1.5)
    assert bundle.read('net/ab').shape == ()
    assert bundle.full_names() == {}


def test_truncated_data_is_refused(prefix):
    data = prefix.with_name('m.data-00000-of-00001')
    data.write_bytes(data.read_bytes()[:-1])
    with pytest.raises(UserError, match='truncated, it has 25 bytes and needs 26'):
        Bundle(prefix)


def test_missing_data_is_refused(prefix):
    prefix.with_name('m.data-00000-of-00001').unlink()
    with pytest.raises(UserError, match='missing'):
        Bundle(prefix)


@pytest.mark.parametrize('change', ['truncate', 'flip', 'other', 'empty'])
def test_a_damaged_index_is_refused(prefix, change):
    index = prefix.with_name('m.index')
    content = bytearray(index.read_bytes())
    if change == 'flip':
        content[10] ^= 1
    new = {'truncate': content[:-9], 'other': b'PK' * 100, 'empty': b''}.get(change, content)
    index.write_bytes(bytes(new))
    with pytest.raises(UserError, match='not the index of a TensorFlow checkpoint'):
        Bundle(prefix)
