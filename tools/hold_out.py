"""Holds images out of a COCO split for the reward of a search; see docs/search.md.

python tools/hold_out.py --root=/data/coco --split=train2017 --images=7392
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from absl import flags

from spinenet_jax import launch
from spinenet_jax.data.hold_out import hold_out, names

ROOT = flags.DEFINE_string('root', None, 'COCO directory.', required=True)
SPLIT = flags.DEFINE_string('split', 'train2017', 'The split to take them from.')
IMAGES = flags.DEFINE_integer('images', 7392, "How many; the paper's number by default.")
SEED = flags.DEFINE_integer('seed', 0, 'Of the draw.')


def main() -> None:
    """Writes two annotation files beside the split's."""
    counts = hold_out(ROOT.value, SPLIT.value, IMAGES.value, SEED.value)
    for name, count in zip(names(SPLIT.value), counts, strict=True):
        print(f'{name}: {count} images')


if __name__ == '__main__':
    launch.run(main)
