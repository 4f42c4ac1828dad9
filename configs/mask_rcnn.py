"""Instance segmentation on COCO from scratch: configs/mask_rcnn.py:<model>-<variant>

    python train.py --config=configs/mask_rcnn.py:49-B --workdir=gs://... \
        --config.data.root=/data/coco
    python train.py --config=configs/mask_rcnn.py:49-cascade --workdir=... --config.data.root=...

Variants: B, and C for 190 (protocols of configs/retinanet.py), train Mask R-CNN; `cascade` is
protocol B (190: C) with three box heads one after the other at IoU 0.5, 0.6 and 0.7, whose boxes
all classes share (Cascade R-CNN).

Hardware assumed: the paper's Cloud TPU v3 (batch 256; the paper does not say how many cores). The
learning rate follows --config.train.batch_size. An epoch is 463 steps.

Published box and mask AP on val2017 (TF1 model zoo; 49S: its configuration file) and ours:

    model  input  epochs  box AP  mask AP  cascade   ours
    49S     640   350     39.3    34.8     -         not run
    49      640   350     42.8    37.8     -         not run
    96     1024   350     46.8    41.2     -         not run
    143    1280   350     48.7    42.6     -         not run
    190    1536   400     52.0*   45.9     -         not run
    r50     640   350     -       -        -         not run
    r101   1024   350     -       -        -         not run
    r152   1280   350     -       -        -         not run

* the paper has 52.5. The Model Garden's README has 42.3 and 37.6 for r50 (levels 2 to 6) and, for
a cascade of its own settings (500 epochs, swish), 46.4 and 40.0 for 49, 50.9 and 43.8 for 96, 51.9
and 45.0 for 143.

Protocols: SGD 0.9, weight decay 4e-5, 0.28 for 256 images, 5 epochs of warm-up, x0.1 and x0.01 for
the last 30 and 10 epochs, batch norm 0.99, synchronised in every head.

    B  350 epochs, scale 0.5 to 2.0, relu
    C  400 epochs, scale 0.1 to 2.0, swish, stochastic depth 0.2, anchors of 5 cells (190 only)

Where the paper is silent, sizes are those of the public TF1 configurations: anchors of 3 cells in
three shapes and one scale, 1,000 proposals, 512 regions an image to learn from, heads of four
convolutions and one hidden layer (49S: half as wide; 190: seven convolutions, 384 wide, also in its
region proposal network). The zoo's 168.2 M parameters for 190 are those of a region proposal
network with one convolution instead of seven: --config.model.rpn_convs=1. ResNet-FPN has the levels
(3 to 7) and the anchors of SpineNet, so that only the backbone differs; in the public codes it has
levels 2 to 6 and anchors of 8 cells.

The public files warm up for 2000 steps: --config.optim.warmup_epochs=4.319654
"""

from typing import NamedTuple

from ml_collections import ConfigDict

from configs import common
from spinenet_jax.errors import UserError
from spinenet_jax.models.graph import SCALING


class Variant(NamedTuple):
    """A model of the table above: row of SCALING, input side in pixels, sizes of its heads."""

    scaling: str
    image_side: int
    head_channels: int = 256
    head_convs: int = 4
    hidden_channels: int = 1024
    rpn_convs: int = 1
    anchor_size: float = 3.0
    resnet_depth: int = 0


MODELS = {
    '49S': Variant('49S', 640, head_channels=128, hidden_channels=512),
    '49': Variant('49', 640),
    '96': Variant('96', 1024),
    '143': Variant('143', 1280),
    '190': Variant('190', 1536, head_channels=384, head_convs=7, rpn_convs=7, anchor_size=5.0),
    'r50': Variant('49', 640, resnet_depth=50),
    'r101': Variant('49', 1024, resnet_depth=101),
    'r152': Variant('49', 1280, resnet_depth=152),
}
ARGUMENTS = tuple(
    f'{model}-{variant}'
    for model in MODELS
    for variant in ('C' if model == '190' else 'B', 'cascade')
)


def get_config(argument: str = '49-B') -> ConfigDict:
    """The config of '<model>-<variant>'; UserError lists what there is."""
    if argument not in ARGUMENTS:
        raise UserError(
            f'configs/mask_rcnn.py:{argument}: the argument is one of {", ".join(ARGUMENTS)}'
        )
    model, _, variant = argument.rpartition('-')
    config = common.get_config()
    config.task = 'instance_segmentation'
    _set_model(config, MODELS[model])
    config.model.cascade = variant == 'cascade'
    if model == '190':
        config.train.epochs = 400
        config.data.scale_min = 0.1
        config.model.activation = 'swish'
        config.model.stochastic_depth = 0.2
    config.optim.decay_epochs = (config.train.epochs - 30, config.train.epochs - 10)
    return config


def _set_model(config: ConfigDict, variant: Variant) -> None:
    common.set_scaling(config, SCALING[variant.scaling])
    config.model.head_channels = variant.head_channels
    config.model.head_convs = variant.head_convs
    config.model.hidden_channels = variant.hidden_channels
    config.model.rpn_convs = variant.rpn_convs
    config.model.anchor_size = variant.anchor_size
    if variant.resnet_depth:
        config.model.backbone = 'resnet_fpn'
        config.model.depth = variant.resnet_depth
    config.data.image_size = (variant.image_side, variant.image_side)
