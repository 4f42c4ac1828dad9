"""Reads the files of a TensorFlow checkpoint ("tensor bundle") without TensorFlow.

PREFIX.index is a LevelDB table from a variable's name to where it lies in the files
PREFIX.data-00000-of-0000N and what it is. The descriptions are protocol buffers; `MESSAGES` lists
the fields that are needed. Every checksum that the format has is verified. What the variables mean
is left to `tf_checkpoint.py`.
"""

import pathlib
import struct
from collections.abc import Iterator
from typing import NamedTuple

import google_crc32c
import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory

from spinenet_jax.errors import UserError

MAGIC = 0xDB4775248B80FB57  # the last eight bytes of every LevelDB table
FOOTER_BYTES, TRAILER_BYTES = 48, 5
OBJECT_GRAPH = '_CHECKPOINTABLE_OBJECT_GRAPH'
DTYPES = {1: '<f4', 2: '<f8', 3: '<i4', 9: '<i8', 10: '?', 19: '<f2'}
STRING, BFLOAT16 = 7, 14
OPAQUE = (20, 21)  # resources and variants: their checksums are of something else
MAX_SHARDS = 100_000  # the files' names have five digits

# {message: {field: (number, type)}}; a * marks a repeated field. Fields that are not listed are
# skipped. Enumerations are int32 on the wire, messages of no interest bytes.
MESSAGES = {
    'Header': {'num_shards': (1, 'int32'), 'endianness': (2, 'int32')},
    'Dim': {'size': (1, 'int64')},
    'Shape': {'dim': (2, 'Dim*')},
    'Entry': {
        'dtype': (1, 'int32'),
        'shape': (2, 'Shape'),
        'shard_id': (3, 'int32'),
        'offset': (4, 'int64'),
        'size': (5, 'int64'),
        'crc32c': (6, 'fixed32'),
        'slices': (7, 'bytes*'),
    },
    'Attribute': {'full_name': (2, 'string'), 'checkpoint_key': (3, 'string')},
    'Node': {'attributes': (2, 'Attribute*')},
    'ObjectGraph': {'nodes': (1, 'Node*')},
}


class Entry(NamedTuple):
    """One variable: TensorFlow's number of its type, its shape, and its bytes in one data file."""

    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    checksum: int
    partitioned: bool


class Bundle:
    """An open checkpoint: `entries` by name; `read` takes one variable's values from disk."""

    def __init__(self, prefix: pathlib.Path) -> None:
        """Reads the index.

        Raises:
          UserError: it is not the index of a checkpoint, is damaged, or lacks a data file.
        """
        self.prefix = prefix
        path = prefix.with_name(f'{prefix.name}.index')
        try:
            table = dict(_table(path.read_bytes()))
            header = _CLASSES['Header'].FromString(table.pop(b''))
            if header.endianness:
                raise ValueError('it was written on a big-endian machine')
            # Names are text, but for those of a partitioned variable's parts.
            self.entries = {
                n.decode(errors='backslashreplace'): _entry(v) for n, v in table.items()
            }
        except OSError as error:
            raise UserError(f'{path}: {error.strerror or error}') from None
        except (KeyError, ValueError, IndexError, struct.error, message.DecodeError) as error:
            raise UserError(f'{path}: not the index of a TensorFlow checkpoint ({error})') from None
        shards = header.num_shards or 1
        last = max((entry.shard for entry in self.entries.values()), default=0)
        if not last < shards <= MAX_SHARDS:
            raise UserError(f'{path}: not the index of a TensorFlow checkpoint ({shards} shards)')
        self._files = [
            prefix.with_name(f'{prefix.name}.data-{i:05d}-of-{shards:05d}') for i in range(shards)
        ]
        for i, data in enumerate(self._files):
            if not data.exists():
                raise UserError(f'{data}: missing, though {path.name} refers to it')
            needed = max([0] + [e.offset + e.size for e in self.entries.values() if e.shard == i])
            if data.stat().st_size < needed:
                raise UserError(
                    f'{data}: truncated, it has {data.stat().st_size} bytes and needs {needed}'
                )

    def verify(self) -> None:
        """Read the data of every variable, whether it will be used or not, and check it.

        Raises:
          UserError: naming the first variable whose checksum is not that of the index.
        """
        for name, entry in self.entries.items():
            if not entry.partitioned and entry.dtype not in OPAQUE:
                self._read(name)

    def read(self, name: str) -> np.ndarray:
        """The values of one numeric variable; bfloat16 comes as float32.

        Raises:
          UserError: its bytes are damaged, or it is of a kind that is not supported.
        """
        entry = self.entries[name]
        where = f'{self.prefix}: variable {name}'
        if entry.partitioned:
            raise UserError(f'{where} is partitioned, which is not supported')
        if entry.dtype != BFLOAT16 and entry.dtype not in DTYPES:
            raise UserError(f'{where} has type number {entry.dtype}, which is not supported')
        data = self._read(name)
        if entry.dtype == BFLOAT16:
            values = (np.frombuffer(data, '<u2').astype('<u4') << 16).view('<f4')
        else:
            values = np.frombuffer(data, DTYPES[entry.dtype])
        if values.size != np.prod(entry.shape, dtype=int):
            raise UserError(f'{where}: {entry.size} bytes do not fill shape {entry.shape}')
        return values.reshape(entry.shape)

    def full_names(self) -> dict[str, str]:
        """{checkpoint key: the variable's own name} of an object-based checkpoint; else empty."""
        if OBJECT_GRAPH not in self.entries:
            return {}
        data = self._read(OBJECT_GRAPH)
        try:
            length, start = _varint(data, 0)
            graph = _CLASSES['ObjectGraph'].FromString(data[start + 4 :][:length])  # 4: a checksum
        except (IndexError, message.DecodeError) as error:
            raise UserError(f'{self.prefix}: its object graph cannot be read ({error})') from None
        return {a.checkpoint_key: a.full_name for node in graph.nodes for a in node.attributes}

    def _read(self, name: str) -> bytes:
        """The bytes of a variable, its checksum verified."""
        entry, path = self.entries[name], self._files[self.entries[name].shard]
        try:
            with path.open('rb') as file:
                file.seek(entry.offset)
                data = file.read(entry.size)
        except OSError as error:
            raise UserError(f'{path}: {error.strerror or error}') from None
        checked = _as_checked(data, entry) if entry.dtype == STRING else data
        if len(data) < entry.size or _mask(google_crc32c.value(checked)) != entry.checksum:
            raise UserError(
                f'{path}: damaged, the checksum of variable {name} is not that of the index'
            )
        return data


def _as_checked(data: bytes, entry: Entry) -> bytes:
    """The bytes that the checksum of strings is of: their lengths count as four bytes each."""
    lengths, place = b'', 0
    try:
        for _ in range(int(np.prod(entry.shape, dtype=int))):
            length, place = _varint(data, place)
            lengths += struct.pack('<I', length)
    except (IndexError, struct.error):  # damaged: no checksum fits
        return b''
    return lengths + data[place:]


def _messages() -> dict[str, type[message.Message]]:
    """The classes of `MESSAGES`."""
    file = descriptor_pb2.FileDescriptorProto(
        name='spinenet_jax/tensor_bundle.proto', package='spinenet_jax', syntax='proto3'
    )
    kinds = descriptor_pb2.FieldDescriptorProto
    for name, fields in MESSAGES.items():
        descriptor = file.message_type.add(name=name)
        for field, (number, kind) in fields.items():
            plain = kind.removesuffix('*')
            repeated = kinds.LABEL_REPEATED if kind != plain else kinds.LABEL_OPTIONAL
            added = descriptor.field.add(name=field, number=number, label=repeated)
            if plain in MESSAGES:
                added.type, added.type_name = kinds.TYPE_MESSAGE, f'.spinenet_jax.{plain}'
            else:
                added.type = kinds.Type.Value(f'TYPE_{plain.upper()}')
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f'spinenet_jax.{name}'))
        for name in MESSAGES
    }


_CLASSES = _messages()


def _entry(data: bytes) -> Entry:
    """One row of the index."""
    found = _CLASSES['Entry'].FromString(data)
    if min(found.shard_id, found.offset, found.size) < 0:
        raise ValueError('a place in the data is negative')
    return Entry(
        dtype=found.dtype,
        shape=tuple(dim.size for dim in found.shape.dim),
        shard=found.shard_id,
        offset=found.offset,
        size=found.size,
        checksum=found.crc32c,
        partitioned=bool(found.slices),
    )


def _table(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(key, value) of every row of a LevelDB table."""
    footer = data[-FOOTER_BYTES:]
    if len(footer) < FOOTER_BYTES or struct.unpack('<Q', footer[-8:])[0] != MAGIC:
        raise ValueError('it has no end mark')
    *meta_index, place = _handle(footer, 0)
    *index, place = _handle(footer, place)
    list(_block(data, *meta_index))  # empty, but it has a checksum
    for _, handle in _block(data, *index):
        offset, size, _ = _handle(handle, 0)
        yield from _block(data, offset, size)


def _handle(data: bytes, place: int) -> tuple[int, int, int]:
    """(offset, size, place after it) of a block."""
    offset, place = _varint(data, place)
    size, place = _varint(data, place)
    return offset, size, place


def _block(data: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """(key, value) of every row of one block, its checksum verified."""
    block, trailer = data[offset : offset + size], data[offset + size :][:TRAILER_BYTES]
    compression, stored = struct.unpack('<BI', trailer)
    if compression:
        raise ValueError('it is compressed')
    if _mask(google_crc32c.value(block + trailer[:1])) != stored:
        raise ValueError('a checksum is wrong, so it is damaged')
    end = size - 4 - 4 * struct.unpack('<I', block[-4:])[0]
    key, place = b'', 0
    while place < end:
        shared, place = _varint(block, place)
        own, place = _varint(block, place)
        length, place = _varint(block, place)
        key = key[:shared] + block[place : place + own]
        yield key, block[place + own : place + own + length]
        place += own + length


def _varint(data: bytes, place: int) -> tuple[int, int]:
    """(value, place after it). LevelDB has these outside of protocol buffers."""
    value = shift = 0
    while True:
        byte = data[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value, place


def _mask(checksum: int) -> int:
    """How LevelDB stores a checksum."""
    return ((checksum >> 15 | checksum << 17) + 0xA282EAD8) & 0xFFFFFFFF
