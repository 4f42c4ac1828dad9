"""Makes a small detection data set in COCO format: letters drawn on cluttered backgrounds.

    python tools/make_letters.py --output=letters

Three classes, A, B and C, in colours and fonts that vary, on backgrounds with lines and shapes: 24
images to train on and 12 to score by default, a set as someone makes it on the first day. What is
in it is a function of --seed. It shows whether a small set is enough to fine-tune a detector; it
says nothing about photographs.
"""

import argparse
import json
import sys
from pathlib import Path

import cv2
import numpy as np

CLASSES = 'ABC'
FONTS = (cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_DUPLEX, cv2.FONT_HERSHEY_TRIPLEX)
SIZES = ((240, 320), (320, 240), (256, 256), (200, 300))  # height, width in pixels
MOST_SHARED = 0.1  # of the smaller of two boxes
Box = tuple[int, int, int, int]  # x, y, width, height


def make(output: Path, counts: dict[str, int], seed: int) -> None:
    """Writes `output`/annotations/instances_<split>.json and `output`/<split>/*.jpg.

    Args:
      output: a folder that is not there, or holds no such data.
      counts: images by split.
      seed: what the images are a function of, with the split.
    """
    (output / 'annotations').mkdir(parents=True, exist_ok=True)
    for number, (split, count) in enumerate(counts.items()):
        (output / split).mkdir(exist_ok=True)
        images, annotations = [], []
        for n in range(count):
            picture, objects = scene(np.random.default_rng((seed, number, n)))
            name = f'{n:03d}.jpg'
            cv2.imwrite(str(output / split / name), picture[..., ::-1])
            height, width = picture.shape[:2]
            images.append({'id': n, 'file_name': name, 'height': height, 'width': width})
            annotations += [
                {'image_id': n, 'category_id': label + 1, 'bbox': list(box)}
                for label, box in objects
            ]
        content = {
            'images': images,
            'annotations': [{'id': n, **record} for n, record in enumerate(annotations, 1)],
            'categories': [{'id': n, 'name': name} for n, name in enumerate(CLASSES, 1)],
        }
        path = output / 'annotations' / f'instances_{split}.json'
        path.write_text(json.dumps(content), encoding='utf-8')


def scene(rng: np.random.Generator) -> tuple[np.ndarray, list[tuple[int, Box]]]:
    """One image, u8[h,w,3] RGB, and its letters: (index of the class, box around the ink)."""
    height, width = SIZES[rng.integers(len(SIZES))]
    wash = rng.uniform(20, 120, (3, 3, 3)).astype(np.float32)
    image = cv2.resize(wash, (width, height), interpolation=cv2.INTER_CUBIC)
    for _ in range(rng.integers(2, 8)):
        ends = rng.integers(0, (width, height), (2, 2)).tolist()
        colour = rng.uniform(20, 130, 3).tolist()
        if rng.random() < 0.5:
            cv2.line(image, *ends, colour, int(rng.integers(1, 6)), cv2.LINE_AA)
        else:
            cv2.circle(image, ends[0], int(rng.integers(5, 40)), colour, -1, cv2.LINE_AA)
    objects: list[tuple[int, Box]] = []
    for _ in range(rng.integers(1, 5)):
        for _ in range(20):  # attempts at a free place
            label = int(rng.integers(len(CLASSES)))
            ink = _letter(rng, CLASSES[label], int(rng.integers(40, 120)))
            y, x = (
                int(rng.integers(0, a - b)) for a, b in zip(image.shape, ink.shape, strict=False)
            )
            box = (x, y, ink.shape[1], ink.shape[0])
            if all(_shared(box, other) <= MOST_SHARED for _, other in objects):
                window = image[y : y + box[3], x : x + box[2]]
                window += ink[..., None] * (rng.uniform(150, 255, 3).astype(np.float32) - window)
                objects.append((label, box))
                break
    image += rng.normal(0, 4, image.shape)
    return np.clip(image, 0, 255).astype(np.uint8), objects


def _letter(rng: np.random.Generator, letter: str, height: int) -> np.ndarray:
    """Opacity f32[h,w] of a letter, a little turned, cut to its ink."""
    font, weight = FONTS[rng.integers(len(FONTS))], int(rng.integers(3, 7))
    side, scale = 3 * height, cv2.getFontScaleFromHeight(font, height, weight)
    canvas = np.zeros((side, side), np.uint8)
    cv2.putText(canvas, letter, (height, 2 * height), font, scale, 255, weight, cv2.LINE_AA)
    turn = cv2.getRotationMatrix2D((side / 2, side / 2), float(rng.uniform(-15, 15)), 1.0)
    canvas = cv2.warpAffine(canvas, turn, (side, side)).astype(np.float32) / 255
    ys, xs = np.flatnonzero(canvas.max(1) > 0.5), np.flatnonzero(canvas.max(0) > 0.5)
    return canvas[ys[0] : ys[-1] + 1, xs[0] : xs[-1] + 1]


def _shared(a: Box, b: Box) -> float:
    """Overlap of two boxes as a share of the smaller one."""
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    return max(width, 0) * max(height, 0) / min(a[2] * a[3], b[2] * b[3])


def main() -> int:
    """Exit status 2: the folder holds something already."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--output', type=Path, required=True, help='folder to make')
    parser.add_argument('--train', type=int, default=24, help='images to train on')
    parser.add_argument('--val', type=int, default=12, help='images to score')
    parser.add_argument('--seed', type=int, default=0, help='of what is drawn')
    given = parser.parse_args()
    if given.output.exists() and any(given.output.iterdir()):
        print(f'error: {given.output} is not empty: choose another folder', file=sys.stderr)
        return 2
    make(given.output, {'train': given.train, 'val': given.val}, given.seed)
    print(f'{given.train} images to train on and {given.val} to score are in {given.output}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
