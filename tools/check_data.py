"""Shows what is in a COCO-format data set before a model is trained on it.

    python tools/check_data.py --root=/data/mine --split=train --output=check

Prints what the reader left out and why, objects and sizes of each class, and how well anchors fit
the boxes. Writes twenty annotated images, with their masks where there are any, as one sheet
(`<split>_images.jpg`) and plots of counts and sizes (`<split>_sizes.png`) to --output.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from absl import flags

from spinenet_jax import launch
from spinenet_jax.annotated import draw_annotated
from spinenet_jax.data.coco import CocoSource
from spinenet_jax.data.decode import BadImageError, read_image
from spinenet_jax.data.statistics import DataSummary, best_overlaps, summarise
from spinenet_jax.errors import UserError
from spinenet_jax.visualize import tile

_ROOT = flags.DEFINE_string('root', None, 'Folder with annotations/ and the images.')
_SPLIT = flags.DEFINE_string('split', 'train', 'Split: annotations/instances_<split>.json.')
_OUTPUT = flags.DEFINE_string('output', 'check', 'Folder for the pictures.')
_IMAGE_SIZE = flags.DEFINE_integer('image_size', 640, 'Side of the network input, pixels.', 1)
_ANCHOR_SIZE = flags.DEFINE_float('anchor_size', 3.0, "As the config's model.anchor_size.", 0.01)
_IMAGES = flags.DEFINE_integer('images', 20, 'Number of annotated images on the sheet.', 1)
LEVELS = (3, 7)
FITS = 0.5  # least IoU at which an anchor learns a box
MOST_BOXES = 5000  # compared with the anchors; more are drawn from at random
CELL = 320  # side of an image on the sheet, pixels


def class_table(summary: DataSummary) -> str:
    """One line a class, most frequent first, as text."""
    width = max([5, *(len(row.name) for row in summary.classes)])
    head = f'{"class":<{width}}{"objects":>9}{"images":>8}{"small":>8}{"medium":>8}{"large":>8}'
    lines = [head + f'{"median side":>13}']
    for row in sorted(summary.classes, key=lambda row: -row.objects):
        side = '-' if np.isnan(row.median_side) else f'{row.median_side:.0f} px'
        lines.append(
            f'{row.name:<{width}}{row.objects:>9}{row.images:>8}{row.small:>8}{row.medium:>8}'
            f'{row.large:>8}{side:>13}'
        )
    return '\n'.join(lines)


def anchor_lines(boxes: np.ndarray, size: tuple[int, int], anchor_size: float) -> list[str]:
    """How well anchors fit, as lines to print."""
    if not len(boxes):
        return ['no box of a known image size: anchors not compared']
    if len(boxes) > MOST_BOXES:
        boxes = np.random.default_rng(0).permutation(boxes)[:MOST_BOXES]
    overlaps, levels = best_overlaps(boxes, size, anchor_size, LEVELS)
    unfit = overlaps < FITS
    share = [f'level {n} {np.mean(levels == n):.0%}' for n in range(LEVELS[0], LEVELS[1] + 1)]
    lines = [f'best anchor of {len(boxes)} boxes at {size[0]} x {size[1]}: {", ".join(share)}']
    lines.append(f'{unfit.mean():.1%} of the boxes overlap no anchor by {FITS} or more')
    if unfit.any():
        sides = boxes[unfit, 2:] - boxes[unfit, :2]
        height, width = np.median(sides, axis=0)
        lines[-1] += f' (their median is {width:.0f} x {height:.0f} pixels, width x height)'
    if unfit.mean() > 0.05:
        lines.append(
            'more than one box in twenty: consider a larger --image_size for small objects, or '
            'another --anchor_size (config: data.image_size, model.anchor_size)'
        )
    return lines


def sheet(source: CocoSource, count: int) -> np.ndarray:
    """Annotated images drawn at random, those with objects first; u8[h,w,3]."""
    order = np.random.default_rng(0).permutation(len(source))
    order = order[np.argsort(source.box_counts[order] == 0, kind='stable')]
    names = {c.label: c.name for c in source.categories}
    pictures = []
    for index in order:
        record = source[int(index)]
        try:
            image = read_image(record['image'], record['size'])
        except BadImageError as error:
            print(f'{source.describe(int(index))}: {error}')
            continue
        pictures.append(draw_annotated(image, record, names, CELL))
        if len(pictures) == count:
            break
    return tile(pictures, columns=5, size=CELL)


def plot(summary: DataSummary, path: Path) -> None:
    """Objects a class, objects an image, and sides of boxes in the network's input, as a PNG."""
    import matplotlib

    matplotlib.use('Agg')  # no display is needed
    import matplotlib.pyplot as plt

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(15, 5), layout='constrained')
    rows = sorted(summary.classes, key=lambda row: -row.objects)[:30][::-1]
    left.barh(range(len(rows)), [row.objects for row in rows])
    left.set_yticks(range(len(rows)), [row.name for row in rows])
    left.set(title='objects a class' + (' (30 largest)' if len(summary.classes) > 30 else ''))
    most = int(summary.objects_per_image.max(initial=0))
    middle.hist(summary.objects_per_image, bins=np.arange(min(most, 100) + 2) - 0.5)
    middle.set(title='objects an image', xlabel='objects', ylabel='images')
    sides = np.sqrt(np.prod(summary.boxes[:, 2:] - summary.boxes[:, :2], axis=1))
    right.hist(np.log2(np.maximum(sides, 1)), bins=40)
    right.set(title='objects by size in the network input', xlabel='log2 of sqrt(area), pixels')
    figure.savefig(path)
    plt.close(figure)


def main() -> None:
    """Reads the annotations, prints the findings, writes the pictures."""
    import cv2

    source = CocoSource(_ROOT.value, _SPLIT.value, with_segmentations=True)
    size = (_IMAGE_SIZE.value, _IMAGE_SIZE.value)
    summary = summarise(source, size)
    for line in source.report:
        print(line)
    objects = int(summary.objects_per_image.sum())
    print(
        f'{summary.images} images, {objects} objects to train on, {summary.empty_images} images '
        f'without any, {summary.crowds} crowd regions left out'
    )
    print('\n' + class_table(summary) + '\n')
    for line in anchor_lines(summary.boxes, size, _ANCHOR_SIZE.value):
        print(line)
    output = Path(_OUTPUT.value).expanduser()
    try:
        output.mkdir(parents=True, exist_ok=True)
        pictures = output / f'{_SPLIT.value}_images.jpg'
        drawn, encoded = cv2.imencode('.jpg', sheet(source, _IMAGES.value)[..., ::-1])
        if not drawn:
            raise UserError(f'--images={_IMAGES.value}: too many for one JPEG')
        pictures.write_bytes(encoded.tobytes())
        try:
            plot(summary, output / f'{_SPLIT.value}_sizes.png')
        except ModuleNotFoundError as error:
            raise UserError(f'no plot: pip install {error.name}') from error
    except OSError as error:
        raise UserError(f'--output={output}: cannot be written ({error.strerror})') from error
    print(f'pictures are in {output}: {_SPLIT.value}_images.jpg, {_SPLIT.value}_sizes.png')


if __name__ == '__main__':
    flags.mark_flag_as_required('root')
    launch.run(main)
