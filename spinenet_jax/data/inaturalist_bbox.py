"""Makes a classification data set out of the annotated boxes of a detection data set.

iNaturalist-bbox (SpineNet paper, section 5): every bounding box of iNaturalist-2017, enlarged to
1.5 times its width and height and clipped to the image, is one example of the box's class. Written
as a folder that image_folder.py reads:

    output/<split>/<category id>_<name>/<image id>_<annotation id>.jpg

Works on any COCO-format JSON. What the user sees of it is left to tools/make_inaturalist_bbox.py.
"""

import dataclasses
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np

from spinenet_jax.data.annotations import (
    AnnotationTable,
    count_line,
    first_outside,
    load_annotations,
)
from spinenet_jax.data.cores import core_count
from spinenet_jax.data.crops import Window
from spinenet_jax.data.decode import BadImageError, read_image
from spinenet_jax.errors import UserError

ENLARGE = 1.5
JPEG_QUALITY = 95
_CHUNK = 512  # images handed to the threads at a time


@dataclasses.dataclass
class CropPlan:
    """The crops of one split: where they come from and where they go.

    Attributes:
      split: name of its folder.
      annotations: the JSON file.
      table: what is in it.
      folders: class folder by category id, of the classes of this split.
    """

    split: str
    annotations: Path
    table: AnnotationTable
    folders: dict[int, str]

    @property
    def image_count(self) -> int:
        """Images of the JSON, with or without boxes."""
        return len(self.table.image_ids)


@dataclasses.dataclass(frozen=True)
class CropResult:
    """What was made of a split: crops there now, classes that have some, what was left out."""

    crops: int
    classes: int
    report: list[str]


def plan_crops(files: Mapping[str, Path]) -> list[CropPlan]:
    """Reads the JSON file of each split; UserError if one is not, or if their categories differ.

    A class has one folder name in all splits, from the categories of all files.
    """
    tables = {split: load_annotations(path) for split, path in files.items()}
    names: dict[int, str] = {}
    for split, table in tables.items():
        outside = first_outside(table.file_names, ('',))
        if outside is not None:
            raise UserError(
                f'{files[split]}: file name "{outside}" leads out of the folder of images'
            )
        for i, name in table.categories:
            if names.setdefault(i, name) != name:
                raise UserError(
                    f'{files[split]}: category {i} is "{name}", in another split "{names[i]}"'
                )
    width = max(4, len(str(max(names))))
    folders = {
        i: f'{i:0{width}d}_{re.sub(r"[^A-Za-z0-9.-]+", "_", name)[:200]}'
        for i, name in names.items()
    }
    plans = []
    for split, table in tables.items():
        used = np.unique(table.category_ids[table.trainable]).tolist()
        plans.append(CropPlan(split, files[split], table, {i: folders[i] for i in used}))
    return plans


def make_folders(plans: Sequence[CropPlan], output: Path) -> int:
    """Makes the folder of every class of any split in every split; returns their number.

    So all splits agree on what the classes are, even where one has no example of some.
    """
    names = {name for plan in plans for name in plan.folders.values()}
    try:
        for plan in plans:
            for name in names:
                (output / plan.split / name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f'{output}: cannot be written: {error.strerror or error}') from error
    return len(names)


def write_crops(
    plan: CropPlan,
    images: Path,
    output: Path,
    *,
    threads: int = 0,
    progress: Callable[[int], None] = lambda _: None,
) -> CropResult:
    """Writes the crops that are not there yet; a run that was stopped goes on where it was.

    A file appears under its name only when it is complete. Images that are missing or cannot be
    read, and boxes that cannot be used, are left out and told in the report.

    Args:
      plan: from `plan_crops`; its folders must be there (`make_folders`).
      images: what the JSON's file names are relative to, or the folder they start with.
      threads: 0 means one a core.
      progress: called with a number of images done since the last call.
    """
    images = _image_folder(plan, images)
    made = np.zeros(len(plan.table.ids), bool)
    outside = np.zeros(len(plan.table.ids), bool)
    failed: list[str] = []

    def handle(index: int) -> str:
        rows = _rows_of(plan.table, index)
        try:
            outside[_write_image(plan, index, rows, images, output)] = True
        except BadImageError as error:
            return f'{plan.table.file_names[index]}: {error}'
        made[rows] = ~outside[rows]
        return ''

    with ThreadPoolExecutor(threads or core_count()) as pool:
        for start in range(0, plan.image_count, _CHUNK):
            chunk = range(start, min(start + _CHUNK, plan.image_count))
            failed += filter(None, pool.map(handle, chunk))
            progress(len(chunk))
    report = list(plan.table.report)
    if outside.any():  # their image's size is not in the JSON, or they would have been left out
        ids = plan.table.ids[outside].tolist()
        report.append(count_line(plan.annotations, 'annotations outside their image', ids))
    if failed:
        report.append(count_line(plan.annotations, 'images that cannot be read', failed))
    classes = len(np.unique(plan.table.category_ids[made]))
    return CropResult(int(made.sum()), classes, report)


def enlarged_window(xywh: Sequence[float], size: tuple[int, int]) -> Window:
    """The box at 1.5 times its width and height around its centre, in whole pixels of an image.

    Args:
      xywh: x, y, width, height in pixels; some of the box lies in the image.
      size: (h, w) of the image, to which the window is clipped.

    Returns:
      All pixels that the enlarged box touches.
    """
    x, y, width, height = xywh
    low = y - (ENLARGE - 1) / 2 * height, x - (ENLARGE - 1) / 2 * width
    high = low[0] + ENLARGE * height, low[1] + ENLARGE * width
    top, left = (max(0, math.floor(v + 1e-6)) for v in low)
    bottom, right = (
        min(n, math.ceil(v - 1e-6)) for v, n in zip(high, size, strict=True)
    )  # the small number keeps rounding errors from adding a pixel
    return Window(top, left, max(bottom - top, 1), max(right - left, 1))


def _rows_of(table: AnnotationTable, index: int) -> np.ndarray:
    """Positions of the usable annotations of an image."""
    rows = np.arange(table.starts[index], table.starts[index + 1])
    return rows[table.trainable[rows]]


def _write_image(
    plan: CropPlan, index: int, rows: np.ndarray, images: Path, output: Path
) -> list[int]:
    """Writes what is missing of one image's crops; BadImageError if it cannot be read.

    Returns those of the rows whose box turns out to lie outside the image.
    """
    table = plan.table
    targets = {
        row: output
        / plan.split
        / plan.folders[int(table.category_ids[row])]
        / f'{table.image_ids[index]}_{table.ids[row]}.jpg'
        for row in rows.tolist()
    }
    missing = {row: path for row, path in targets.items() if not path.exists()}
    if not missing:
        return []
    height, width = table.sizes[index].tolist()
    size = (height, width) if height else None
    image = read_image(os.path.join(images, table.file_names[index]), size)
    outside = []
    for row, path in missing.items():
        xywh = table.xywh[row]
        if (np.float32(xywh[1::-1]) >= image.shape[:2]).any():
            outside.append(row)
            continue
        top, left, h, w = enlarged_window(xywh.tolist(), image.shape[:2])
        part = image[top : top + h, left : left + w, ::-1]
        jpeg = cv2.imencode('.jpg', part, (cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY))[1]
        temporary = path.with_name(f'.{path.name}.tmp')
        try:
            temporary.write_bytes(jpeg.tobytes())
            temporary.replace(path)
        except OSError as error:
            raise UserError(f'{path}: cannot be written: {error.strerror or error}') from error
    return outside


def _image_folder(plan: CropPlan, images: Path) -> Path:
    """`images`, or its parent where `images` is itself the folder that file names start with."""
    if not images.is_dir():
        raise UserError(f'{images}: no such directory')
    first = Path(plan.table.file_names[0]).parts[0]
    return images.parent if images.name == first and not (images / first).exists() else images
