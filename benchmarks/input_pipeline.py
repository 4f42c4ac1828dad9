"""Measures how many training images a second the input pipeline makes on this machine.

    python benchmarks/input_pipeline.py [--num_threads=2] [--worker_count=0] [--masks]

Writes a synthetic COCO directory of ~640x480 JPEGs (quality 90, a few shapes over noise), reads it
like training at 640x640 with scale 0.5 to 2.0, and prints one JSON line; with --record it is also
appended to benchmarks/logs/input_pipeline.jsonl. COCO's own images are a little larger in bytes.

`images_per_s` is the median of five stretches, `images_per_s_range` the slowest and the fastest;
they differ where the machine does something else meanwhile. `cpu_ms_per_image` and `memory_mb` (at
the end, PSS) are those of all processes together. With --masks, every object has a polygon, an
ellipse of 24 points, and the rows hold the masks; `batch_mb` is the memory of one batch.
"""

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from absl import flags

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from spinenet_jax import launch  # noqa: E402

_BATCH = flags.DEFINE_integer('batch_size', 8, 'images a batch')
_SIZE = flags.DEFINE_integer('image_size', 640, 'height and width of the output, pixels')
_IMAGES = flags.DEFINE_integer('images', 400, 'JPEG files to write and read')
_STEPS = flags.DEFINE_integer('steps', 200, 'batches timed, in five stretches')
_THREADS = flags.DEFINE_integer('num_threads', 0, 'reading threads, 0: one a core, at most 16')
_WORKERS = flags.DEFINE_integer('worker_count', 0, 'reading processes, 0: none')
_PYTHON_ONLY = flags.DEFINE_bool(
    'python_only', False, 'take pixels that lie ready: what is left is bound to one core a process'
)
_MASKS = flags.DEFINE_bool('masks', False, 'rows with the masks of the objects')
_RECORD = flags.DEFINE_bool('record', False, "append to the repository's log")

STRETCHES = 5


def write_images(root: Path, count: int) -> None:
    """A COCO directory of `count` synthetic photographs with seven boxes each."""
    import cv2
    import numpy as np

    (root / 'annotations').mkdir()
    (root / 'train').mkdir()
    angles = np.arange(24) * (2 * np.pi / 24)
    images, annotations = [], []
    for n in range(count):
        rng = np.random.default_rng(n)
        h, w = (480, 640) if n % 4 else (640, 480)
        image = cv2.resize(rng.uniform(0, 255, (h // 8, w // 8, 3)), (w, h))
        image += rng.normal(0, 12, image.shape)
        for _ in range(7):
            (y, x), (bh, bw) = rng.uniform(0, (h - 100, w - 100)), rng.uniform(20, 100, 2)
            corners = (int(x), int(y)), (int(x + bw), int(y + bh))
            cv2.rectangle(image, *corners, rng.uniform(0, 255, 3).tolist(), -1)
            outline = [x + bw * (1 + np.cos(angles)) / 2, y + bh * (1 + np.sin(angles)) / 2]
            polygon = np.round(np.stack(outline, 1), 2).reshape(-1).tolist()
            box = {'image_id': n, 'category_id': 1, 'bbox': [x, y, bw, bh]}
            annotations.append({**box, 'segmentation': [polygon]})
        pixels = np.clip(image, 0, 255).astype(np.uint8)
        cv2.imwrite(str(root / f'train/{n}.jpg'), pixels, (cv2.IMWRITE_JPEG_QUALITY, 90))
        images.append({'id': n, 'file_name': f'{n}.jpg', 'height': h, 'width': w})
    categories = [{'id': 1, 'name': 'rectangle'}]
    data = {'images': images, 'annotations': annotations, 'categories': categories}
    (root / 'annotations/instances_train.json').write_text(json.dumps(data))


def measure(root: Path) -> dict[str, object]:
    """Rate, CPU time and memory of training batches from `root`."""
    from spinenet_jax.data.build import box_rows, build_source, mask_rows, train_batches
    from spinenet_jax.settings import default_config

    config = default_config().data
    config.root, config.train_split = str(root), 'train'
    config.image_size = (_SIZE.value, _SIZE.value)
    config.num_threads, config.worker_count = _THREADS.value, _WORKERS.value
    if _PYTHON_ONLY.value:
        _leave_out_pixels()
    rows = (mask_rows if _MASKS.value else box_rows)(config)
    source = build_source(config, 'train', 0, rows.needs)
    batches = train_batches(
        source,
        rows.train,
        config,
        batch_size=_BATCH.value,
        seed=0,
        start_step=0,
        process_index=0,
        process_count=1,
    )
    for _ in range(20):
        batch = next(batches)
    size = sum(array.nbytes for array in batch.values())
    return {'batch_mb': round(size / 1e6, 1), **timed(batches)}


def _leave_out_pixels() -> None:
    """Replaces reading, decoding and resizing, which run without Python's lock, by ready arrays."""
    import numpy as np

    from spinenet_jax.data import pipeline, transforms

    ready = np.zeros((_SIZE.value, _SIZE.value, 3), np.uint8)
    pipeline.read_image = lambda image, size, *_: np.broadcast_to(np.uint8(0), (*size, 3))
    transforms.place_image = lambda *_: ready


def timed(batches: Iterator[object]) -> dict[str, object]:
    """Rate, CPU time and memory of the next batches; closes the iterator."""
    from benchmarks import machine

    processes = machine.family()
    cpu, rates, steps = machine.cpu_seconds(processes), [], _STEPS.value // STRETCHES
    for _ in range(STRETCHES):
        began = time.perf_counter()
        for _ in range(steps):
            next(batches)
        rates.append(steps * _BATCH.value / (time.perf_counter() - began))
    cpu = machine.cpu_seconds(processes) - cpu
    memory = machine.memory_mb(processes)
    batches.close()
    return {
        'images_per_s': round(statistics.median(rates), 1),
        'images_per_s_range': [round(min(rates)), round(max(rates))],
        'cpu_ms_per_image': round(1000 * cpu / (STRETCHES * steps * _BATCH.value), 2),
        'memory_mb': round(memory),
    }


def main() -> None:
    from benchmarks import machine

    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder), _IMAGES.value)
        size = sum(f.stat().st_size for f in Path(folder, 'train').iterdir())
        result = measure(Path(folder))
    settings = {
        'load_before': round(os.getloadavg()[0], 2),
        'image_kb': round(size / _IMAGES.value / 1000, 1),
        'image_size': _SIZE.value,
        'batch_size': _BATCH.value,
        'num_threads': _THREADS.value,
        'worker_count': _WORKERS.value,
        'python_only': _PYTHON_ONLY.value,
        'masks': _MASKS.value,
    }
    machine.report('input_pipeline', settings | result, _RECORD.value)


if __name__ == '__main__':
    launch.run(main)
