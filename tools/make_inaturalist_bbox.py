"""Builds iNaturalist-bbox from the public files of the iNaturalist 2017 competition.

    python tools/make_inaturalist_bbox.py --images=/data/inat --annotations=/data/inat \
        --output=/data/inat-bbox
    python train.py --config=configs/classification.py:inaturalist_bbox-49 --workdir=runs/bbox \
        --config.data.root=/data/inat-bbox

Needs the unpacked train_val_images.tar.gz, train_2017_bboxes.zip and val_2017_bboxes.zip
(github.com/visipedia/inat_comp, 2017; read its terms of use). The same command goes on where a
stopped run was. Prints how many crops and classes there are next to the published numbers.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from absl import flags
from tqdm import tqdm

from spinenet_jax import launch

IMAGES = flags.DEFINE_string('images', None, 'Folder with train_val_images/.', required=True)
ANNOTATIONS = flags.DEFINE_string('annotations', None, 'Folder of the two JSON files.')
OUTPUT = flags.DEFINE_string('output', None, 'Folder to write train/ and val/ to.', required=True)
THREADS = flags.DEFINE_integer('threads', 0, 'Threads; 0 means one a core.', lower_bound=0)

FILES = {'train': 'train_2017_bboxes.json', 'val': 'val_2017_bboxes.json'}
PUBLISHED = {'train': 496_164, 'val': 48_736, 'classes': 2_854}  # SpineNet paper, section 5


def build(images: Path, annotations: Path, output: Path, threads: int) -> dict[str, int]:
    """Writes both splits; returns the numbers of crops, and of classes."""
    from spinenet_jax.data.inaturalist_bbox import make_folders, plan_crops, write_crops

    plans = plan_crops({split: annotations / name for split, name in FILES.items()})
    counts = {'classes': make_folders(plans, output)}
    for plan in plans:
        with tqdm(total=plan.image_count, desc=plan.split, unit='image') as bar:
            result = write_crops(plan, images, output, threads=threads, progress=bar.update)
        for line in result.report:
            print(line)
        counts[plan.split] = result.crops
    return counts


def main() -> None:
    """Builds the data set, and prints its size beside the published one."""
    images, output = (Path(flag.value).expanduser() for flag in (IMAGES, OUTPUT))
    counts = build(images, Path(ANNOTATIONS.value or images), output, THREADS.value)
    for name, published in PUBLISHED.items():
        what = 'classes' if name == 'classes' else f'{name} crops'
        agrees = 'as published' if counts[name] == published else f'published: {published:,}'
        print(f'{counts[name]:,} {what} ({agrees})')


if __name__ == '__main__':
    launch.run(main)
