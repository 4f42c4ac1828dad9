"""Builds models from a config's `model` part, which no other file of `models` reads."""

import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from spinenet_jax.errors import UserError
from spinenet_jax.lowering.policy import PLAIN, Policy
from spinenet_jax.models import graph as graphs
from spinenet_jax.models.classifier import Classifier, TopMap
from spinenet_jax.models.fpn import ResNetFPN
from spinenet_jax.models.layers import Layers
from spinenet_jax.models.mask_rcnn import MaskRCNN
from spinenet_jax.models.resnet import ResNet
from spinenet_jax.models.resnet_sizes import DEPTHS
from spinenet_jax.models.retinanet import RetinaNet
from spinenet_jax.models.spinenet import SpineNet
from spinenet_jax.ops.anchors import ANCHORS_PER_CELL, RATIOS
from spinenet_jax.ops.region_outputs import CASCADE_WEIGHTS

DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}


def _choose(table: dict, key: object, what: str) -> object:
    """`table[key]`, or one line that lists what there is."""
    if key not in table:
        raise UserError(f'model.{what}={key!r}: choose one of {", ".join(map(str, table))}')
    return table[key]


def build_layers(config: ConfigDict, *, axis_name: str | None, policy: Policy = PLAIN) -> Layers:
    """The convolutions and norms that `config` (a config's `model` part) asks for."""
    layers = Layers(
        activation=config.activation,
        dtype=_choose(DTYPES, config.dtype, 'dtype'),
        axis_name=axis_name,
        padding=config.padding,
        momentum=config.bn_momentum,
        epsilon=config.bn_epsilon,
        squeeze_gate=config.squeeze_gate,
        policy=policy,
    )
    layers.check()
    return layers


def build_backbone(
    config: ConfigDict, layers: Layers, task: str = 'detection', remat: bool = False
) -> nn.Module:
    """The backbone alone: f[B,H,W,3] to {level: map [B,h,w,endpoint_channels]}.

    For 'classification', a ResNet gives its last map instead of a feature pyramid.

    Raises:
      UserError: an unknown backbone, graph, depth or pooling, or a graph that cannot be built.
    """
    levels = (config.min_level, config.max_level)
    dropout = {
        'stochastic_depth': config.stochastic_depth,
        'dropblock_keep_prob': config.dropblock_keep_prob,
        'dropblock_size': config.dropblock_size,
        'remat': remat,
    }
    if config.backbone == 'resnet_fpn':
        _choose(DEPTHS, config.depth, 'depth')
        resnet = ResNet(config.depth, layers, width=config.width, **dropout)
        if task == 'classification':
            return TopMap(resnet)
        return ResNetFPN(resnet, layers, channels=config.endpoint_channels, levels=levels)
    _choose({'spinenet': None, 'resnet_fpn': None}, config.backbone, 'backbone')
    _choose({'chain': None, 'single': None}, config.pooling, 'pooling')
    graph = graphs.load(config.graph)
    graphs.validate(graph, *levels)
    if graph.is_mobile:
        _check_mobile(config)
    return SpineNet(
        graph,
        layers,
        width=config.width,
        resample_alpha=config.resample_alpha,
        block_repeats=config.block_repeats,
        endpoint_channels=config.endpoint_channels,
        levels=levels,
        pooling=config.pooling,
        **dropout,
    )


def _check_mobile(config: ConfigDict) -> None:
    """UserError where a mobile graph cannot be as narrow, or has not what is asked for."""
    narrowest = min(graphs.MOBILE_FILTERS.values())
    if int(narrowest * config.width) < 1:
        raise UserError(
            f'model.width={config.width:g}: must be at least 1/{narrowest} for a mobile graph'
        )
    if config.dropblock_keep_prob < 1:
        raise UserError(
            f'model.dropblock_keep_prob={config.dropblock_keep_prob:g}: must be 1 for a mobile '
            'graph, whose blocks have no DropBlock'
        )


def build_model(
    config: ConfigDict,
    *,
    task: str,
    axis_name: str | None,
    policy: Policy = PLAIN,
    remat: bool = False,
) -> nn.Module:
    """The detector or classifier of `config`, a config's `model` part.

    Args:
      config: see `configs/common.py`.
      task: 'detection', 'instance_segmentation' or 'classification'.
      axis_name: replica axis of batch norm's statistics in training; None outside `pmap`.
      policy: how to compute what the model says, `policy_of` the device it will run on. The default
        leaves all to XLA: for analysis and export, and right, if slower, everywhere.
      remat: recompute blocks in the backward pass: less memory, more time.

    Raises:
      UserError: one line that names the key, its value and what may stand there.
    """
    layers = build_layers(config, axis_name=axis_name, policy=policy)
    backbone = build_backbone(config, layers, task, remat)
    if task == 'classification':
        return Classifier(backbone, config.num_classes)
    if task == 'instance_segmentation':
        if config.separable_heads:
            raise UserError(
                "model.separable_heads=True: must be False for masks, whose heads are Mask R-CNN's"
            )
        return MaskRCNN(
            backbone,
            layers,
            num_classes=config.num_classes,
            anchors_per_cell=len(RATIOS),
            head_channels=config.head_channels,
            head_convs=config.head_convs,
            hidden=config.hidden_channels,
            proposal_convs=config.rpn_convs,
            stages=len(CASCADE_WEIGHTS) if config.cascade else 1,
        )
    return RetinaNet(
        backbone,
        layers,
        num_classes=config.num_classes,
        anchors_per_cell=ANCHORS_PER_CELL,
        head_channels=config.head_channels,
        head_convs=config.head_convs,
        separable_heads=config.separable_heads,
    )
