"""RetinaNet on COCO from scratch: configs/retinanet.py:<model>-<protocol>

    python train.py --config=configs/retinanet.py:49-B --workdir=runs/49-B \
        --config.data.root=/data/coco

Hardware assumed: the paper's Cloud TPU v3 (batch 256; the paper does not say how many cores). The
learning rate follows --config.train.batch_size. SpineNet-49 takes 162,050 steps with protocol B.

Published AP on val2017 (paper, RetinaNet results; * from the TF1 model zoo) and ours:

    model    input   A      B      C      ours
    49S       640    -      39.5   41.5   not run
    49        640    40.8   42.8   44.3   not run
    49_896    896    -      45.3   46.7   not run
    96       1024    -      46.7   48.5   not run
    143      1280    -      48.0   50.6   not run
    190      1280    -      -      52.0   not run
    R0-SP53   640    40.7   -      -      not run
    r50       640    37.8   40.4*  -      not run
    r101     1024    -      43.9*  -      not run
    r152     1280    -      45.2*  -      not run

    model    input   M      ours
    mb49      384    28.6   not run
    mb49S     384    -      not run
    mb49XS    256    -      not run

Protocols (paper, "Training protocols"; all: SGD 0.9, weight decay 4e-5, 0.28 for 256 images, 5
epochs of warm-up, x0.1 and x0.01 for the last 30 and 10 epochs, batch norm 0.99):

    A  250 epochs, scale 0.8 to 1.2, relu, DropBlock (mobile models: without)
    B  350 epochs, scale 0.5 to 2.0, relu
    C  500 epochs (190: 400), scale 0.5 to 2.0, swish, stochastic depth 0.2 (143: 0.16)
    M  600 epochs, scale 0.5 to 2.0, swish, weight decay 3e-5; the mobile models' (appendix)

Where the paper is silent:
  - DropBlock has no number in the paper, and in the public code it does nothing for SpineNet; 0.9
    and 7 are the values of the DropBlock paper on ImageNet.
    Off: --config.model.dropblock_keep_prob=1
  - the warm-up starts from 0.0067, as in both public codes; batch norm's epsilon is 1e-3, TF2's;
    anchors of ResNet-FPN are 4 cells, as in the public configs. (The paper: 3, 143 and 190: 4.)
  - gradient clipping is off. The TF1 configs of protocol C clip at norm 10, but on each core,
    before the sum over cores and after division by their number, where it hardly ever acts.
    On, for the summed gradient: --config.optim.clip_norm=10
  - R101-FPN and R152-FPN have the input sizes of the model zoo.

The public TF1 yaml files deviate from the paper; these flags follow the files:
  - warm-up of 2000 steps:  --config.optim.warmup_epochs=4.319654 (M: 500 steps, 1.079914)
  - 143-C, 190-C:           --config.data.scale_min=0.1 --config.data.scale_max=1.9
  - 190-C:                  --config.optim.learning_rate=0.3
  - batch norm, RetinaNet:  --config.model.bn_momentum=0.997 --config.model.bn_epsilon=1e-4
"""

from typing import NamedTuple

from ml_collections import ConfigDict

from configs import common
from spinenet_jax.errors import UserError
from spinenet_jax.models.graph import MOBILE_SCALING, SCALING


class Variant(NamedTuple):
    """A model of the table above: row of SCALING, input side in pixels, anchor size in cells."""

    scaling: str
    image_side: int
    anchor_size: float
    graph: str = 'spinenet49'
    resnet_depth: int = 0


MODELS = {
    '49S': Variant('49S', 640, 3.0),
    '49': Variant('49', 640, 3.0),
    '49_896': Variant('49', 896, 3.0),
    '96': Variant('96', 1024, 3.0),
    '143': Variant('143', 1280, 4.0),
    '190': Variant('190', 1280, 4.0),
    'R0-SP53': Variant('49', 640, 3.0, graph='r0_sp53'),
    'mb49': Variant('49', 384, 3.0, graph='mobile49'),
    'mb49S': Variant('49S', 384, 3.0, graph='mobile49'),
    'mb49XS': Variant('49XS', 256, 3.0, graph='mobile49'),
    'r50': Variant('49', 640, 4.0, resnet_depth=50),
    'r101': Variant('49', 1024, 4.0, resnet_depth=101),
    'r152': Variant('49', 1280, 4.0, resnet_depth=152),
}
PROTOCOLS = ('A', 'B', 'C', 'M')


def get_config(argument: str = '49-B') -> ConfigDict:
    """The config of '<model>-<protocol>'; UserError lists what there is."""
    model, _, protocol = argument.rpartition('-')
    if model not in MODELS or protocol not in PROTOCOLS:
        raise UserError(
            f'configs/retinanet.py:{argument}: the argument is <model>-<protocol>, with model one '
            f'of {", ".join(MODELS)} and protocol one of {", ".join(PROTOCOLS)}'
        )
    config = common.get_config()
    _set_model(config, MODELS[model])
    _set_protocol(config, protocol, model)
    return config


def _set_model(config: ConfigDict, variant: Variant) -> None:
    is_mobile = variant.graph == 'mobile49'
    scaling = (MOBILE_SCALING if is_mobile else SCALING)[variant.scaling]
    config.model.separable_heads = is_mobile
    common.set_scaling(config, scaling)
    config.model.head_channels = scaling.head_channels
    config.model.head_convs = scaling.head_convs
    config.model.graph = variant.graph
    if variant.resnet_depth:
        config.model.backbone = 'resnet_fpn'
        config.model.depth = variant.resnet_depth
    config.model.anchor_size = variant.anchor_size
    config.data.image_size = (variant.image_side, variant.image_side)


def _set_protocol(config: ConfigDict, protocol: str, model: str) -> None:
    if protocol == 'A':
        config.train.epochs = 250
        config.data.scale_min, config.data.scale_max = 0.8, 1.2
        if MODELS[model].graph != 'mobile49':  # whose blocks have none
            config.model.dropblock_keep_prob = 0.9
    elif protocol == 'C':
        config.train.epochs = 400 if model == '190' else 500
        config.model.activation = 'swish'
        config.model.stochastic_depth = 0.16 if model == '143' else 0.2
    elif protocol == 'M':
        config.train.epochs = 600
        config.model.activation = 'swish'
        config.optim.weight_decay = 3e-5
    config.optim.decay_epochs = (config.train.epochs - 30, config.train.epochs - 10)
