"""Writes TensorFlow checkpoints ("tensor bundles") for tests, from the format's description."""

import pathlib
import struct

import google_crc32c
import numpy as np

from spinenet_jax.convert import tensor_bundle

VALUE = '/.ATTRIBUTES/VARIABLE_VALUE'


def varint(value):
    out = b''
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def field(number, value):
    """A protocol buffer field: a varint or length-delimited bytes."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def masked(data):
    """The checksum of `data` as LevelDB stores it: rotated, and a constant added."""
    value = google_crc32c.value(data)
    return struct.pack('<I', ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def entry(dtype, shape, offset, data, checked=None):
    """A variable's row for bytes `data` at `offset`; the checksum is of `checked`, if given."""
    dims = b''.join(field(2, field(1, n)) for n in shape)
    checksum = varint(6 << 3 | 5) + masked(data if checked is None else checked)
    place = field(4, offset) + field(5, len(data))
    return field(1, dtype) + field(2, dims) + place + checksum


def block(rows):
    """Rows with shared key prefixes, restart array and checksum trailer."""
    out, previous = b'', b''
    for key, value in rows:
        shared = next(
            (i for i, (a, b) in enumerate(zip(key, previous, strict=False)) if a != b),
            min(len(key), len(previous)),
        )
        sizes = varint(shared) + varint(len(key) - shared) + varint(len(value))
        out, previous = out + sizes + key[shared:] + value, key
    out += struct.pack('<II', 0, 1)
    return out, b'\0' + masked(out + b'\0')


def table(rows):
    """A LevelDB table of one data block, an empty meta index and an index."""
    result, handles = b'', []
    for kind in (rows, [], None):
        data, end = block([(b'zzz', handles[0])] if kind is None else kind)
        handles.append(varint(len(result)) + varint(len(data)))
        result += data + end
    footer = (handles[1] + handles[2]).ljust(40, b'\0')
    return result + footer + struct.pack('<Q', tensor_bundle.MAGIC)


def write(prefix: pathlib.Path, arrays: dict[str, np.ndarray], full_names=None) -> None:
    """A float32 checkpoint; with `full_names` {key: name} an object-based one, keys completed."""
    rows, data = [(b'', field(1, 1))], b''
    contents = {}
    for name, values in arrays.items():
        key = name if full_names is None else name + VALUE
        values = np.asarray(values, '<f4')
        contents[key] = (1, values.shape, values.tobytes(), None)
    if full_names is not None:
        graph = b''
        for key, name in full_names.items():
            attribute = field(1, b'VARIABLE_VALUE') + field(2, name.encode())
            attribute += field(3, (key + VALUE).encode())
            graph += field(1, field(2, attribute))
        # A string lies behind its length and a checksum of that, in which, as in the row's own
        # checksum, the length counts as four bytes.
        length = struct.pack('<I', len(graph))
        rest = masked(length) + graph
        text = varint(len(graph)) + rest
        contents[tensor_bundle.OBJECT_GRAPH] = (7, (), text, length + rest)
    for key in sorted(contents):
        dtype, shape, content, checked = contents[key]
        rows.append((key.encode(), entry(dtype, shape, len(data), content, checked)))
        data += content
    prefix.with_name(f'{prefix.name}.index').write_bytes(table(rows))
    prefix.with_name(f'{prefix.name}.data-00000-of-00001').write_bytes(data)
