"""Makes the embedded data set: scenes of handwritten digits in COCO's format.

For trying the detector without a download. The digits are the 1,797 scans of 8x8 pixels that come
with scikit-learn (UCI "Optical Recognition of Handwritten Digits"); the scenes around them are made
up here: a dark colour background with filled shapes and noise, on it one to five bright digits, 15%
to 80% of the image high, coloured, rotated by up to 15 degrees, overlapping a little. It is meant
to be learnt within minutes on a laptop: bright on dark, few overlaps. It exercises scale, overlap
and all pyramid levels; it says nothing about photographs, and its AP compares with no published
number.

No scan is in both splits. A box is tight around what is visible of its digit; masks are given as
RLE; there are no crowds. Written once as a COCO directory, so that reading goes through coco.py.
"""

import json
import os
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from spinenet_jax.errors import UserError

VERSION = 2
SCENES = {'train': 2000, 'val': 300}
SIZE = 256  # pixels, both sides
_FINE = 8  # scans are smoothed to this many times their pixels before they are turned
_HEIGHTS = (0.15, 0.8)  # of the image
_MOST_DIGITS = 5  # a scene
_MIN_VISIBLE = 0.85  # of a digit's pixels, whatever is laid over it
_MAX_SHARED = 0.25  # of the smaller of two digits' boxes
_MIN_CONTRAST = 70  # of 255, digit against background


def ensure_digits(root: str = '') -> str:
    """The directory of the data set, written there first if need be (about ten seconds).

    `root` '' means ~/.cache/spinenet_jax/digits-<version> (or below $XDG_CACHE_HOME). A directory
    that holds something else, or cannot be written, raises UserError.
    """
    cache = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache')
    path = Path(root) if root else cache / 'spinenet_jax' / f'digits-{VERSION}'
    if not (path / 'annotations').is_dir():
        if path.is_dir() and any(path.iterdir()):
            raise UserError(f'{path}: neither empty nor the digits data set (data.root)')
        try:
            write_digits(path, SCENES)
        except OSError as error:
            raise UserError(f'{path}: cannot be written ({error.strerror or error})') from error
    return str(path)


def write_digits(path: Path, scenes: dict[str, int], seed: int = 0) -> None:
    """Writes `scenes` (split -> number) as a COCO directory at `path`, all of it or nothing.

    The bytes are a function of `seed` and of the versions of numpy, OpenCV and scikit-learn. Where
    another process has written `path` in the meantime, its files stay.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f'.{path.name}-', dir=path.parent))
    try:
        scans, labels = smoothed_scans()
        parts = split_scans(labels, seed)
        (temporary / 'annotations').mkdir()
        for number, (split, count) in enumerate(scenes.items()):
            mine = parts[split]
            _write_split(temporary, split, count, (scans[mine], labels[mine]), (seed, number))
        temporary.chmod(0o755)
        try:
            os.rename(temporary, path)
        except OSError:
            if not (path / 'annotations').is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def make_scene(
    rng: np.random.Generator, scans: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, list[tuple[int, np.ndarray]]]:
    """One scene from the digits given: image uint8[SIZE,SIZE,3] RGB, [(label, mask bool)].

    scans float32[n,s,s] as `smoothed_scans` gives them, labels int[n] 1..10. Masks hold visible
    pixels, do not overlap and keep at least 85% of every digit.
    """
    image = _background(rng)
    owner = np.full((SIZE, SIZE), -1, np.int8)
    placed: list[tuple[int, int]] = []  # label, pixels before anything was laid over it
    boxes: list[tuple[int, ...]] = []  # top, left, bottom, right
    wanted = rng.integers(1, _MOST_DIGITS + 1)
    heights = np.exp(rng.uniform(*np.log(_HEIGHTS), wanted)) * SIZE
    for height in sorted(heights, reverse=True):  # small ones last: on top
        for _ in range(8):
            n = rng.integers(len(labels))
            alpha, top, left = _draw_digit(rng, scans[n], height)
            window = np.s_[top : top + alpha.shape[0], left : left + alpha.shape[1]]
            inside, box = alpha > 0.5, (top, left, top + alpha.shape[0], left + alpha.shape[1])
            if _shares_much(box, boxes) or not _leaves_enough(owner[window], inside, owner, placed):
                continue
            boxes.append(box)
            _paint(rng, image[window], alpha)
            owner[window][inside] = len(placed)
            placed.append((int(labels[n]), int(inside.sum())))
            break
    noise = rng.standard_normal((SIZE, SIZE, 1), np.float32) * np.float32(rng.uniform(1, 8))
    return np.clip(image + noise, 0, 255).astype(np.uint8), [
        (label, owner == i) for i, (label, _) in enumerate(placed)
    ]


def smoothed_scans() -> tuple[np.ndarray, np.ndarray]:
    """float32[1797,n,n] in 0..1, smoothed, with an empty rim; labels 1..10 for '0'..'9'."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    rim = np.pad(digits.images.astype(np.float32) / 16, ((0, 0), (1, 1), (1, 1)))
    sides = (rim.shape[1] * _FINE,) * 2
    fine = [cv2.resize(scan, sides, interpolation=cv2.INTER_CUBIC) for scan in rim]
    return np.stack(fine), digits.target + 1


def split_scans(labels: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Which scans a split draws from: a fifth of each digit is for validation only."""
    order = np.random.default_rng(seed).permutation(len(labels))
    val = np.concatenate([order[labels[order] == k][::5] for k in np.unique(labels)])
    return {'val': np.sort(val), 'train': np.setdiff1d(order, val)}


def _write_split(
    root: Path, split: str, count: int, digits: tuple[np.ndarray, np.ndarray], key: tuple[int, int]
) -> None:
    """Images and instances_<split>.json; scene n is a function of (key, n)."""
    (root / split).mkdir()

    def write(n: int) -> list[dict[str, Any]]:
        image, objects = make_scene(np.random.default_rng((*key, n)), *digits)
        quality = (cv2.IMWRITE_JPEG_QUALITY, 92)
        jpeg = cv2.imencode('.jpg', image[..., ::-1], quality)[1]
        (root / split / f'{n:06d}.jpg').write_bytes(jpeg.tobytes())
        return [_annotation(label, mask) for label, mask in objects]

    with ThreadPoolExecutor() as pool:
        objects = list(pool.map(write, range(count)))
    annotations = [(n, record) for n, records in enumerate(objects) for record in records]
    data = {
        'info': {'description': f'spinenet_jax digits scenes, version {VERSION}, seed {key[0]}'},
        'images': [
            {'id': n, 'file_name': f'{n:06d}.jpg', 'width': SIZE, 'height': SIZE}
            for n in range(count)
        ],
        'annotations': [
            {'id': i, 'image_id': n, **record} for i, (n, record) in enumerate(annotations, 1)
        ],
        'categories': [{'id': k + 1, 'name': str(k)} for k in range(10)],
    }
    (root / 'annotations' / f'instances_{split}.json').write_text(json.dumps(data))


def _annotation(label: int, mask: np.ndarray) -> dict[str, Any]:
    """COCO's fields for one visible mask."""
    from pycocotools import mask as coco_mask

    rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    top, bottom = np.flatnonzero(mask.any(1))[[0, -1]].tolist()
    left, right = np.flatnonzero(mask.any(0))[[0, -1]].tolist()
    return {
        'category_id': label,
        'bbox': [left, top, right - left + 1, bottom - top + 1],
        'area': int(mask.sum()),
        'iscrowd': 0,
        'segmentation': {'size': rle['size'], 'counts': rle['counts'].decode('ascii')},
    }


def _background(rng: np.random.Generator) -> np.ndarray:
    """float32[SIZE,SIZE,3]: a smooth wash of one colour, with a few filled shapes near it."""
    base = rng.uniform(10, 100, 3)
    wash = rng.uniform(-25, 25, (4, 4, 3)).astype(np.float32)
    image = cv2.resize(wash, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC) + np.float32(base)
    for _ in range(rng.integers(0, 7)):
        centre, radius = rng.uniform(0, SIZE, 2), np.exp(rng.uniform(*np.log((8, 70))))
        angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 7)))
        points = centre + radius * np.stack([np.cos(angles), np.sin(angles)], 1)
        colour = np.clip(base + rng.uniform(-30, 30, 3), 0, 255)
        cv2.fillPoly(image, [points.astype(np.int32)], colour.tolist(), cv2.LINE_AA)
    return np.clip(image, 0, 255)


def _draw_digit(
    rng: np.random.Generator, scan: np.ndarray, height: float
) -> tuple[np.ndarray, int, int]:
    """Opacity float32[h,w] of a scan turned and scaled to `height`, and a place for it."""
    angle = np.deg2rad(rng.uniform(-15, 15))
    stretch = rng.uniform(0.85, 1.15)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    tall = height / 8  # pixels a scan row: every digit fills its 8 rows
    side = int(np.ceil(height * 1.35))
    back = np.diag([_FINE / (tall * stretch), _FINE / tall]) @ turn
    shift = np.full(2, (scan.shape[0] - 1) / 2) - back @ np.full(2, (side - 1) / 2)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    ink = cv2.warpAffine(scan, np.c_[back, shift], (side, side), flags=flags)
    softness = np.float32(3 / tall)  # edges about one pixel wide at every scale
    alpha = np.clip((ink - np.float32(0.4)) / softness + np.float32(0.5), 0, 1)
    ys, xs = np.flatnonzero(alpha.max(1) > 0.5), np.flatnonzero(alpha.max(0) > 0.5)
    alpha = alpha[ys[0] : ys[-1] + 1, xs[0] : xs[-1] + 1][:SIZE, :SIZE]
    top, left = (rng.integers(0, SIZE - n + 1) for n in alpha.shape)
    return alpha, int(top), int(left)


def _shares_much(box: tuple[int, ...], boxes: list[tuple[int, ...]]) -> bool:
    """Whether a box overlaps another by more than a part of the smaller one."""
    for other in boxes:
        height = min(box[2], other[2]) - max(box[0], other[0])
        width = min(box[3], other[3]) - max(box[1], other[1])
        areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (box, other)]
        if min(height, width) > 0 and height * width > _MAX_SHARED * min(areas):
            return True
    return False


def _leaves_enough(
    below: np.ndarray, inside: np.ndarray, owner: np.ndarray, placed: list[tuple[int, int]]
) -> bool:
    """Whether every digit under `inside` keeps enough visible pixels."""
    covered = np.bincount(below[inside].astype(int) + 1, minlength=len(placed) + 1)[1:]
    for i in np.flatnonzero(covered):
        if (owner == i).sum() - covered[i] < _MIN_VISIBLE * placed[i][1]:
            return False
    return True


def _paint(rng: np.random.Generator, window: np.ndarray, alpha: np.ndarray) -> None:
    """Blends a bright colour that stands out from what lies below."""
    below = np.array(cv2.mean(window, (alpha > 0.5).astype(np.uint8))[:3])
    for _ in range(50):
        colour = rng.uniform(80, 255, 3)
        if colour.mean() >= 150 and np.abs(colour - below).max() >= _MIN_CONTRAST:
            break
    window += alpha[..., None] * (colour.astype(np.float32) - window)  # in place, on the scene
