"""From the variables of a TensorFlow checkpoint to our parameters and the settings they need.

What model it is follows from which variables there are and their shapes. Files are left to
`tf_checkpoint.py`, names to `tf_names.py`, writing to tools/convert_checkpoint.py.
"""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from spinenet_jax.convert.tensor_bundle import Bundle
from spinenet_jax.convert.tf_checkpoint import Variables
from spinenet_jax.convert.tf_names import Architecture, tf1_names, tf2_names
from spinenet_jax.errors import UserError
from spinenet_jax.models.graph import SCALING, filters

ANCHORS_PER_CELL = 9
# TF1 orders the shapes of anchors 1, 2, 1/2 (width / height), TF2 and we 1/2, 1, 2.
TF1_RATIOS = (2, 0, 1)
LAYOUT = {
    'tf1': {'padding': 'symmetric', 'pooling': 'single'},
    'tf2': {'padding': 'same', 'pooling': 'chain'},
}


class Recognised(NamedTuple):
    """What a checkpoint turned out to be.

    Attributes:
      architecture: what its names depend on.
      name: row of `SCALING`, or '' for a model of other sizes.
      task: 'detection', 'classification' or 'backbone'.
      settings: values for the `model` part of a config.
    """

    architecture: Architecture
    name: str
    task: str
    settings: dict[str, Any]


class Converted(NamedTuple):
    """Weights under our paths, and what did not fit.

    Attributes:
      arrays: {our path: f32 array}.
      missing: our paths, with their TensorFlow names, that the checkpoint does not have.
      unmatched: variables of the checkpoint that nothing of ours takes.
    """

    arrays: dict[str, np.ndarray]
    missing: list[str]
    unmatched: list[str]


def recognise(
    variables: Variables, shape: Callable[[str], tuple[int, ...]], where: str
) -> Recognised:
    """Tell which SpineNet a checkpoint holds.

    Args:
      variables: of the checkpoint.
      shape: gives the shape of a canonical name in `variables.keys`.
      where: how an error calls the checkpoint.

    Raises:
      UserError: it is not a SpineNet, or a mobile one.
    """
    names = variables.keys
    if any('spinenet_mbconv' in n or 'depthwise' in n for n in names):
        raise UserError(f'{where}: a mobile SpineNet, which this project does not have')
    architecture = _architecture(variables)
    if architecture is None:
        some = ', '.join(sorted(names)[:3]) or 'no variables of layers'
        raise UserError(f'{where}: not a SpineNet checkpoint (it has {some})')
    ours = tf1_names(architecture) if variables.flavour == 'tf1' else tf2_names(architecture)

    def size(path: str, axis: int = -1) -> int:
        if ours[path] not in names:
            raise UserError(f'{where}: incomplete or not a SpineNet, {ours[path]} is missing')
        return shape(ours[path])[axis]

    settings = _backbone_settings(size, architecture.block_repeats)
    sizes = (settings['width'], settings['resample_alpha'], settings['block_repeats'])
    name = next((n for n, row in SCALING.items() if row[:3] == sizes), '')
    task = 'backbone'
    if architecture.head_convs:
        task = 'detection'
        settings |= {
            'head_convs': architecture.head_convs,
            'head_channels': size('params/class_head/conv0/kernel'),
            'num_classes': size('params/class_head/predict/kernel') // ANCHORS_PER_CELL,
        }
    elif architecture.classifier:
        task = 'classification'
        settings['num_classes'] = size('params/head/kernel')
    settings |= LAYOUT[variables.flavour] | _norm_settings(variables, task)
    settings['anchor_size'] = 4.0 if variables.flavour == 'tf1' and name in ('143', '190') else 3.0
    return Recognised(architecture, name, task, settings)


def _architecture(variables: Variables) -> Architecture | None:
    """From the names alone; None where they are not a SpineNet's."""
    names = variables.keys
    if variables.flavour == 'tf1':
        block = r'spinenet/sub_policy0/scale_permuted_block_2/conv2d(_\d+)?/kernel$'
        convs = sum(bool(re.match(block, name)) for name in names)
        head = sum(bool(re.match(r'retinanet/class_net/class-\d+/kernel$', n)) for n in names)
        classifier = 'classification_head/dense/kernel' in names
        return Architecture(convs // 3, head, classifier) if convs else None
    residual = sum(bool(re.match(r'residual_block_\d+/_conv1/kernel$', name)) for name in names)
    per_repeat = Architecture().graph.kinds.count('residual')
    if not residual or residual % per_repeat or 'bottleneck_block_0/_conv1/kernel' not in names:
        return None
    head = sum(bool(re.match(r'head/_cls_convs/\d+/kernel$', name)) for name in names)
    return Architecture(residual // per_repeat, head)


def _backbone_settings(size: Callable[..., int], repeats: int) -> dict[str, Any]:
    """Width, alpha and channels from the shapes of a few kernels."""
    low = size('params/backbone/stem_block0_0/conv1/kernel')
    high = size('params/backbone/block5_0/conv1/kernel')
    widths = [row.width for row in SCALING.values()] + [high / 256, (high + 0.5) / 256, low / 64]
    width = next((w for w in widths if (filters(2, w), filters(4, w)) == (low, high)), high / 256)
    middle = size('params/backbone/resample14_0/conv_in/kernel')  # from a block of level 4
    alphas = [row.resample_alpha for row in SCALING.values()] + [middle / high]
    return {
        'width': width,
        'resample_alpha': next(a for a in alphas if int(high * a) == middle),
        'block_repeats': repeats,
        'endpoint_channels': size('params/backbone/endpoint3/kernel'),
    }


def _norm_settings(variables: Variables, task: str) -> dict[str, float]:
    """Epsilon and momentum that each implementation trained its models of a kind with."""
    regions = any(name.startswith('rpn_head') for name in variables.keys)
    if variables.flavour == 'tf1' and task == 'classification':
        return {'bn_epsilon': 1e-5, 'bn_momentum': 0.9}
    if variables.flavour == 'tf1' and not regions:
        return {'bn_epsilon': 1e-4, 'bn_momentum': 0.997}
    return {'bn_epsilon': 1e-3, 'bn_momentum': 0.99}


def convert(bundle: Bundle, variables: Variables, architecture: Architecture) -> Converted:
    """Read every variable of ours from the checkpoint."""
    tf1 = variables.flavour == 'tf1'
    names = tf1_names(architecture) if tf1 else tf2_names(architecture)
    arrays, missing = {}, []
    for path, name in names.items():
        if name not in variables.keys:
            missing.append(f'{path} ({name})')
            continue
        value = np.asarray(bundle.read(variables.keys[name]), np.float32)
        arrays[path] = _reorder(value) if tf1 and '_head/predict/' in path else value
    unmatched = sorted(variables.keys.keys() - set(names.values()))
    return Converted(arrays, missing, unmatched + sorted(variables.unknown))


def _reorder(values: np.ndarray) -> np.ndarray:
    """A predictor's output channels (scale, ratio, value) from TF1's order of ratios to ours."""
    channels = values.reshape(*values.shape[:-1], 3, 3, -1)
    return channels[..., TF1_RATIOS, :].reshape(values.shape)
