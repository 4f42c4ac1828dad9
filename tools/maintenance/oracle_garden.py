"""Builds the Model Garden's RetinaNet at any width, with its variables under our names.

Imports TensorFlow and `official.vision`: runs in the environment that `make_oracle_env.sh` builds.
"""

import importlib.util
import os
import sys

if importlib.util.find_spec('tensorflow') is None:
    sys.exit(
        'error: no TensorFlow here: '
        'run with the python that tools/maintenance/make_oracle_env.sh builds'
    )
os.environ.setdefault('TF_USE_LEGACY_KERAS', '1')
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')

from collections.abc import Callable, Iterator
from unittest import mock

import numpy as np
import oracle_cases as cases
import tensorflow as tf
import tf_keras
from official.vision.configs import common, decoders
from official.vision.configs import retinanet as garden_config
from official.vision.modeling import factory
from official.vision.modeling.backbones import resnet, spinenet, spinenet_mobile
from official.vision.tasks import retinanet as garden_task

from spinenet_jax.convert import tf_names
from spinenet_jax.models.graph import GRAPHS

LEVELS = range(3, 8)
BETA_BLOCKS = 15  # block specs of the Garden's beta: all but P2


def build(
    model: dict, size: tuple[int, int], weight_decay: float = 0.0, beta: bool = False
) -> tuple:
    """(Garden task, Keras model) of `model` (see `oracle_cases.NARROW`) for images of `size`.

    Norms are the synchronised ones, as in the Garden's own SpineNet experiments. With `beta`,
    blocks and classes of norms are those of the Garden's beta, which the checkpoints that its
    README offers were trained with.
    """
    if beta:
        with mock.patch.object(tf_keras.layers, 'BatchNormalization', _beta_norm):
            return _build(model, size, weight_decay, spinenet.SPINENET_BLOCK_SPECS[:BETA_BLOCKS])
    return _build(model, size, weight_decay, spinenet.SPINENET_BLOCK_SPECS)


def _beta_norm(synchronized: bool = False, **options: object) -> tf_keras.layers.Layer:
    """What the beta built where the Garden now builds a BatchNormalization."""
    if not synchronized:
        raise ValueError('the beta is imitated for synchronised norms only')
    return tf_keras.layers.experimental.SyncBatchNormalization(**options)


def _build(model: dict, size: tuple[int, int], weight_decay: float, blocks: list) -> tuple:
    """`build` from block specs."""
    experiment = garden_config.retinanet_spinenet_coco()
    config = experiment.task
    config.model.input_size = [*size, 3]
    config.model.num_classes = model['num_classes']
    config.model.anchor.anchor_size = model['anchor_size']
    config.model.head.num_convs = model['head_convs']
    config.model.head.num_filters = model['head_channels']
    config.model.head.use_separable_conv = model.get('separable_heads', False)
    config.model.norm_activation.activation = model['activation']
    config.losses.l2_weight_decay = weight_decay
    regularizer = tf_keras.regularizers.l2(weight_decay / 2.0) if weight_decay else None
    specs = tf_keras.layers.InputSpec(shape=[None, *size, 3])
    norm = config.model.norm_activation
    if model.get('backbone') == 'resnet_fpn':
        backbone = _resnet(model, specs, regularizer, norm)
        pyramid = decoders.FPN(num_filters=model['endpoint_channels'])
        config.model.decoder = decoders.Decoder(type='fpn', fpn=pyramid)
    elif model.get('graph') == 'mobile49':
        backbone = _mobile_backbone(model, specs, regularizer, norm)
    else:
        backbone = build_backbone(model, specs, blocks, regularizer, norm)
    network = factory.build_retinanet(specs, config.model, regularizer, backbone=backbone)
    network(tf.zeros([1, *size, 3]), training=True)  # the head has no variables before
    return garden_task.RetinaNetTask(config), network


def _shared(
    model: dict,
    regularizer: tf_keras.regularizers.Regularizer | None,
    norm: common.NormActivation,
) -> dict[str, object]:
    """What every backbone of the Garden's is told of its layers."""
    return {
        'kernel_regularizer': regularizer,
        'activation': model['activation'],
        'use_sync_bn': norm.use_sync_bn,
        'norm_momentum': norm.norm_momentum,
        'norm_epsilon': norm.norm_epsilon,
    }


def build_backbone(
    model: dict,
    specs: tf_keras.layers.InputSpec,
    blocks: list,
    regularizer: tf_keras.regularizers.Regularizer | None,
    norm: common.NormActivation,
) -> tf_keras.Model:
    """The SpineNet of `model` from block specs."""
    return spinenet.SpineNet(
        input_specs=specs,
        block_specs=spinenet.build_block_specs(blocks),
        endpoints_num_filters=model['endpoint_channels'],
        resample_alpha=model['resample_alpha'],
        block_repeats=model['block_repeats'],
        filter_size_scale=model['width'],
        **_shared(model, regularizer, norm),
    )


def _mobile_backbone(
    model: dict,
    specs: tf_keras.layers.InputSpec,
    regularizer: tf_keras.regularizers.Regularizer | None,
    norm: common.NormActivation,
) -> tf_keras.Model:
    """SpineNet-Mobile of the Garden's own block specs."""
    return spinenet_mobile.SpineNetMobile(
        input_specs=specs,
        # The constructor writes into the specs, so each model needs its own.
        block_specs=spinenet_mobile.build_block_specs(),
        endpoints_num_filters=model['endpoint_channels'],
        block_repeats=model['block_repeats'],
        filter_size_scale=model['width'],
        **_shared(model, regularizer, norm),
    )


def _resnet(
    model: dict,
    specs: tf_keras.layers.InputSpec,
    regularizer: tf_keras.regularizers.Regularizer | None,
    norm: common.NormActivation,
) -> tf_keras.Model:
    """A ResNet whose stem keeps its 64 channels at any width, as ours."""
    return resnet.ResNet(
        model['depth'],
        input_specs=specs,
        depth_multiplier=model['width'],
        scale_stem=False,
        **_shared(model, regularizer, norm),
    )


def variables(network: tf_keras.Model, model: dict, beta: bool = False) -> dict[str, tf.Variable]:
    """{our path: variable} of every variable of the model."""
    architecture = tf_names.Architecture(
        model['block_repeats'],
        model['head_convs'],
        graph=GRAPHS[model.get('graph', 'spinenet49')],
        counts_p2=not beta,
        resnet_depth=model['depth'] if model.get('backbone') == 'resnet_fpn' else 0,
        separable_heads=model.get('separable_heads', False),
    )
    return named_variables(network, list(_keyed(network)), architecture)


def named_variables(
    network: tf_keras.Model,
    found: list[tuple[str, tf.Variable]],
    architecture: tf_names.Architecture,
) -> dict[str, tf.Variable]:
    """{our path: variable} of variables with their keys; an error if the model has more."""
    ours = {name: path for path, name in tf_names.tf2_names(architecture).items()}
    names = tf_names.tf2_canonical((key, v.name.removesuffix(':0')) for key, v in found)
    result = {ours[name]: variable for name, (_, variable) in zip(names, found, strict=True)}
    if len(result) != len(network.variables):
        raise ValueError(f'{len(result)} variables of {len(network.variables)} have a name')
    return result


def _keyed(network: tf_keras.Model) -> Iterator[tuple[str, tf.Variable]]:
    """Each variable with a key like that of its checkpoint."""
    yield from backbone_keyed(network)
    head = network.head
    for kind in ('cls', 'box'):
        for j, conv in enumerate(getattr(head, f'_{kind}_convs')):
            yield from leaves(f'head/_{kind}_convs/{j}', conv)
        for place, norms in enumerate(getattr(head, f'_{kind}_norms')):
            for j, norm in enumerate(norms):
                yield from leaves(f'head/_{kind}_norms/{place}/{j}', norm)
    yield from leaves('head/_classifier', head._classifier)
    yield from leaves('head/_box_regressor', head._box_regressor)


def leaves(key: str, layer: tf_keras.layers.Layer) -> Iterator[tuple[str, tf.Variable]]:
    """The variables of a layer, each with its key."""
    for variable in layer.variables:
        yield f'{key}/{variable.name.removesuffix(":0").rsplit("/", 1)[1]}', variable


def backbone_keyed(network: tf_keras.Model) -> Iterator[tuple[str, tf.Variable]]:
    """Each variable of the backbone, and of a pyramid on it, with a key like its checkpoint's."""
    pyramid = network.decoder.layers if network.decoder else []
    for layer in [*network.backbone.layers, *pyramid]:
        attributes = ('_shortcut', '_conv0', '_conv1', '_conv2', '_conv3')
        attributes += ('_norm0', '_norm1', '_norm2', '_norm3')
        parts = {name: getattr(layer, name) for name in attributes if hasattr(layer, name)}
        if squeeze := getattr(layer, '_squeeze_excitation', None):
            parts['_squeeze_excitation/_se_reduce'] = squeeze._se_reduce
            parts['_squeeze_excitation/_se_expand'] = squeeze._se_expand
        for name, part in parts.items():
            yield from leaves(f'layer_with_weights-0/{name}', part)
        if not parts:
            yield from leaves('layer_with_weights-0', layer)


def assign_random(
    network: tf_keras.Model,
    model: dict,
    draw: Callable[..., np.ndarray] = cases.weight,
    beta: bool = False,
) -> dict[str, tf.Variable]:
    """Give every variable what `draw` (path, shape) gives; returns `variables`."""
    named = variables(network, model, beta)
    for path, variable in named.items():
        shape = in_their_order(path, np.empty(variable.shape)).shape  # its own inverse
        variable.assign(in_their_order(path, draw(path, shape)))
    return named


def in_their_order(path: str, value: np.ndarray) -> np.ndarray:
    """An array of ours with TensorFlow's order of axes, or the other way round."""
    return value.swapaxes(2, 3) if tf_names.SWAPPED.search(path) else value


def forward(network: tf_keras.Model, images: np.ndarray) -> dict[str, np.ndarray]:
    """{'feature3', 'logits3', 'codes3', ...} at inference for normalised f32[B,H,W,3] images."""
    features = network.backbone(images, training=False)
    if network.decoder:
        features = network.decoder(features, training=False)
    logits, codes, _ = network.head(features, training=False)
    result = {}
    for level in LEVELS:
        result[f'feature{level}'] = features[str(level)].numpy()
        result[f'logits{level}'] = logits[str(level)].numpy()
        result[f'codes{level}'] = codes[str(level)].numpy()
    return result
