"""Writes docs/models.md: every published model, its size, its score and how to get its weights.

    python tools/make_model_page.py [--check]

Sizes are traced from our models; published scores and the places of the checkpoints are those of
the TF1 repository's own model zoo (models/official/detection/MODEL_ZOO.md in tensorflow/tpu).
"""

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

PAGE = ROOT / 'docs/models.md'
BUCKET = 'https://storage.cloud.google.com/cloud-tpu-checkpoints/detection'


class Published(NamedTuple):
    """A row: config argument, published figure (AP or top-1/top-5) and the checkpoint's file."""

    config: str
    score: str
    file: str


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
CLASSIFIERS = (
    Published('imagenet-49', '77.0 / 93.3', 'spinenet-49-imagenet'),
    Published('imagenet-96', '78.2 / 94.0', 'spinenet-96-imagenet'),
    Published('imagenet-143', '79.0 / 94.4', 'spinenet-143-imagenet'),
    Published('imagenet-49-best', '78.1 / 94.0', 'spinenet-49-best-imagenet'),
    Published('imagenet-96-best', '79.4 / 94.6', 'spinenet-96-best-imagenet'),
    Published('imagenet-143-best', '80.1 / 95.0', 'spinenet-143-best-imagenet'),
    Published('imagenet-190-best', '80.8 / 95.3', 'spinenet-190-best-imagenet'),
)
HOW_TO_READ = """# Models

<!-- made by tools/make_model_page.py -->

How to read this page. *Published* is what the TF1 model zoo reports: COCO AP on val2017, or
ImageNet top-1 / top-5, in percent. *Ours* is what `eval.py` printed for the converted checkpoint;
*not run* means that nobody has run it, not that it fails. Parameters (trainable) and multiply-adds
(one image) are counted from our traced model with the classes of the checkpoint, 91 or 1,001 with
background. What stands between a published number and ours is in
[differences.md](differences.md); the stages that were compared number by number are the tests in
`tests/convert/`. The released 49S checkpoints may have 256 channels at their endpoints, as the
zoo's size of 11.9 M says; the conversion sees it.

Every row is one command; *file* goes into both places:

    python tools/convert_checkpoint.py --source=<file>.tar.gz --workdir=runs/<file> \\
        --config=configs/<config>
"""


def row(published: Published, module: object, name: str, folder: str) -> list[str]:
    """The cells of one model."""
    from spinenet_jax.analysis.cost import Cost, config_cost

    config = module.get_config(published.config)
    if config.task == 'classification':
        config.model.num_classes = 1001
    total = sum(config_cost(config).values(), Cost())
    link = f'[{published.file}]({BUCKET}/{folder}/{published.file}.tar.gz)'
    return [
        f'`{name}.py:{published.config}`',
        str(config.data.image_size[0]),
        f'{total.parameters / 1e6:.1f}',
        f'{total.multiply_adds / 1e9:.1f}',
        published.score,
        'not run',
        link,
    ]


def page() -> str:
    """The whole page."""
    from configs import classification, retinanet

    parts = [HOW_TO_READ]
    for title, score, rows, module, name, folder in (
        ('RetinaNet on COCO', 'AP', DETECTORS, retinanet, 'retinanet', 'retinanet'),
        (
            *('ImageNet', 'top-1 / top-5', CLASSIFIERS),
            *(classification, 'classification', 'classification'),
        ),
    ):
        head = ['config', 'input', 'parameters M', 'multiply-adds B']
        head += [f'published {score}', 'ours', 'file']
        table = [head, ['---'] * len(head), *(row(r, module, name, folder) for r in rows)]
        lines = '\n'.join(f'| {" | ".join(cells)} |' for cells in table)
        parts.append(f'## {title}\n\n{lines}\n')
    return '\n'.join(parts)


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
