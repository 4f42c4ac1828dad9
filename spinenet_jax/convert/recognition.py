"""Recognises the model in a TensorFlow checkpoint by which variables it has, and their shapes.

Names are those of `tf_names.py`; `weights.py` reads the values.
"""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from spinenet_jax.convert.tf_checkpoint import Variables
from spinenet_jax.convert.tf_names import Architecture, RegionHeads, names_in, tf2_names
from spinenet_jax.errors import UserError
from spinenet_jax.models.graph import (
    BASE_FILTERS,
    GRAPHS,
    MOBILE_FILTERS,
    MOBILE_SCALING,
    SCALING,
    filters,
)
from spinenet_jax.models.resnet_sizes import DEPTHS, STAGE_FILTERS
from spinenet_jax.ops.anchors import ANCHORS_PER_CELL, RATIOS
from spinenet_jax.ops.region_outputs import CASCADE_WEIGHTS

MOBILE_GRAPH = GRAPHS['mobile49']
LAYOUT = {
    'tf1': {'padding': 'symmetric', 'pooling': 'single'},
    'tf2': {'padding': 'same', 'pooling': 'chain'},
}
MOBILE_LAYOUT = {  # without pools, but with squeeze-and-excite
    'tf1': {'padding': 'symmetric', 'squeeze_gate': 'sigmoid'},
    'tf2': {'padding': 'same', 'squeeze_gate': 'hard_sigmoid'},
}

Shape = Callable[[str], tuple[int, ...]]
Setting = str | float | int | bool


class Signs(NamedTuple):
    """Patterns of variable names that tell an architecture.

    Attributes:
      repeats: matches `repeats_of` variables for each copy of a block.
      head_convs: matches one variable for each convolution of a RetinaNet tower.
      classifier: matches where there is an image classifier.
      proposal_convs, region_convs: match one variable for each convolution of Mask R-CNN's region
        proposal network, and of its first box head.
      stages: matches one variable for each box head.
    """

    repeats: str
    repeats_of: int
    head_convs: str
    classifier: str
    proposal_convs: str
    region_convs: str
    stages: str


RESIDUAL_BLOCKS = Architecture().graph.kinds.count('residual')
SIGNS = {
    'tf1': Signs(
        repeats=r'spinenet/sub_policy0/scale_permuted_block_2/conv2d(_\d+)?/kernel$',
        repeats_of=3,
        head_convs=r'retinanet/class_net/class-\d+/(pointwise_)?kernel$',
        classifier=r'classification_head/dense/kernel$',
        proposal_convs=r'rpn_head/rpn(-\d+)?/kernel$',
        region_convs=r'(frcnn_layer_0/)?fast_rcnn_head/conv_\d+/kernel$',
        stages=r'(frcnn_layer_\d+/)?fast_rcnn_head/fc6/kernel$',
    ),
    'tf2': Signs(
        repeats=r'residual_block(_\d+)?/_conv1/kernel$',
        repeats_of=RESIDUAL_BLOCKS,
        head_convs=r'head/_cls_convs/\d+/(pointwise_)?kernel$',
        classifier=r'(?!)',  # the Garden cannot build SpineNet classifiers
        proposal_convs=r'rpn_head/_convs/\d+/kernel$',
        region_convs=r'detection_head/0/_convs/\d+/kernel$',
        stages=r'detection_head/\d+/_fcs/0/kernel$',
    ),
}


MOBILE_SIGNS = {
    'tf1': SIGNS['tf1']._replace(
        repeats=r'spinenet_mbconv/sub_policy0/scale_permuted_block_2/depthwise_conv2d(_\d+)?/',
        repeats_of=1,
    ),
    'tf2': SIGNS['tf2']._replace(
        repeats=r'inverted_bottleneck_block(_\d+)?/_conv1/depthwise_kernel$',
        repeats_of=len(MOBILE_GRAPH.levels),
    ),
}


class Recognised(NamedTuple):
    """What a checkpoint turned out to be.

    Attributes:
      flavour: 'tf1' or 'tf2'.
      architecture: what its names depend on.
      name: row of `SCALING`, or of `MOBILE_SCALING`, or 'r50' and the like for a ResNet; '' for a
        model of other sizes.
      task: 'detection', 'instance_segmentation', 'classification' or 'backbone'.
      settings: values for the `model` part of a config.
    """

    flavour: str
    architecture: Architecture
    name: str
    task: str
    settings: dict[str, Setting]


def recognise(variables: Variables, shape: Shape, where: str) -> Recognised:
    """Tell which SpineNet, or ResNet-FPN, a checkpoint holds.

    Args:
      variables: of the checkpoint.
      shape: gives the shape of a canonical name in `variables.keys`.
      where: how an error calls the checkpoint.

    Raises:
      UserError: it is not a SpineNet, or one that cannot be built here.
    """
    names = variables.keys
    architecture = _architecture(variables)
    if architecture is None:
        some = ', '.join(sorted(names)[:3]) or 'no variables of layers'
        raise UserError(f'{where}: not a SpineNet checkpoint (it has {some})')
    is_mobile = architecture.graph.is_mobile
    if is_mobile and architecture.block_repeats > 1:
        raise UserError(
            f'{where}: a mobile SpineNet of {architecture.block_repeats} copies a block; those '
            'published have one, and the Model Garden wires more than one in another way than TF1'
        )
    ours = names_in(variables.flavour, architecture)

    def channels(path: str) -> int:
        """Size of the last axis of a variable of ours."""
        if ours[path] not in names:
            raise UserError(f'{where}: incomplete or not a SpineNet, {ours[path]} is missing')
        axes = shape(ours[path])
        if not axes:
            raise UserError(f'{where}: not a SpineNet, {ours[path]} has no channels')
        return axes[-1]

    def present(path: str) -> bool:
        return ours.get(path) in names

    if architecture.resnet_depth:
        settings = _resnet_settings(channels, architecture, where)
        name = f'r{settings["depth"]}' if settings['width'] == 1.0 else ''
    else:
        backbone_settings = _mobile_backbone_settings if is_mobile else _backbone_settings
        settings = backbone_settings(channels, present, architecture, where)
        sizes = (settings['width'], settings['resample_alpha'], settings['block_repeats'])
        known = MOBILE_SCALING if is_mobile else SCALING
        name = next((n for n, row in known.items() if row[:3] == sizes), '')
    task = 'backbone'
    if architecture.head_convs:
        task = 'detection'
        settings |= _retinanet_settings(channels, architecture, where)
    elif architecture.regions:
        task = 'instance_segmentation'
        settings |= _mask_rcnn_settings(channels, architecture.regions, where)
    elif architecture.classifier:
        task = 'classification'
        settings['num_classes'] = channels('params/head/kernel')
    layout = MOBILE_LAYOUT if is_mobile else LAYOUT
    settings |= layout[variables.flavour] | _norm_settings(variables, task)
    return Recognised(variables.flavour, architecture, name, task, settings)


def _architecture(variables: Variables) -> Architecture | None:
    """From the names alone; None where they are not a SpineNet's."""
    is_mobile = any('spinenet_mbconv' in n or 'inverted_bottleneck' in n for n in variables.keys)
    if depth := _resnet_depth(variables):
        return _resnet_architecture(variables, depth)
    signs = (MOBILE_SIGNS if is_mobile else SIGNS)[variables.flavour]

    def count(pattern: str) -> int:
        return sum(bool(re.match(pattern, name)) for name in variables.keys)

    blocks = count(signs.repeats)
    if not blocks or blocks % signs.repeats_of:
        return None
    architecture = Architecture(
        block_repeats=blocks // signs.repeats_of,
        head_convs=count(signs.head_convs),
        classifier=bool(count(signs.classifier)),
    )
    if is_mobile:
        architecture = architecture._replace(graph=MOBILE_GRAPH)
    if count(r'(retinanet/class_net|head/_cls_convs)/.*depthwise_kernel$'):
        architecture = architecture._replace(separable_heads=True)
    if stages := count(signs.stages):
        heads = RegionHeads(count(signs.proposal_convs), count(signs.region_convs), stages)
        architecture = architecture._replace(regions=heads)
    if variables.flavour == 'tf1':
        return architecture
    # With and without numbers for P2: the one that leaves no gap, or the smaller one.
    candidates = (architecture, architecture._replace(counts_p2=False))
    return min(candidates, key=lambda a: len(set(tf2_names(a).values()) - variables.keys.keys()))


def _resnet_depth(variables: Variables) -> int:
    """Of a ResNet-50, -101 or -152; 0 where there is none."""
    first = r'resnet(\d+)/conv2d/kernel$' if variables.flavour == 'tf1' else r'(?!)'
    for name in variables.keys:
        if match := re.match(first, name):
            return int(match[1]) if int(match[1]) in DEPTHS else 0
    blocks = {n.split('/')[0] for n in variables.keys if n.startswith('bottleneck_block')}
    if any(n.startswith('residual_block') for n in variables.keys):
        return 0
    return next((depth for depth, counts in DEPTHS.items() if sum(counts) == len(blocks)), 0)


def _resnet_architecture(variables: Variables, depth: int) -> Architecture:
    """A RetinaNet on ResNet-FPN."""
    convs = sum(bool(re.match(SIGNS[variables.flavour].head_convs, n)) for n in variables.keys)
    architecture = Architecture(head_convs=convs, resnet_depth=depth)
    if variables.flavour == 'tf1':
        return architecture
    named = any(name.startswith('lateral_') for name in variables.keys)
    return architecture._replace(named_fpn=named)


def _resnet_settings(
    channels: Callable[[str], int], architecture: Architecture, where: str
) -> dict[str, Setting]:
    """Sizes of a ResNet-FPN, which converts with the heads of RetinaNet only."""
    if not architecture.head_convs:
        raise UserError(
            f'{where}: a ResNet without the heads of RetinaNet, whose conversion this project does '
            'not have'
        )
    return {
        'backbone': 'resnet_fpn',
        'depth': architecture.resnet_depth,
        'width': channels('params/backbone/resnet/stage2_0/conv1/kernel') / STAGE_FILTERS[0],
        'endpoint_channels': channels('params/backbone/lateral3/kernel'),
    }


def _backbone_settings(
    channels: Callable[[str], int],
    present: Callable[[str], bool],
    architecture: Architecture,
    where: str,
) -> dict[str, Setting]:
    """Width, alpha and channels from the shapes of kernels."""
    graph, widths, alphas = architecture.graph, [], []
    for index, block in enumerate(graph.blocks, len(graph.stem)):
        path = f'params/backbone/block{index}_0/conv1/kernel'
        if present(path):
            widths.append((BASE_FILTERS[block.level], channels(path)))
    width = _width(widths, [row.width for row in SCALING.values()], where)
    for index, block in enumerate(graph.blocks, len(graph.stem)):
        for position, parent in enumerate(block.parents):
            path = f'params/backbone/resample{index}_{position}/conv_in/kernel'
            if present(path):
                alphas.append((filters(graph.levels[parent], width), channels(path)))
    alpha = _factor(alphas, [row.resample_alpha for row in SCALING.values()])
    if alpha is None:
        raise UserError(
            f'{where}: incomplete or not a SpineNet, the channels of its resamplings are not one '
            f"share of their parents' (parent, found: {sorted(set(alphas))})"
        )
    return {
        'width': width,
        'resample_alpha': alpha,
        'block_repeats': architecture.block_repeats,
        'endpoint_channels': channels('params/backbone/endpoint3/kernel'),
    }


def _mobile_backbone_settings(
    channels: Callable[[str], int],
    present: Callable[[str], bool],
    architecture: Architecture,
    where: str,
) -> dict[str, Setting]:
    """Width and channels from the shapes of kernels; a mobile network has no alpha."""
    graph, widths = architecture.graph, []
    for index, level in enumerate(graph.levels):
        block = index - len(graph.stem)
        module = f'stem_block{index}_0' if block < 0 else f'block{index}_0'
        path = f'params/backbone/{module}/project/kernel'
        if present(path):
            widths.append((MOBILE_FILTERS[level], channels(path)))
    width = _width(widths, [row.width for row in MOBILE_SCALING.values()], where)
    return {
        'graph': graph.name,
        'width': width,
        'resample_alpha': 1.0,
        'block_repeats': architecture.block_repeats,
        'endpoint_channels': channels('params/backbone/endpoint3/kernel'),
    }


def _width(pairs: list[tuple[int, int]], published: Sequence[float], where: str) -> float:
    """The factor from base filters to those found; see `_factor`."""
    width = _factor(pairs, published)
    if width is None:
        raise UserError(
            f'{where}: incomplete or not a SpineNet, the channels of its blocks are not one '
            f'multiple of the base filters (base, found: {sorted(set(pairs))})'
        )
    return width


def _factor(pairs: Iterable[tuple[int, int]], published: Sequence[float]) -> float | None:
    """The factor f for which int(base * f) is `found` in every pair (base, found).

    Truncation leaves a range of factors: a published one comes first, then the one of the fewest
    decimals, then the middle of the range. None where the pairs have none in common.
    """
    pairs = list(pairs)
    if not pairs:
        return None
    low = max(found / base for base, found in pairs)
    high = min((found + 1) / base for base, found in pairs)
    candidates = list(published)
    for digits in range(1, 7):
        unit = 10**digits
        candidates += [round(low * unit) / unit, math.ceil(low * unit) / unit]
    candidates.append((low + high) / 2)
    fits = (f for f in candidates if all(int(base * f) == found for base, found in pairs))
    return next(fits, None)


def _retinanet_settings(
    channels: Callable[[str], int], architecture: Architecture, where: str
) -> dict[str, Setting]:
    """Sizes of the head; only heads of nine anchors a cell can be built."""
    part = 'pointwise/kernel' if architecture.separable_heads else 'kernel'
    anchors = channels(f'params/box_head/predict/{part}') / 4
    if anchors != ANCHORS_PER_CELL:
        raise UserError(
            f'{where}: a RetinaNet with {anchors:g} anchors a cell; this project has RetinaNets '
            f'with {ANCHORS_PER_CELL} (3 scales, 3 shapes) only'
        )
    outputs = channels(f'params/class_head/predict/{part}')
    if outputs % ANCHORS_PER_CELL:
        raise UserError(
            f'{where}: {outputs} class outputs a cell are not those of {ANCHORS_PER_CELL} anchors'
        )
    settings: dict[str, Setting] = {
        'head_convs': architecture.head_convs,
        'head_channels': channels(f'params/class_head/conv0/{part}'),
        'num_classes': outputs // ANCHORS_PER_CELL,
    }
    return settings | ({'separable_heads': True} if architecture.separable_heads else {})


def _mask_rcnn_settings(
    channels: Callable[[str], int], heads: RegionHeads, where: str
) -> dict[str, Setting]:
    """Sizes of the heads; those that cannot be built here are refused."""
    anchors = channels('params/proposal_head/score/kernel')
    if anchors != len(RATIOS):
        raise UserError(
            f'{where}: a Mask R-CNN with {anchors} anchors a cell; this project has those of '
            f'{len(RATIOS)} (1 scale, 3 shapes) only'
        )
    if heads.stages not in (1, len(CASCADE_WEIGHTS)):
        raise UserError(
            f'{where}: a cascade of {heads.stages} stages; this project has those of '
            f'{len(CASCADE_WEIGHTS)} only'
        )
    if not heads.convs:
        raise UserError(
            f'{where}: a box head without convolutions, which this project does not have'
        )
    return {
        'head_convs': heads.convs,
        'head_channels': channels('params/box_heads_0/conv0/kernel'),
        'hidden_channels': channels('params/box_heads_0/hidden/kernel'),
        'rpn_convs': heads.proposal_convs,
        'cascade': heads.stages > 1,
        'num_classes': channels('params/box_heads_0/class/kernel'),
    }


def _norm_settings(variables: Variables, task: str) -> dict[str, Setting]:
    """Epsilon and momentum that each implementation trained its models of a kind with."""
    regions = any(name.startswith('rpn_head') for name in variables.keys)
    if variables.flavour == 'tf1' and task == 'classification':
        return {'bn_epsilon': 1e-5, 'bn_momentum': 0.9}
    if variables.flavour == 'tf1' and not regions:
        return {'bn_epsilon': 1e-4, 'bn_momentum': 0.997}
    return {'bn_epsilon': 1e-3, 'bn_momentum': 0.99}
