"""Reading a checkpoint's bytes, on a bundle written by hand here."""

import struct

import numpy as np
import pytest

from spinenet_jax.convert.tensor_bundle import Bundle
from spinenet_jax.errors import UserError
from tests.convert import bundles
from tests.convert.bundles import entry, field, table


@pytest.fixture
def prefix(tmp_path):
    """Two variables, 'net/a' f32[2,3] and 'net/ab' bfloat16 scalar."""
    values = np.arange(6, dtype='<f4').tobytes()
    scalar = struct.pack('<H', 0x3FC0)  # 1.5
    rows = [
        (b'', field(1, 1)),
        (b'net/a', entry(1, (2, 3), 0, values)),
        (b'net/ab', entry(14, (), 24, scalar)),
    ]
    (tmp_path / 'm.index').write_bytes(table(rows))
    (tmp_path / 'm.data-00000-of-00001').write_bytes(values + scalar)
    return tmp_path / 'm'


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


def flip(path, bit):
    """Change one bit of a file."""
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(bytes(content))


@pytest.mark.parametrize('bit', range(0, 8 * 26, 13))
def test_a_flipped_bit_of_the_data_is_named(prefix, bit):
    flip(prefix.with_name('m.data-00000-of-00001'), bit)
    bundle, name = Bundle(prefix), 'net/a' if bit < 8 * 24 else 'net/ab'
    with pytest.raises(UserError, match=f'damaged, the checksum of variable {name} is not that'):
        bundle.read(name)
    with pytest.raises(UserError, match=f'checksum of variable {name} '):
        bundle.verify()


def test_the_object_graph_has_a_checksum_too(tmp_path):
    bundles.write(tmp_path / 'm', {'net/a': np.ones(3)}, {'net/a': 'conv2d/kernel'})
    bundle = Bundle(tmp_path / 'm')
    bundle.verify()
    assert bundle.full_names() == {'net/a' + bundles.VALUE: 'conv2d/kernel'}
    data = tmp_path / 'm.data-00000-of-00001'  # the graph comes first: its name begins with _
    size = bundle.entries['_CHECKPOINTABLE_OBJECT_GRAPH'].size
    sound = data.read_bytes()
    for bit in range(0, 8 * size, 11):
        data.write_bytes(sound)
        flip(data, bit)
        with pytest.raises(UserError, match='damaged, the checksum of variable _CHECK'):
            bundle.full_names()


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / 'm.index').mkdir()
    with pytest.raises(UserError, match=r'm\.index: Is a directory'):
        Bundle(tmp_path / 'm')
