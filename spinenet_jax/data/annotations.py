"""Parses and checks COCO's JSON files (`instances_*.json`) and keeps them as compact arrays.

Everything that is wrong inside a file is refused or counted here. Image files and labels are left
to coco.py.

118,000 images with 860,000 annotations (the size of train2017) stay as 55 MB: an annotation is one
row of numbers, and segmentations are dropped while parsing, or packed into bytes where they are
asked for. Parsing takes tens of seconds and 1.5 GB at its peak, most of it the text of the file.
"""

import dataclasses
import json
import math
import os
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from spinenet_jax.data.segmentations import Segmentations, pack
from spinenet_jax.errors import UserError

LARGEST = 1e6  # pixels of a side, or of a coordinate; beyond it a number is a mistake
LARGEST_AREA = 1e10  # COCO's scorers ignore an object of more, without a word
_LONGEST_NAME = 200  # characters
_COLUMNS = ('id', 'image_id', 'category_id', 'x', 'y', 'w', 'h', 'area', 'iscrowd')


@dataclasses.dataclass
class AnnotationTable:
    """M images and n annotations, the annotations grouped by image in the order of the file.

    `starts[m] : starts[m + 1]` are the annotations of image m. Those that no training and no
    evaluation can use are gone; `trainable` is false for boxes of no area inside their image.
    """

    image_ids: np.ndarray  # int64[M]
    file_names: list[str]
    sizes: np.ndarray  # int32[M,2], (h, w); 0 where the file does not say
    starts: np.ndarray  # int64[M+1]
    ids: np.ndarray  # int64[n]
    category_ids: np.ndarray  # int64[n]
    xywh: np.ndarray  # float64[n,4]
    area: np.ndarray  # float64[n], of the mask where the file says so
    is_crowd: np.ndarray  # bool[n]
    trainable: np.ndarray  # bool[n]
    categories: list[tuple[int, str]]
    has_annotations: bool  # false for image lists such as image_info_test-dev2017.json
    segmentations: Segmentations | None  # of the annotations; None where they were not asked for
    report: list[str]


def load_annotations(path: Path, with_segmentations: bool = False) -> AnnotationTable:
    """Reads and checks a COCO JSON file.

    Segmentations take memory and time: they are kept only where asked for.

    Refused with one line (UserError): no file, not JSON, no images or categories, a record without
    the fields that identify it, one image or category id for two different things.
    Counted in `.report` and left out: annotations of unknown images or categories, boxes that are
    not four finite numbers, have a negative side or reach beyond a million pixels. Counted and
    replaced by the box's: areas that make COCO's scorers ignore an object, below 0 or above 1e10.
    Kept but not trained on: boxes of no area (evaluation counts them, as pycocotools does).
    """
    data = _parse(path, _compact_with_mask if with_segmentations else _compact)
    categories = _categories(path, data)
    report: list[str] = []
    image_ids, file_names, sizes = _images(path, data['images'], report)
    rows, packed = _rows(path, data.get('annotations') or [], with_segmentations)
    kept = _usable(path, rows, image_ids, [i for i, _ in categories], report)
    image_index = _index_of(rows[kept, 1], image_ids)
    order = np.argsort(image_index, kind='stable')
    kept, image_index = kept[order], image_index[order]
    rows = rows[kept]
    trainable = _has_area(path, rows, sizes[image_index], report)
    area = _areas(path, rows, report)
    ids = _annotation_ids(path, rows[:, 0], report)
    segmentations = None
    if packed is not None:
        packed = [packed[n] for n in kept.tolist()]
        segmentations = Segmentations(packed, sizes[image_index], rows[:, 3:7])
        report += segmentations.report(path, ids)
    return AnnotationTable(
        image_ids=image_ids,
        file_names=file_names,
        sizes=sizes,
        starts=np.searchsorted(image_index, np.arange(len(image_ids) + 1)),
        ids=ids,
        category_ids=rows[:, 2].astype(np.int64),
        xywh=rows[:, 3:7].copy(),
        area=area,
        is_crowd=rows[:, 8] != 0,
        trainable=trainable,
        categories=categories,
        has_annotations='annotations' in data,
        segmentations=segmentations,
        report=report,
    )


def count_line(path: Path, what: str, names: Sequence) -> str:
    """A line of a report: how many, what, and the first few by name."""
    first = ', '.join('no id' if name == -1 else _printable(name) for name in names[:5])
    return f'{path.name}: {len(names)} {what} (first: {first})'


def first_outside(file_names: Iterable[str], folders: Sequence[str]) -> str | None:
    """The first file name that leads out of the root of a data set; None where all stay inside.

    Args:
      file_names: relative to one of the folders.
      folders: where the files may lie, relative to the root.
    """
    outside = (name for name in file_names if all(leaves_root(name, f) for f in folders))
    return next(outside, None)


def leaves_root(name: str, folder: str) -> bool:
    """Whether a file name, taken from a folder of the root, leads out of the root.

    By the name alone: symbolic links were made by whoever owns the folder.
    """
    inside = os.path.normpath(os.path.join(folder, name))
    return os.path.isabs(inside) or inside.split(os.sep)[0] == os.pardir


def _parse(path: Path, compact: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    """The JSON object, annotations already made compact; refuses what is not COCO's outline."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise UserError(f'{path}: not a regular file')
    try:
        text = path.read_text(encoding='utf-8-sig')  # some tools write a byte order mark
    except FileNotFoundError:
        raise UserError(f'{path}: no such file') from None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, 'strerror', None) or error
        raise UserError(f'{path}: cannot be read: {reason}') from error
    if not text or text.isspace():
        raise UserError(f'{path}: the file is empty')
    try:
        data = json.loads(text, object_hook=compact)
    except (ValueError, RecursionError) as error:  # ValueError: also numbers of 5,000 digits
        raise UserError(f'{path}: not valid JSON: {error}') from error
    if not isinstance(data, dict) or not isinstance(data.get('images'), list):
        raise UserError(f'{path}: no list "images": not a COCO annotation file')
    if not data['images']:
        raise UserError(f'{path}: the list "images" is empty')
    for key in ('annotations', 'categories'):
        if not isinstance(data.get(key) or [], list):
            raise UserError(f'{path}: "{key}" is not a list')
    return data


def _compact(record: dict[str, Any]) -> Any:
    """An annotation as a row of numbers (NaN: not given); everything else unchanged."""
    if 'image_id' not in record or 'category_id' not in record:
        return record
    image, category = _integer(record['image_id']), _integer(record['category_id'])
    if image is None or category is None:
        return record
    box = record.get('bbox') or _bounds(record.get('segmentation'))
    if not isinstance(box, list | tuple) or len(box) != 4:
        box = (math.nan,) * 4
    x, y, w, h = (_number(v, math.nan) for v in box)
    area, crowd = _number(record.get('area'), math.nan), record.get('iscrowd')
    crowd = float(crowd) if isinstance(crowd, bool) else _number(crowd, 0.0)
    key = _integer(record.get('id'))
    return (-1 if key is None else key, image, category, x, y, w, h, area, crowd)


def _compact_with_mask(record: dict[str, Any]) -> Any:
    """`_compact` with the segmentation packed behind the numbers."""
    row = _compact(record)
    return (row, pack(record.get('segmentation'))) if isinstance(row, tuple) else row


def _bounds(segmentation: Any) -> Sequence[float] | None:
    """xywh around a list of polygons or an RLE, for files that give no box; None for neither."""
    if isinstance(segmentation, dict):
        return _bounds_of_rle(segmentation.get('size'), segmentation.get('counts'))
    if not isinstance(segmentation, list):
        return None
    points = []
    for polygon in segmentation:
        if not isinstance(polygon, list) or len(polygon) % 2:
            return None
        points += [_number(v, math.nan) for v in polygon]
    if not points:
        return None
    pairs = np.reshape(points, (-1, 2))
    low, high = pairs.min(0), pairs.max(0)
    return [*low.tolist(), *(high - low).tolist()]


def _bounds_of_rle(size: Any, counts: Any) -> Sequence[float] | None:
    """xywh around the ones of a run-length encoded mask; None where it is damaged.

    Runs of zeros and ones in turn, column by column. Not pycocotools' own reader, which trusts
    sizes and lengths: wrong ones make it take all memory or read beyond its own.
    """
    if not isinstance(size, list) or len(size) != 2:
        return None
    height, width = map(_integer, size)
    if not height or not width or min(height, width) < 1 or max(height, width) > LARGEST:
        return None
    runs = list(_uncompressed(counts)) if isinstance(counts, str) else counts
    if not isinstance(runs, list) or None in (lengths := [_integer(v) for v in runs]):
        return None
    if any(v < 0 for v in lengths) or sum(lengths) != height * width:
        return None
    ends = np.cumsum(lengths)
    starts, stops = ends[:-1:2], ends[1::2] - 1  # first and last one of every run of ones
    some = stops >= starts
    starts, stops = starts[some], stops[some]
    if not len(starts):
        return None
    left, right = starts[0] // height, stops[-1] // height
    inside = starts // height == stops // height  # a run over two columns touches top and bottom
    top = min(starts % height) if inside.all() else 0
    bottom = max(stops % height) if inside.all() else height - 1
    return [int(left), int(top), int(right - left + 1), int(bottom - top + 1)]


def _uncompressed(counts: str) -> Iterator[int | None]:
    """The run lengths in COCO's compressed text: groups of 5 bits, differences from the 3rd on."""
    lengths: list[int] = []
    value = shift = 0
    for character in counts:
        code = ord(character) - 48
        if not 0 <= code < 64 or shift > 60:
            yield None
            return
        value |= (code & 31) << shift
        shift += 5
        if code & 32:  # more groups follow
            continue
        if code & 16:  # negative
            value -= 1 << shift
        if len(lengths) > 2:
            value += lengths[-2]
        lengths.append(value)
        yield value
        value = shift = 0
    if shift:
        yield None


def _categories(path: Path, data: dict[str, Any]) -> list[tuple[int, str]]:
    """(id, name), each id once."""
    found: dict[int, str] = {}
    for n, record in enumerate(data.get('categories') or []):
        where = f'{path}: categories[{n}]'
        if not isinstance(record, dict) or _integer(record.get('id')) is None:
            raise UserError(f'{where} has no integer "id"')
        key, name = _integer(record['id']), _printable(record.get('name', record['id']))
        if found.setdefault(key, name) != name:
            raise UserError(f'{where}: id {key} is both "{found[key]}" and "{name}"')
    if not found:
        raise UserError(f'{path}: the list "categories" is missing or empty')
    return sorted(found.items())


def _images(
    path: Path, records: list[Any], report: list[str]
) -> tuple[np.ndarray, list[str], np.ndarray]:
    """ids, file names and sizes; a repeated record counts once."""
    seen: dict[int, str] = {}
    sizes, repeated = [], []
    for n, record in enumerate(records):
        where = f'{path}: images[{n}]'
        if not isinstance(record, dict) or _integer(record.get('id')) is None:
            raise UserError(f'{where} has no integer "id"')
        key, name = _integer(record['id']), record.get('file_name')
        if not isinstance(name, str) or not name or '\0' in name:
            raise UserError(f'{where} (id {key}) has no "file_name" that a file can have')
        if key in seen:
            if seen[key] != name:
                raise UserError(f'{where}: id {key} is both "{seen[key]}" and "{name}"')
            repeated.append(key)
            continue
        seen[key] = name
        h, w = _integer(record.get('height')), _integer(record.get('width'))
        sizes.append((h, w) if h and w and 0 < h <= LARGEST and 0 < w <= LARGEST else (0, 0))
    if repeated:
        report.append(count_line(path, 'image records repeated, used once', repeated))
    return np.array(list(seen), np.int64), list(seen.values()), np.array(sizes, np.int32)


def _rows(
    path: Path, records: list[Any], with_segmentations: bool
) -> tuple[np.ndarray, list[bytes] | None]:
    """float64[n,9] in the order of _COLUMNS, ids exact below 2**53, and packed segmentations."""
    for n, record in enumerate(records):
        if not isinstance(record, tuple):
            raise UserError(f'{path}: annotations[{n}] has no integer "image_id" and "category_id"')
    packed = None
    if with_segmentations:
        records, packed = [row for row, _ in records], [mask for _, mask in records]
    return np.array(records, np.float64).reshape(-1, len(_COLUMNS)), packed


def _usable(
    path: Path, rows: np.ndarray, image_ids: np.ndarray, category_ids: list[int], report: list[str]
) -> np.ndarray:
    """Positions of rows that evaluation can use; others are counted, each under its first fault."""
    faults = (
        ('annotations of no listed image left out', ~np.isin(rows[:, 1], image_ids)),
        ('annotations of an unknown category left out', ~np.isin(rows[:, 2], category_ids)),
        (
            'annotations without four finite box numbers left out',
            ~np.isfinite(rows[:, 3:7]).all(1),
        ),
        ('annotations with a negative box side left out', (rows[:, 5:7] < 0).any(1)),
        (
            'annotations with a box beyond a million pixels left out',
            (np.abs(rows[:, 3:7]) > LARGEST).any(1),
        ),
    )
    good = np.ones(len(rows), bool)
    for what, bad in faults:
        _note(path, what, rows[good & bad, 0], report)
        good &= ~bad
    return np.flatnonzero(good)


def _areas(path: Path, rows: np.ndarray, report: list[str]) -> np.ndarray:
    """float64[n]: the area given, or the box's where none is given that a scorer can use."""
    given, own = rows[:, 7], np.minimum(rows[:, 5] * rows[:, 6], LARGEST_AREA)
    usable = (given >= 0) & (given <= LARGEST_AREA)
    wrong = ~usable & ~np.isnan(given)
    _note(path, "annotations whose area cannot be, the box's taken", rows[wrong, 0], report)
    return np.where(usable, given, own)


def _has_area(path: Path, rows: np.ndarray, sizes: np.ndarray, report: list[str]) -> np.ndarray:
    """bool[n]: whether some of the box, as float32 pixels, lies in its image."""
    low = np.maximum(rows[:, 3:5], 0)
    limit = np.where(sizes > 0, sizes, np.inf)[:, ::-1]
    high = np.minimum(rows[:, 3:5] + rows[:, 5:7], limit)
    empty = (rows[:, 5:7] == 0).any(1)
    outside = ~empty & (np.float32(high) <= np.float32(low)).any(1)
    _note(path, 'annotations with a box of no area, not trained on', rows[empty, 0], report)
    _note(path, 'annotations outside their image, not trained on', rows[outside, 0], report)
    return ~(empty | outside)


def _annotation_ids(path: Path, ids: np.ndarray, report: list[str]) -> np.ndarray:
    """Ids as pycocotools needs them: unique, and not 0, which it takes for 'no match'."""
    values, counts = np.unique(ids, return_counts=True)
    repeated = values[(counts > 1) & (values >= 0)]
    _note(path, 'annotation ids used more than once, all renumbered', repeated, report)
    if len(values) == len(ids) and (ids > 0).all():
        return ids.astype(np.int64)
    return np.arange(1, len(ids) + 1)


def _note(path: Path, what: str, ids: np.ndarray, report: list[str]) -> None:
    """Adds a line for these annotation ids, if there are any."""
    if len(ids):
        report.append(count_line(path, what, ids.astype(np.int64)))


def _index_of(values: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Position of every value in `keys` (all are there)."""
    order = np.argsort(keys, kind='stable')
    return order[np.searchsorted(keys, values, sorter=order)]


def _number(value: Any, default: float) -> float:
    """A number that may be missing or nonsense."""
    if isinstance(value, float):
        return value if value == value else default
    if not isinstance(value, int) or isinstance(value, bool):
        return default
    return float(value) if abs(value) < 2**1000 else math.inf


def _printable(value: Any) -> str:
    """A name as one line of text that can be printed, drawn and written as UTF-8."""
    text = value if isinstance(value, str) else str(value)
    if len(text) > _LONGEST_NAME:
        text = text[: _LONGEST_NAME - 3] + '...'
    return ''.join('?' if unicodedata.category(c) in ('Cc', 'Cs') else c for c in text)


def _integer(value: Any) -> int | None:
    """A whole number given as int or float, exact in float64; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 2**53:
        return None
    return int(value) if value == int(value) else None
