"""Reads the files of a TensorFlow checkpoint ("tensor bundle") without TensorFlow.

PREFIX.index is a LevelDB table from a variable's name to where it lies in the files
PREFIX.data-00000-of-0000N and what it is; the descriptions are protocol buffers, of which only the
needed fields are read. What the variables mean is left to `tf_checkpoint.py`.
"""

import mmap
import pathlib
import struct
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from spinenet_jax.errors import UserError

MAGIC = 0xDB4775248B80FB57  # the last eight bytes of every LevelDB table
FOOTER_BYTES, TRAILER_BYTES = 48, 5
OBJECT_GRAPH = '_CHECKPOINTABLE_OBJECT_GRAPH'
DTYPES = {1: '<f4', 2: '<f8', 3: '<i4', 9: '<i8', 10: '?', 19: '<f2'}
BFLOAT16 = 14


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
        """Reads the index; UserError where it is not one, is damaged or lacks a data file."""
        self.prefix = prefix
        path = prefix.with_name(f'{prefix.name}.index')
        try:
            table = dict(_table(path.read_bytes()))
            header = {n: v for n, _, v in _fields(table.pop(b''))}
            self.entries = {name.decode(): _entry(value) for name, value in table.items()}
        except (KeyError, ValueError, IndexError, struct.error) as error:
            raise UserError(f'{path}: not the index of a TensorFlow checkpoint ({error})') from None
        shards = header.get(1, 1)
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

    def read(self, name: str) -> np.ndarray:
        """The values of one numeric variable; bfloat16 comes as float32."""
        entry = self.entries[name]
        where = f'{self.prefix}: variable {name}'
        if entry.partitioned:
            raise UserError(f'{where} is partitioned, which is not supported')
        data = self._bytes(entry)
        if entry.dtype == BFLOAT16:
            values = (np.frombuffer(data, '<u2').astype('<u4') << 16).view('<f4')
        elif entry.dtype in DTYPES:
            values = np.frombuffer(data, DTYPES[entry.dtype])
        else:
            raise UserError(f'{where} has type number {entry.dtype}, which is not supported')
        if values.size != np.prod(entry.shape, dtype=int):
            raise UserError(f'{where}: {entry.size} bytes do not fill shape {entry.shape}')
        return values.reshape(entry.shape)

    def full_names(self) -> dict[str, str]:
        """{checkpoint key: the variable's own name} of an object-based checkpoint; else empty."""
        if OBJECT_GRAPH not in self.entries:
            return {}
        data = self._bytes(self.entries[OBJECT_GRAPH])
        length, start = _varint(data, 0)
        graph = data[start + 4 : start + 4 + length]  # after a checksum of the length
        names = {}
        for number, _, node in _fields(graph):
            attributes = (v for n, _, v in _fields(node) if n == 2) if number == 1 else ()
            for attribute in attributes:
                found = {n: v.decode() for n, _, v in _fields(attribute) if n in (2, 3)}
                names[found.get(3, '')] = found.get(2, '')
        return names

    def _bytes(self, entry: Entry) -> bytes:
        with (
            self._files[entry.shard].open('rb') as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
        ):
            return data[entry.offset : entry.offset + entry.size]


def _table(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(key, value) of every row of a LevelDB table."""
    footer = data[-FOOTER_BYTES:]
    if len(footer) < FOOTER_BYTES or struct.unpack('<Q', footer[-8:])[0] != MAGIC:
        raise ValueError('it has no end mark')
    place = 0
    for _ in range(2):  # of the meta index, which is empty
        _, place = _varint(footer, place)
    for _, handle in _block(data, *_handle(footer, place)):
        yield from _block(data, *_handle(handle, 0))


def _handle(data: bytes, place: int) -> tuple[int, int]:
    offset, place = _varint(data, place)
    return offset, _varint(data, place)[0]


def _block(data: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """(key, value) of every row of one block, its checksum verified."""
    block, trailer = data[offset : offset + size], data[offset + size :][:TRAILER_BYTES]
    compression, stored = struct.unpack('<BI', trailer)
    if compression:
        raise ValueError('it is compressed')
    if _mask(crc32c(block + trailer[:1])) != stored:
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
    """(value, place after it)."""
    value = shift = 0
    while True:
        byte = data[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value, place


def _fields(message: bytes) -> Iterator[tuple[int, int, int | bytes]]:
    """(field number, wire type, value) of a protocol buffer's fields, in order."""
    place = 0
    while place < len(message):
        tag, place = _varint(message, place)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, place = _varint(message, place)
        elif wire == 2:
            length, place = _varint(message, place)
            value, place = message[place : place + length], place + length
        elif wire in (1, 5):
            width = 8 if wire == 1 else 4
            value = int.from_bytes(message[place : place + width], 'little')
            place += width
        else:
            raise ValueError(f'wire type {wire}')
        yield number, wire, value


def _entry(message: bytes) -> Entry:
    """A BundleEntryProto."""
    values = {number: value for number, _, value in _fields(message)}
    dimensions = (v for n, _, v in _fields(values.get(2, b'')) if n == 2)
    shape = tuple(next((v for n, _, v in _fields(d) if n == 1), 0) for d in dimensions)
    dtype, shard, offset, size, checksum = (values.get(n, 0) for n in (1, 3, 4, 5, 6))
    return Entry(dtype, shape, shard, offset, size, checksum, 7 in values)


def _crc_table() -> list[int]:
    """CRC-32C of every single byte."""
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


_CRC_TABLE = _crc_table()


def crc32c(data: bytes) -> int:
    """The Castagnoli checksum; a few MB a second, meant for an index."""
    value = 0xFFFFFFFF
    for byte in data:
        value = _CRC_TABLE[(value ^ byte) & 255] ^ value >> 8
    return value ^ 0xFFFFFFFF


def _mask(checksum: int) -> int:
    """How LevelDB stores a checksum."""
    return ((checksum >> 15 | checksum << 17) + 0xA282EAD8) & 0xFFFFFFFF
