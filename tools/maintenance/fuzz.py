"""Feeds damaged annotations, images, settings and TensorFlow checkpoints to what reads them.

    python tools/maintenance/fuzz.py --kind=coco --count=2000 --seed=0

A case is a function of its kind and seed. It must be used or be refused in one line; a traceback,
a hang, or a result that breaks a promise is a failure, printed with the command that repeats it.
Exit status 1: there were failures.
"""

import collections
import faulthandler
import io
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / 'tests/convert'))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import bundles
import numpy as np
from absl import flags

from spinenet_jax import launch
from spinenet_jax.errors import UserError

USED, REFUSED, FAILED = 'used', 'refused', 'failed'
LIMIT, WAITING = 20.0, 120.0  # of a case: seconds of the processor, and seconds on the clock
LONGEST_LINE = 2000  # characters of a message


class Outcome(NamedTuple):
    """How a case ended: USED, REFUSED or FAILED, and the message or the traceback."""

    kind: str
    seed: int
    result: str
    detail: str

    @property
    def command(self) -> str:
        """What repeats the case."""
        return f'python tools/maintenance/fuzz.py --kind={self.kind} --count=1 --seed={self.seed}'


def run_case(kind: str, seed: int, folder: Path) -> Outcome:
    """Runs one case in an empty folder; only from the main thread, for the sake of its time limit.

    Python that hangs is interrupted and counts as FAILED. Compiled code that hangs ends the
    process, with a traceback that says where.
    """

    over = False

    def too_late(number: int, _: object) -> None:
        spent = time.thread_time() - began
        if over:
            return
        if number == signal.SIGPROF and spent < LIMIT:  # other threads used it up
            signal.setitimer(signal.ITIMER_PROF, LIMIT - spent)
            return
        raise TimeoutError(f'longer than {LIMIT} s of the processor, or {WAITING} s')

    _import_readers()
    began = time.thread_time()
    before = [signal.signal(number, too_late) for number in (signal.SIGALRM, signal.SIGPROF)]
    signal.setitimer(signal.ITIMER_PROF, LIMIT)
    signal.setitimer(signal.ITIMER_REAL, WAITING)
    faulthandler.dump_traceback_later(2 * WAITING, exit=True)
    try:
        detail = KINDS[kind](random.Random(seed), folder)
        return Outcome(kind, seed, USED, detail)
    except UserError as error:
        line = str(error)
        if '\n' in line or len(line) > LONGEST_LINE:
            return Outcome(kind, seed, FAILED, f'not one line to read: {line[:500]!r}')
        return Outcome(kind, seed, REFUSED, line)
    except Exception:  # the very thing that is looked for
        return Outcome(kind, seed, FAILED, traceback.format_exc())
    finally:
        over = True
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before[0])
        signal.signal(signal.SIGPROF, before[1])


def _import_readers() -> None:
    """Imports what takes seconds, so that it does not count as a part of a case."""
    from spinenet_jax import prediction  # noqa: F401
    from spinenet_jax.tasks import build  # noqa: F401
    from spinenet_jax.training import optim  # noqa: F401


# Numbers that JSON may hold and Python cannot write.
RAW = {
    '@5000@': '9' * 5000,
    '@-5000@': '-' + '9' * 5000,
    '@1e999@': '1e999',
    '@400@': '1' + '0' * 400,
}
HOSTILE: list[Any] = [
    None, True, False, 0, -1, 1, 0.5, -0.0, 1e308, -1e308, 1e-308, 2**31, 2**31 - 1, 2**53, 2**63,
    2**64, 10**400, -(10**400), float('nan'), float('inf'), float('-inf'), '', '1', '1234', 'nan',
    'x', '\0', 'a\0b', '\ud800', '\udcff', '\n', 'a\nb', '../../x', '/etc/passwd', '/dev/zero',
    '..', '.', '/', 'x' * 300, 'x' * 5000, 'y/' * 3000, 'loop/loop/a.jpg', [], [1], [1, 2, 3],
    [1, 2, 3, 4], ['1', '2', '3', '4'], [None] * 4, [[]], [[1, 2]], [[1, 2, 3]], [[[1]]], [5] * 50,
    {}, {'a': 1}, {'id': 1}, {'counts': 'x', 'size': [30, 40]}, {'counts': [1], 'size': 5},
    {'counts': [2**62, 2**62], 'size': [2**31, 2**31]}, {'counts': 'o' * 100, 'size': [30, 40]},
    {'counts': [-5, 1205], 'size': [30, 40]}, {'image_id': 1, 'category_id': 1}, *RAW,
]  # fmt: skip


def coco_case(rng: random.Random, folder: Path) -> str:
    """A COCO directory whose JSON is damaged, from the reader to the numbers of an evaluation."""
    for number in range(3):
        write_image(folder / 'train' / f'{number}.jpg', number)
    os.symlink('loop', folder / 'train/loop')
    (folder / 'annotations').mkdir()
    (folder / 'annotations/instances_train.json').write_bytes(damaged_coco(rng))
    return use_coco(folder)


def damaged_coco(rng: random.Random) -> bytes:
    """A COCO JSON with one to three faults, in its values or in its text."""
    data = sound_coco()
    for _ in range(rng.choice((1, 1, 2, 3))):
        data = _damage(rng, data)
    text = json.dumps(data)
    for name, raw in RAW.items():
        text = text.replace(f'"{name}"', raw)
    content = text.encode()
    return damaged_bytes(rng, content) if rng.random() < 0.2 else content


def sound_coco() -> dict[str, Any]:
    """Three images with boxes, polygons, run lengths, a crowd, and all that readers look at."""
    runs = [10 * 30 + 5, *[8, 22] * 19, 8, 317]
    rows = [
        {'bbox': [10, 5, 20, 8], 'area': 150.5, 'segmentation': [[10, 5, 30, 5, 30, 13]]},
        {'segmentation': {'size': [30, 40], 'counts': runs}, 'area': 160},
        {'segmentation': {'size': [30, 40], 'counts': 'T19e0J'}, 'iscrowd': 1},
        {'segmentation': [[1, 2, 30, 2, 15, 20], [1, 1, 2, 2, 3, 1]]},
        {'bbox': [0, 0, 40, 30], 'area': 1200, 'iscrowd': 0},
    ]
    return {
        'info': {'description': 'fuzz'},
        'images': [
            {'id': n + 1, 'file_name': f'{n}.jpg', 'height': 30, 'width': 40} for n in range(3)
        ],
        'categories': [{'id': 1, 'name': 'cat'}, {'id': 7, 'name': 'dog'}],
        'annotations': [
            {'id': n + 1, 'image_id': n % 3 + 1, 'category_id': (1, 7)[n % 2], **row}
            for n, row in enumerate(rows)
        ],
    }


def _damage(rng: random.Random, data: Any) -> Any:
    """The JSON value with one place replaced, removed, repeated or wrapped."""
    places = list(_places(data))
    if not places:
        return rng.choice(HOSTILE)
    path = rng.choice(places)
    parent = data
    for key in path[:-1]:
        parent = parent[key]
    key = path[-1]
    fault = rng.random()
    if fault < 0.7:
        parent[key] = rng.choice(HOSTILE)
    elif fault < 0.8:
        del parent[key]
    elif fault < 0.9 and isinstance(parent, list):
        parent.insert(key, json.loads(json.dumps(parent[key])))
    else:
        parent[key] = rng.choice(([parent[key]], {'a': parent[key]}, str(parent[key])))
    return data


def _places(value: Any, path: tuple = ()) -> Any:
    """Paths of all values inside of a JSON value."""
    keys = value.keys() if isinstance(value, dict) else range(len(value))
    for key in keys:
        yield (*path, key)
        if isinstance(value[key], dict | list):
            yield from _places(value[key], (*path, key))


def damaged_bytes(rng: random.Random, content: bytes) -> bytes:
    """Content that is cut, flipped, blown up or overwritten in places."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        at = rng.randrange(len(data) + 1)
        fault = rng.randrange(6)
        if fault == 0:
            del data[at:]
        elif fault == 1:
            del data[at : at + rng.choice((1, 4, 100))]
        elif fault == 2:
            data[at:at] = rng.randbytes(rng.choice((1, 4, 100)))
        elif fault == 3 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif fault == 4:
            data[at : at + 4] = rng.choice((b'\xff' * 4, b'\0' * 4, b'\x7f\xff\xff\xff', b'[[[['))
        else:
            data[at:at] = data[: rng.randrange(1000)]
    return bytes(data)


def use_coco(folder: Path) -> str:
    """Trains on and evaluates a directory as the scripts do, without a network.

    First with boxes alone, then with masks.
    """
    from spinenet_jax.data.build import box_rows, mask_rows
    from spinenet_jax.evaluation.detection import DetectionEvaluator
    from spinenet_jax.evaluation.instances import InstanceEvaluator

    words = _use_rows(folder, box_rows, DetectionEvaluator)
    promise(_use_rows(folder, mask_rows, InstanceEvaluator) == words, 'masks change what is read')
    return words


def _use_rows(folder: Path, make_rows: Callable[..., Any], make_evaluator: Callable) -> str:
    """`use_coco` with one kind of rows."""
    from spinenet_jax.data.batch import SEGMENTATIONS
    from spinenet_jax.data.build import eval_batches, train_batches
    from spinenet_jax.data.coco import CocoSource
    from spinenet_jax.settings import default_config

    config = default_config().data
    config.image_size, config.num_threads = (32, 48), 1
    rows_of = make_rows(config)
    with_masks = rows_of.needs >= SEGMENTATIONS
    source = CocoSource(folder, 'train', with_segmentations=with_masks)
    for line in source.report:
        promise(line.isprintable() and len(line) < LONGEST_LINE, f'report: {line[:500]!r}')
    process = {'process_index': 0, 'process_count': 1}
    for index in range(len(source)):
        record = source[index]
        promise(np.isfinite(record['boxes']).all(), 'a box is not finite')
        promise((record['boxes'][:, 2:] > record['boxes'][:, :2]).all(), 'a box has no area')
    stream = train_batches(
        source, rows_of.train, config, batch_size=2, seed=0, start_step=0, **process
    )
    try:
        batch = next(stream)
        promise(np.isfinite(batch['boxes']).all(), 'a box in a batch is not finite')
        if with_masks:
            promise(not (batch['has_mask'] & ~batch['valid']).any(), 'a mask without a box')
    finally:
        stream.close()
    evaluator = make_evaluator(source)
    for batch in eval_batches(source, rows_of.eval, config, batch_size=2, **process):
        rows = {name: value[batch['index'] >= 0] for name, value in batch.items()}
        count = len(rows['index'])
        rows['boxes'] = np.tile(np.float32([[[1, 1, 20, 20]]]), (count, 1, 1))
        rows |= {'scores': np.full((count, 1), 0.5), 'valid': np.ones((count, 1), bool)}
        rows['classes'] = np.ones((count, 1), np.int32)
        rows['masks'] = np.ones((count, 1, 28, 28), np.float32)
        evaluator.update(rows)
    for annotation in (source.ground_truth or {}).get('annotations', []):
        promise(0 <= annotation['area'] <= 1e10, 'COCO would ignore an object')
    metrics, names = evaluator.result(), list(evaluator.per_class())
    promise(all(0 <= value <= 1 for value in metrics.values()), f'metrics {metrics}')
    promise(''.join(names).isprintable(), f'names {names}')
    return f'{len(source)} images, {source.unreadable.count} unreadable'


IMAGES = ('.jpg', '.png', '.bmp', '.webp', '.tiff', '.gif', '.ppm', '.jp2')


def image_case(rng: random.Random, folder: Path) -> str:
    """A damaged image file through decoding, both kinds of batches and a picture of detections."""
    path = folder / f'image{rng.choice(IMAGES)}'
    write_image(path, rng.randrange(256), rng.choice(((30, 40), (1, 1), (1, 300), (64, 3))))
    path.write_bytes(damaged_bytes(rng, path.read_bytes()))
    return use_image(path)


def use_image(path: Path) -> str:
    """Reads an image and does with it what training, evaluation and prediction do."""
    import cv2

    from spinenet_jax import prediction
    from spinenet_jax.data import crops, decode, pipeline
    from spinenet_jax.data.batch import NO_RECORD
    from spinenet_jax.tasks.records import Detections, draw

    try:
        image = decode.read_image(str(path), None, 10_000_000)
    except decode.BadImageError as error:
        raise UserError(str(error)) from error
    promise(image.dtype == np.uint8 and image.ndim == 3, f'{image.dtype}{image.shape}')
    promise(image.shape[2] == 3 and 0 < image[..., 0].size <= 10_000_000, f'{image.shape}')
    boxes = np.float32([[0, 0, 1, 1], [0, 0, *image.shape[:2]]])
    record = {'boxes': boxes, 'labels': np.int32([1, 2]), 'is_crowd': np.zeros(2, bool)}
    generator, size = np.random.default_rng(0), (32, 48)
    pipeline.Augmentation(size, 0.1, 20.0, True, 5)(record, image, generator)
    pipeline.WholeImage(size)(record, image)
    crops.RandomCrop(size)(NO_RECORD, image, generator)
    crops.CentralCrop(size)(NO_RECORD, image)
    found = Detections(boxes, np.float32([0.9, 0.8]), np.int32([1, 2]))
    drawn = draw(image, found, {1: 'cat'}, min_score=0.3, side=prediction.picture_side(image))
    promise(cv2.imencode('.jpg', drawn)[0], 'the picture cannot be written')
    return f'{image.shape}'


def settings_case(rng: random.Random, folder: Path) -> str:
    """A config with one to three hostile values, then all that is cheap to build from it."""
    del folder
    from ml_collections import ConfigDict

    from spinenet_jax import settings

    config, names = settings.default_config(), [name for name, _ in settings.fields()]
    for _ in range(rng.choice((1, 1, 2, 3))):
        section, _, key = rng.choice(names).rpartition('.')
        value = rng.choice([*HOSTILE, 2, 3, 7, 64, 1e-3, 0.1, (64, 64), (1.0, 2.0), 'relu', 'coco'])
        value = ConfigDict(value) if isinstance(value, dict) else value
        (config[section] if section else config)._fields[key] = value
    settings.check(config)
    return use_settings(config)


def use_settings(config: Any) -> str:
    """Builds the task, the optimizer, its schedule and the rows of batches of a legal config."""
    import jax

    from spinenet_jax import settings
    from spinenet_jax.data.batch import NO_RECORD
    from spinenet_jax.tasks.build import build_task
    from spinenet_jax.training import optim

    settings.remarks(config)
    promise(settings.from_saved(json.loads(config.to_json()), 'x')[1] == '', 'lost in JSON')
    steps = max(1, round(min(config.train.epochs, 1000) * 10))
    schedule = optim.learning_rate_schedule(config.optim, config.train.batch_size, 10, steps)
    optim.make_optimizer(config.optim, schedule)
    rates = jax.jit(jax.vmap(schedule))(np.array([0, steps // 2, steps - 1]))
    promise(bool(np.isfinite(rates).all() and (rates >= 0).all()), f'rates {rates}')
    task = build_task(config)
    if max(task.image_size) <= 1024:
        task.rows.eval(NO_RECORD, np.zeros((30, 40, 3), np.uint8))
    return 'legal'


def tf_case(rng: random.Random, folder: Path) -> str:
    """A TensorFlow checkpoint one of whose files is damaged: refused, or read as it was written."""
    prefix, arrays = folder / 'model.ckpt', sound_tf()
    if rng.random() < 0.5:
        bundles.write(prefix, arrays)
    else:  # object-based, as the Model Garden's
        bundles.write(prefix, arrays, {name: f'spinenet/{name}' for name in arrays})
    path = rng.choice(sorted(folder.iterdir()))
    path.write_bytes(damaged_bytes(rng, path.read_bytes()))
    return use_tf(prefix, arrays)


def sound_tf() -> dict[str, np.ndarray]:
    """Variables of several sizes, none of them zero."""
    shapes = {'a/kernel': (3, 3, 4, 8), 'a/bias': (8,), 'b/gamma': (1,), 'step': ()}
    return {name: np.full(shape, 1.5 + n, '<f4') for n, (name, shape) in enumerate(shapes.items())}


def use_tf(prefix: Path, arrays: dict[str, np.ndarray]) -> str:
    """Opens a checkpoint, verifies it and reads what a conversion reads."""
    from spinenet_jax.convert import tensor_bundle, tf_checkpoint

    bundle = tensor_bundle.Bundle(prefix)
    bundle.verify()
    tf_checkpoint.list_variables(bundle)
    read = {name.removesuffix(bundles.VALUE): name for name in bundle.entries}
    read = {name: key for name, key in read.items() if key != tensor_bundle.OBJECT_GRAPH}
    promise(read.keys() == arrays.keys(), f'variables {sorted(read)}')
    for name, key in read.items():
        promise(np.array_equal(bundle.read(key), arrays[name]), f'{name} has other values')
    return f'{len(read)} variables'


def write_image(path: Path, seed: int, size: tuple[int, int] = (30, 40)) -> None:
    """An image of smooth colours, of the kind that the suffix says."""
    from PIL import Image

    path.parent.mkdir(exist_ok=True)
    y, x = np.mgrid[: size[0], : size[1]]
    pixels = np.stack([x * 6 + seed, y * 8, 255 - x - y], -1).astype(np.uint8)
    buffer = io.BytesIO()
    kind = {'.jpg': 'JPEG', '.ppm': 'PPM', '.jp2': 'JPEG2000'}.get(path.suffix, path.suffix[1:])
    Image.fromarray(pixels).save(buffer, kind.upper())
    path.write_bytes(buffer.getvalue())


def promise(kept: bool, what: str) -> None:
    """Fails the case where something that the reader promises is not so."""
    if not kept:
        raise AssertionError(what)


KINDS: dict[str, Callable[[random.Random, Path], str]] = {
    'coco': coco_case,
    'image': image_case,
    'settings': settings_case,
    'tf': tf_case,
}


def main() -> int:
    """Runs the cases that the flags say."""
    counts, failures = collections.Counter(), []
    for seed in range(_SEED.value, _SEED.value + _COUNT.value):
        with tempfile.TemporaryDirectory() as folder:
            outcome = run_case(_KIND.value, seed, Path(folder))
        counts[outcome.result] += 1
        if outcome.result == FAILED:
            failures.append(outcome)
            print(f'{outcome.detail}\n{outcome.command}', flush=True)
        elif _COUNT.value == 1:
            print(f'{outcome.result}: {outcome.detail}')
    print(f'{_KIND.value}: ' + ', '.join(f'{n} {what}' for what, n in sorted(counts.items())))
    return 1 if failures else 0


if __name__ == '__main__':
    _KIND = flags.DEFINE_enum('kind', 'coco', sorted(KINDS), 'What is damaged.')
    _COUNT = flags.DEFINE_integer('count', 1000, 'Number of cases.', lower_bound=1)
    _SEED = flags.DEFINE_integer('seed', 0, 'Seed of the first case.', lower_bound=0)
    launch.run(main)
