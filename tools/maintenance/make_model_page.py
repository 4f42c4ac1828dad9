"""Writes docs/models.md: every published model, its size, its score and how to get its weights.

    python tools/maintenance/make_model_page.py [--check]

Sizes are traced from our models; published scores and the places of the checkpoints are those of
the TF1 repository's own model zoo (models/official/detection/MODEL_ZOO.md in tensorflow/tpu) and of
the Model Garden's README (official/vision/README.md in tensorflow/models).
"""

import argparse
import importlib
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

PAGE = ROOT / 'docs/models.md'
TF1_BUCKET = 'https://storage.cloud.google.com/cloud-tpu-checkpoints/detection'
TF2_BUCKET = 'https://storage.googleapis.com/tf_model_garden/vision/spinenet'
TF2_RETINANETS = 'https://storage.googleapis.com/tf_model_garden/vision/retinanet'


class Published(NamedTuple):
    """A row: config argument, published figure (AP or top-1/top-5) and the checkpoint's file."""

    config: str
    score: str
    file: str


class Table(NamedTuple):
    """Models of one kind: title, name of the score, config file, and where the files are."""

    title: str
    score: str
    config: str
    folder: str
    rows: tuple[Published, ...]


DETECTORS = (
    Published('49S-B', '39.5', 'spinenet-49S'),
    Published('49-B', '42.8', 'spinenet-49'),
    Published('96-B', '46.7', 'spinenet-96'),
    Published('143-B', '48.0', 'spinenet-143'),
    Published('49S-C', '41.5', 'spinenet-49S-best'),
    Published('49-C', '44.3', 'spinenet-49-best'),
    Published('96-C', '48.5', 'spinenet-96-best'),
    Published('143-C', '50.6', 'spinenet-143-best'),
    Published('190-C', '52.0', 'spinenet-190-best'),
)
RESNET_DETECTORS = (Published('r50-B', '40.4', 'r50-fpn'),)
GARDEN_RESNETS = (Published('r50-B', '36.8', 'retinanet-resnet50fpn'),)
GARDEN_MOBILE = (Published('mb49-M', '28.1', 'spinenet49mobile'),)
MOBILE_DETECTORS = (Published('mb49-M', '28.6', 'spinenetmbconv-49-best'),)
GARDEN_DETECTORS = (
    Published('49-C', '44.2', 'spinenet-49-i640'),
    Published('96-C', '48.5', 'spinenet-96-i1024'),
    Published('143-C', '50.0', 'spinenet-143-i1280'),
)
MASK_DETECTORS = (
    Published('49-B', '42.8 / 37.8', 'spinenet-49'),
    Published('96-B', '46.8 / 41.2', 'spinenet-96'),
    Published('143-B', '48.7 / 42.6', 'spinenet-143'),
    Published('190-C', '52.0 / 45.9', 'spinenet-190'),
)
CLASSIFIERS = (
    Published('imagenet-49', '77.0 / 93.3', 'spinenet-49-imagenet'),
    Published('imagenet-96', '78.2 / 94.0', 'spinenet-96-imagenet'),
    Published('imagenet-143', '79.0 / 94.4', 'spinenet-143-imagenet'),
    Published('imagenet-49-best', '78.1 / 94.0', 'spinenet-49-best-imagenet'),
    Published('imagenet-96-best', '79.4 / 94.6', 'spinenet-96-best-imagenet'),
    Published('imagenet-143-best', '80.1 / 95.0', 'spinenet-143-best-imagenet'),
    Published('imagenet-190-best', '80.8 / 95.3', 'spinenet-190-best-imagenet'),
)
TABLES = (
    Table('RetinaNet on COCO', 'AP', 'retinanet', f'{TF1_BUCKET}/retinanet', DETECTORS),
    Table(
        'SpineNet-Mobile RetinaNet on COCO',
        'AP',
        'retinanet',
        f'{TF1_BUCKET}/retinanet',
        MOBILE_DETECTORS,
    ),
    Table(
        'ResNet-FPN RetinaNet on COCO, the baseline',
        'AP',
        'retinanet',
        f'{TF1_BUCKET}/retinanet',
        RESNET_DETECTORS,
    ),
    Table('RetinaNet on COCO, TF2', 'AP', 'retinanet', TF2_BUCKET, GARDEN_DETECTORS),
    Table(
        'SpineNet-Mobile RetinaNet on COCO, TF2', 'AP', 'retinanet', TF2_RETINANETS, GARDEN_MOBILE
    ),
    Table(
        'ResNet-FPN RetinaNet on COCO, TF2',
        'AP',
        'retinanet',
        TF2_RETINANETS,
        GARDEN_RESNETS,
    ),
    Table(
        'Mask R-CNN on COCO',
        'box AP / mask AP',
        'mask_rcnn',
        f'{TF1_BUCKET}/maskrcnn',
        MASK_DETECTORS,
    ),
    Table(
        'ImageNet',
        'top-1 / top-5',
        'classification',
        f'{TF1_BUCKET}/classification',
        CLASSIFIERS,
    ),
)
HOW_TO_READ = """# Models

<!-- made by tools/maintenance/make_model_page.py -->

How to read this page. *Published* is what the TF1 model zoo reports, in the table of TF2 what the
Model Garden's README does: COCO AP on val2017, or ImageNet top-1 / top-5, in percent. *Ours* is
what `eval.py` printed for the converted checkpoint; *not run* means that nobody has run it, not
that it fails. Parameters (trainable) and multiply-adds (one image) are counted from our traced
model with the classes of the checkpoint, 91 or 1,001 with background; Mask R-CNN's with 1,000
proposals and 100 masks. What stands between a published number and ours is in
[differences.md](differences.md); the stages that were compared
number by number are the tests in `tests/convert/`. The released 49S checkpoints may have 256
channels at their endpoints, as the zoo's size of 11.9 M says; the conversion sees it. The Garden's
checkpoints are of its beta, which names variables otherwise than today's Garden; either layout is
taken. No released file of SpineNet-Mobile or of TF1's ResNet-FPN was at hand: a mobile checkpoint
that today's Garden has trained converts and is compared with it in the tests, and TF1's names
follow from its code. A later config of the Garden's Mobile-49 has hard_swish, which is not
supported here; whether its file was trained with it is not known. The Garden's ResNet-FPN began
with ImageNet's weights (72 epochs).

Every row is one command; *file* goes into both places:

    python tools/convert_checkpoint.py --source=<file>.tar.gz --workdir=runs/<file> \\
        --config=configs/<config>

A run of ours goes to the Model Garden with `--to=tf2` in place of `--config`, which needs the
Garden's TensorFlow (`tools/maintenance/make_oracle_env.sh`): RetinaNet on SpineNet of any size,
SpineNet-Mobile and ResNet-FPN, Mask R-CNN and its cascade on SpineNet. What the Garden computes in
another way is refused: a TF1 checkpoint's padding and pooling, other graphs, and SpineNet-Mobile
unless `model.squeeze_gate=hard_sigmoid`.
"""
GRAPHS = """## Graphs

`python tools/draw_graph.py --graph=<name>` draws each of them, and any other graph.
`configs/graphs/` has R35-SP18, R23-SP30 and R14-SP39 with the paper's blocks, but not its
connections, which are published in a drawing alone.

| `spinenet49`, shared by 49S to 190 | `r0_sp53`, of R0-SP53 | `mobile49`, of SpineNet-Mobile |
| --- | --- | --- |
| ![spinenet49](spinenet49.svg) | ![r0_sp53](r0_sp53.svg) | ![mobile49](mobile49.svg) |
"""


def row(published: Published, table: Table) -> list[str]:
    """The cells of one model."""
    from spinenet_jax.analysis.cost import Cost, config_cost

    config = importlib.import_module(f'configs.{table.config}').get_config(published.config)
    if config.task == 'classification':
        config.model.num_classes = 1001
    total = sum(config_cost(config).values(), Cost())
    return [
        f'`{table.config}.py:{published.config}`',
        str(config.data.image_size[0]),
        f'{total.parameters / 1e6:.1f}',
        f'{total.multiply_adds / 1e9:.1f}',
        published.score,
        'not run',
        f'[{published.file}]({table.folder}/{published.file}.tar.gz)',
    ]


def page() -> str:
    """The whole page."""
    parts = [HOW_TO_READ]
    for table in TABLES:
        head = ['config', 'input', 'parameters M', 'multiply-adds B']
        head += [f'published {table.score}', 'ours', 'file']
        cells = [head, ['---'] * len(head), *(row(published, table) for published in table.rows)]
        lines = '\n'.join(f'| {" | ".join(line)} |' for line in cells)
        parts.append(f'## {table.title}\n\n{lines}\n')
    return '\n'.join([*parts, GRAPHS])


def main() -> int:
    """Exit status 1: --check was given and the page is out of date."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--check', action='store_true', help='write nothing, only compare')
    check, text = parser.parse_args().check, page()
    if check:
        return int(not PAGE.exists() or PAGE.read_text() != text)
    PAGE.write_text(text)
    return 0


if __name__ == '__main__':
    sys.exit(main())
