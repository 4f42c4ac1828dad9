"""Keeps the segmentations of a COCO file in memory, compactly, and counts those that are bad.

A segmentation is a list of polygons, or a run-length encoding (RLE), compressed or not. `pack`
turns the JSON of one into a few bytes while the file is parsed, so that the lists of numbers are
never all in memory; `Segmentations` holds the bytes of a whole file and gives polygons and RLE
back. What is wrong with a segmentation is kept beside it: its box stays usable.

Coordinates with two decimals, as in COCO, take two bytes, everything else of a mask about 50: the
860,000 masks of train2017 stay as about 120 MB (at 48 coordinates each, measured on made-up
polygons), and parsing takes about half a minute longer.
"""

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

# What can be wrong with a segmentation, one bit each.
FAULTS = (
    'annotations without a segmentation',
    'segmentations that are neither polygons nor RLE',
    'segmentations with an odd number of coordinates in a polygon, which is left out',
    'segmentations with a polygon of fewer than three points or no area, which is left out',
    'segmentations with coordinates that are not numbers below 100,000 in a polygon, left out',
    'segmentations that reach out of their image, cut',
    'RLE segmentations that cannot be read',
    'RLE segmentations whose size is not their image\'s',
    'RLE segmentations whose runs do not add up to their size',
    'segmentations that are empty',
    'segmentations that do not touch their box',
)  # fmt: skip
NONE, NEITHER, ODD, FEW, WILD, OUTSIDE, UNREADABLE, SIZE, SUM, EMPTY, APART = range(len(FAULTS))

_MOST = 1e5  # pixels; drawing an edge takes memory in proportion to its length
_HEADER = np.dtype([('faults', '<u2'), ('kind', 'S1'), ('bounds', '<f4', 4)])  # ymin, xmin, ...
_PACK_HEADER = struct.Struct('<Hc4f').pack
_HUNDREDTHS, _FLOATS, _RLE, _NOTHING = b'h', b'f', b'r', b'-'


class Polygons(NamedTuple):
    """Parts of a mask: float64[2k] each, x0, y0, x1, y1, ... in pixels of the image."""

    parts: list[np.ndarray]

    @property
    def coco(self) -> list[list[float]]:
        """As COCO's JSON has it."""
        return [part.tolist() for part in self.parts]


class Rle(NamedTuple):
    """A compressed run-length encoding; runs go down the columns of an image of `size` (h, w)."""

    size: tuple[int, int]
    counts: bytes

    @property
    def coco(self) -> dict[str, Any]:
        """As pycocotools takes it."""
        return {'size': list(self.size), 'counts': self.counts}

    def runs(self) -> np.ndarray:
        """int64[m]: lengths of runs, of zeros and ones in turn, zeros first."""
        return _runs(self.counts)


Segmentation = Polygons | Rle


def pack(segmentation: Any) -> bytes:
    """The bytes of one annotation's `segmentation`, whatever stands there; None for none."""
    if segmentation is None or segmentation in ([], {}, ''):
        return _packed(1 << NONE)
    if isinstance(segmentation, dict):
        return _pack_rle(segmentation)
    if isinstance(segmentation, list):
        return _pack_polygons(segmentation)
    return _packed(1 << NEITHER)


class Segmentations:
    """The segmentations of n annotations.

    Attributes:
      usable: bool[n], which have a mask. False takes nothing from the annotation's box.
    """

    def __init__(self, packed: Sequence[bytes], sizes: np.ndarray, xywh: np.ndarray):
        """Joins what `pack` gave and checks it against the images and boxes.

        Args:
          packed: n values.
          sizes: int[n,2], (h, w) of each annotation's image; 0 where it is not known.
          xywh: float[n,4], boxes.
        """
        lengths = np.fromiter(map(len, packed), np.int64, len(packed))
        self._ends = np.cumsum(lengths)
        self._data = np.frombuffer(b''.join(packed), np.uint8)
        start = self._ends - lengths
        header = np.zeros(len(packed), _HEADER)
        if len(packed):
            columns = start[:, None] + np.arange(_HEADER.itemsize)
            header = self._data[columns].view(_HEADER)[:, 0]
        self._starts = start + _HEADER.itemsize
        self._kinds = header['kind']
        self._faults = header['faults'] | _outside(header, sizes, xywh)
        rle = np.flatnonzero((self._kinds == _RLE) & (sizes > 0).all(1))
        own = self._data[self._starts[rle, None] + np.arange(8)].view('<i4')
        self._faults[rle[(own != sizes[rle]).any(1)]] |= 1 << SIZE
        self.usable = (self._kinds != _NOTHING) & ~self._has(SIZE) & ~self._has(APART)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, row: int) -> Segmentation | None:
        """The mask of an annotation, good or bad; None where nothing of it could be used."""
        data, kind = self._data[self._starts[row] : self._ends[row]], self._kinds[row]
        if kind == _NOTHING:
            return None
        if kind == _RLE:
            height, width = data[:8].view('<i4').tolist()
            return Rle((height, width), data[8:].tobytes())
        count = int(data[:4].view('<u4')[0])
        ends = np.cumsum(data[4 : 4 + 4 * count].view('<u4'))
        values = data[4 + 4 * count :]
        points = values.view('<u2') / 100.0 if kind == _HUNDREDTHS else values.view('<f8')
        return Polygons(np.split(points, ends[:-1]))

    def usable_mask(self, row: int) -> Segmentation | None:
        """The mask of an annotation where it is `usable`."""
        return self[row] if self.usable[row] else None

    def drawable_mask(self, row: int) -> Segmentation | None:
        """The mask of an annotation where its image can hold it: also one away from its box."""
        return None if self._faults[row] & (1 << SIZE) else self[row]

    @property
    def nbytes(self) -> int:
        """Memory that all of this takes."""
        held = (self._data, self._ends, self._starts, self._kinds, self._faults, self.usable)
        return sum(array.nbytes for array in held)

    def report(self, path: Path, ids: np.ndarray) -> list[str]:
        """A line for each kind of fault that was met, with the first annotations by `ids`."""
        lines = []
        for fault, what in enumerate(FAULTS):
            bad = ids[self._has(fault)]
            if len(bad):
                first = ', '.join(map(str, bad[:5].tolist()))
                lines.append(f'{path.name}: {len(bad)} {what} (first: {first})')
        lost = int((~self.usable).sum())
        if lost:
            lines.append(f'{path.name}: {lost} annotations give a box but no mask to train on')
        return lines

    def _has(self, fault: int) -> np.ndarray:
        """bool[n]: which have a fault."""
        return (self._faults & (1 << fault)) > 0


def _outside(header: np.ndarray, sizes: np.ndarray, xywh: np.ndarray) -> np.ndarray:
    """uint16[n]: faults that show only beside the image and the box."""
    low, high = header['bounds'][:, :2], header['bounds'][:, 2:]
    here = header['kind'] != _NOTHING
    limit = np.where(sizes > 0, sizes, np.inf)
    faults = np.zeros(len(header), np.uint16)
    beyond = here & ((low < -1) | (high > limit + 1)).any(1)
    faults[beyond] |= 1 << OUTSIDE
    top, bottom = xywh[:, 1::-1], xywh[:, 1::-1] + xywh[:, 3:1:-1]
    apart = (np.minimum(high, limit) < np.maximum(top, 0)) | (
        np.maximum(low, 0) > np.minimum(bottom, limit)
    )
    faults[here & apart.any(1)] |= 1 << APART
    return faults


def _packed(
    faults: int, kind: bytes = _NOTHING, bounds: Sequence[float] = (0, 0, 0, 0), body: bytes = b''
) -> bytes:
    """A header and what follows it."""
    return _PACK_HEADER(faults, kind, *bounds) + body


def _pack_polygons(polygons: list[Any]) -> bytes:
    """Polygons that can be drawn; the others are left out, each under its first fault."""
    if all(isinstance(value, int | float) for value in polygons):
        polygons = [polygons]  # one polygon without the list around it
    faults, parts = 0, []
    for polygon in polygons:
        fault, part = _check_polygon(polygon)
        if fault is None:
            parts.append(part)
        else:
            faults |= 1 << fault
    if not parts:
        return _packed(faults)
    points = np.concatenate(parts) if len(parts) > 1 else parts[0]
    x, y = points[0::2], points[1::2]
    bounds = y.min(), x.min(), y.max(), x.max()
    hundredths = np.rint(points * 100)
    # Two bytes a number where that loses nothing.
    small = min(bounds) >= 0 and max(bounds) < 655.0
    if small and (hundredths / 100 == points).all():
        kind, values = _HUNDREDTHS, hundredths.astype('<u2')
    else:
        kind, values = _FLOATS, points.astype('<f8')
    lengths = np.array([len(parts), *map(len, parts)], '<u4')
    return _packed(faults, kind, bounds, lengths.tobytes() + values.tobytes())


def _check_polygon(polygon: Any) -> tuple[int | None, np.ndarray | None]:
    """What is wrong with a polygon, or its coordinates float64[2k]."""
    if not isinstance(polygon, list):
        return NEITHER, None
    try:
        points = np.array(polygon, np.float64)
    except (TypeError, ValueError, OverflowError):  # OverflowError: a number of 400 digits
        return WILD, None
    if points.ndim != 1 or not (np.abs(points) < _MOST).all():  # NaN fails as well
        return WILD, None
    if len(points) % 2:
        return ODD, None
    if len(points) < 6:
        return FEW, None
    x, y = points[0::2] - points[0], points[1::2] - points[1]
    if abs(x[:-1] @ y[1:] - y[:-1] @ x[1:]) < 1e-9:  # twice the area
        return FEW, None
    return None, points


def _pack_rle(rle: dict[str, Any]) -> bytes:
    """A run-length encoding that adds up, compressed."""
    size, counts = rle.get('size'), rle.get('counts')
    whole = isinstance(size, list) and len(size) == 2 and all(_is_count(v) for v in size)
    if not whole or size[0] * size[1] >= 2**31:
        return _packed(1 << UNREADABLE)
    if isinstance(counts, str | bytes):
        text = counts.encode('ascii', 'replace') if isinstance(counts, str) else counts
        runs = _runs(text)
    elif isinstance(counts, list) and all(_is_count(v) for v in counts):
        text, runs = None, np.array(counts, np.int64)
    else:
        runs = None
    if runs is None or (runs < 0).any():
        return _packed(1 << UNREADABLE)
    if runs.sum() != size[0] * size[1]:
        return _packed(1 << SUM)
    if not runs[1::2].any():
        return _packed(1 << EMPTY)
    from pycocotools import mask

    height, width = int(size[0]), int(size[1])
    if text is None:
        text = mask.frPyObjects({'size': [height, width], 'counts': counts}, height, width)
        text = text['counts']
    x, y, w, h = mask.toBbox({'size': [height, width], 'counts': text})
    body = np.array([height, width], '<i4').tobytes() + text
    return _packed(0, _RLE, [y, x, y + h, x + w], body)


def _is_count(value: Any) -> bool:
    """A whole number from 0 on."""
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and 0 <= value < 2**31
        and value == int(value)
    )


def _runs(text: bytes) -> np.ndarray | None:
    """The lengths of runs that COCO's text stands for; None if it stands for none.

    A number is written five bits a character, lowest first, from '0' on; 32 says that more follow,
    16 of the last is its sign. From the fourth on, the difference to the one before last is.
    """
    codes = np.frombuffer(text, np.uint8).astype(np.int64) - 48
    if not len(codes) or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        return None
    last = (codes & 32) == 0
    first = np.flatnonzero(np.concatenate([[True], last[:-1]]))
    place = np.arange(len(codes)) - np.repeat(first, np.diff([*first, len(codes)]))
    if place.max() > 8:
        return None
    values = np.add.reduceat((codes & 31) << (5 * place), first)
    negative = (codes[last] & 16) > 0
    values = values - np.where(negative, 1 << (5 * (place[last] + 1)), 0)
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values
