"""Which variable of the published TensorFlow implementations is which parameter of ours.

Names only: no arrays, no TensorFlow, no files (`tf_checkpoint.py` reads those). A path of ours is
'<collection>/<module>/.../<leaf>', e.g. 'params/backbone/stem_conv/kernel' or
'batch_stats/class_head/norm0_3/mean'. Both directions follow from one table a flavour.

TF1 is tensorflow/tpu (variable scopes), TF2 the Model Garden (object-based checkpoints). A TF2
layer's place in its checkpoint ('layer_with_weights-26') differs from variant to variant, so the
name Keras gave the layer decides; where a block or head names its attributes, those decide.
"""

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from spinenet_jax.models.graph import GRAPHS, STEM_BLOCKS, Graph

CONVS = {'bottleneck': 3, 'residual': 2}  # convolutions in one block, its shortcut not counted
NORM_LEAVES = {  # leaf in TensorFlow: collection and leaf of ours
    'gamma': ('params', 'scale'),
    'beta': ('params', 'bias'),
    'moving_mean': ('batch_stats', 'mean'),
    'moving_variance': ('batch_stats', 'var'),
}
CONV_LEAVES = {'kernel': ('params', 'kernel')}
BIASED_LEAVES = {**CONV_LEAVES, 'bias': ('params', 'bias')}
# The Garden's graph has a sixteenth block, P2, which a model of levels 3 to 7 drops after having
# numbered its two resamplings of two convolutions each.
TF2_DROPPED_CONVS = 4


class Architecture(NamedTuple):
    """What decides the names: nothing here depends on widths.

    Attributes:
      block_repeats: copies of each block, at least 1.
      head_convs: convolutions in each RetinaNet tower; 0 is a backbone without a head.
      classifier: whether a TF1 image classifier's dense layer follows the backbone.
      levels: (lowest, highest) output level.
      graph: the backbone's blocks.
    """

    block_repeats: int = 1
    head_convs: int = 4
    classifier: bool = False
    levels: tuple[int, int] = (3, 7)
    graph: Graph = GRAPHS['spinenet49']


class _Pair(NamedTuple):
    """A convolution and the norm after it, by our names (below 'backbone/'), and their scope."""

    conv: str
    norm: str
    scope: tuple[str, int, int]  # ('stem'|'resample'|'block'|'endpoint', index, parent or repeat)


def tf1_names(architecture: Architecture) -> dict[str, str]:
    """{our path: TF1 variable name} of every parameter and statistic of the model."""
    names: dict[str, str] = {}
    counters: dict[str, int] = {}
    for pair in _backbone(architecture):
        scope = _tf1_scope(*pair.scope)
        number = counters.get(scope, 0)
        counters[scope] = number + 1
        suffix = f'_{number}' if number else ''
        names |= _leaves(f'backbone/{pair.conv}', f'{scope}/conv2d{suffix}', CONV_LEAVES)
        norm = f'{scope}/batch_normalization{suffix}'
        names |= _leaves(f'backbone/{pair.norm}', norm, NORM_LEAVES)
    for ours, theirs in (('class', 'class'), ('box', 'box')) if architecture.head_convs else ():
        scope = f'retinanet/{theirs}_net/{theirs}'
        for j in range(architecture.head_convs):
            names |= _leaves(f'{ours}_head/conv{j}', f'{scope}-{j}', BIASED_LEAVES)
            for level in _levels(architecture):
                norm = f'{scope}-{j}-{level}'
                names |= _leaves(f'{ours}_head/norm{j}_{level}', norm, NORM_LEAVES)
        names |= _leaves(f'{ours}_head/predict', f'{scope}-predict', BIASED_LEAVES)
    if architecture.classifier:
        names |= _leaves('head', 'classification_head/dense', BIASED_LEAVES)
    return names


def tf2_names(architecture: Architecture) -> dict[str, str]:
    """{our path: canonical TF2 name, as `tf2_canonical` gives} of the whole model."""
    names: dict[str, str] = {}
    counters: dict[str, int] = {}

    def numbered(kind: str) -> str:
        number = counters.get(kind, 0)
        counters[kind] = number + 1
        return f'{kind}_{number}'

    block = layer = ''
    for pair in _backbone(architecture):
        kind, index, _ = pair.scope
        module, _, conv = pair.conv.rpartition('/')
        if kind in ('block', 'stem_block'):
            if module != block:
                stem = kind == 'stem_block'
                shape = 'bottleneck' if stem else architecture.graph.kinds[index]
                block, layer = module, numbered(f'{shape}_block')
            position = 0 if conv == 'shortcut' else int(conv[4:])
            conv_name, norm_name = f'{layer}/_{conv}', f'{layer}/_norm{position}'
        else:
            if kind == 'endpoint' and index == architecture.levels[0]:
                counters['conv2d'] += TF2_DROPPED_CONVS
            conv_name = numbered('conv2d')
            norm_name = conv_name.replace('conv2d', 'batch_normalization')
        names |= _leaves(f'backbone/{pair.conv}', conv_name, CONV_LEAVES)
        names |= _leaves(f'backbone/{pair.norm}', norm_name, NORM_LEAVES)
    heads = (('class', 'cls', '_classifier'), ('box', 'box', '_box_regressor'))
    for ours, theirs, predict in heads if architecture.head_convs else ():
        for j in range(architecture.head_convs):
            conv_name = f'head/_{theirs}_convs/{j}'
            names |= _leaves(f'{ours}_head/conv{j}', conv_name, BIASED_LEAVES)
            for place, level in enumerate(_levels(architecture)):
                norm_name = f'head/_{theirs}_norms/{place}/{j}'
                names |= _leaves(f'{ours}_head/norm{j}_{level}', norm_name, NORM_LEAVES)
        names |= _leaves(f'{ours}_head/predict', f'head/{predict}', BIASED_LEAVES)
    return names


_TF2_HEAD = re.compile(r'(?:^|/)_?head/(_(?:cls|box)_(?:convs|norms|regressor)|_classifier)(/.*)$')
_TF2_TOP = re.compile(r'^(?:.*/)?(conv2d|batch_normalization)(?:_(\d+))?/(\w+)$')
_TF2_BLOCK = re.compile(r'(?:^|/)(bottleneck_block|residual_block)(?:_(\d+))?/')
_TF2_ATTRIBUTE = re.compile(r'/(_shortcut|_conv\d|_norm\d)/(\w+)$')


def tf2_canonical(variables: Iterable[tuple[str, str]]) -> list[str | None]:
    """Names of TF2 variables that hold for every checkpoint of one architecture.

    Keras numbers layers of one kind on and on, over every model a process builds, so numbers are
    counted from the smallest of their kind that occurs (the stem's, which is built first).

    Args:
      variables: (checkpoint key without its '/.ATTRIBUTES/...' end, full name) of each variable.

    Returns:
      For each 'conv2d_5/kernel', 'bottleneck_block_0/_norm2/gamma', 'head/_cls_norms/0/1/beta' or
      the like; None for what belongs to no layer that we know.
    """
    parsed = [_tf2_parse(key, name) for key, name in variables]
    first: dict[str, int] = {}
    for kind, number, _ in filter(None, parsed):
        first[kind] = min(first.get(kind, number), number)
    return [None if item is None else item[2].format(item[1] - first[item[0]]) for item in parsed]


def _tf2_parse(key: str, name: str) -> tuple[str, int, str] | None:
    """(kind, its number, canonical name with {} for the number); kind '' has no number."""
    if match := _TF2_HEAD.search(key):
        return '', 0, f'head/{match[1]}{match[2]}'
    block, attribute = _TF2_BLOCK.search(name), _TF2_ATTRIBUTE.search(key)
    if block and attribute:
        tail = f'{block[1]}_{{}}/{attribute[1]}/{attribute[2]}'
        return block[1], int(block[2] or 0), tail
    if (top := _TF2_TOP.match(name)) and not block and 'layer_with_weights' in key:
        return top[1], int(top[2] or 0), f'{top[1]}_{{}}/{top[3]}'
    return None


def _levels(architecture: Architecture) -> range:
    return range(architecture.levels[0], architecture.levels[1] + 1)


def _leaves(ours: str, theirs: str, leaves: dict[str, tuple[str, str]]) -> dict[str, str]:
    """{path of ours: name of theirs} of a layer's variables."""
    return {
        f'{collection}/{ours}/{leaf}': f'{theirs}/{name}'
        for name, (collection, leaf) in leaves.items()
    }


def _backbone(architecture: Architecture) -> Iterator[_Pair]:
    """Every convolution of the backbone with its norm, in the order both originals build them."""
    graph, repeats = architecture.graph, architecture.block_repeats
    yield _Pair('stem_conv', 'stem_norm', ('stem', 0, 0))
    for index in range(STEM_BLOCKS):
        for r in range(repeats):
            module, scope = f'stem_block{index}_{r}', ('stem_block', index, r)
            if index == r == 0:
                yield _Pair(f'{module}/shortcut', f'{module}/norm_shortcut', scope)
            for n in range(1, CONVS['bottleneck'] + 1):
                yield _Pair(f'{module}/conv{n}', f'{module}/norm{n}', scope)
    for index, block in enumerate(graph.blocks, STEM_BLOCKS):
        for position, parent in enumerate(block.parents):
            module = f'resample{index}_{position}'
            down = ('down',) if block.level > graph.levels[parent] else ()
            for step in ('in', *down, 'out'):
                scope = ('resample', index, position)
                yield _Pair(f'{module}/conv_{step}', f'{module}/norm_{step}', scope)
        for r in range(repeats):
            for n in range(1, CONVS[block.kind] + 1):
                module = f'block{index}_{r}'
                yield _Pair(f'{module}/conv{n}', f'{module}/norm{n}', ('block', index, r))
    for level in _levels(architecture):
        yield _Pair(f'endpoint{level}', f'endpoint_norm{level}', ('endpoint', level, 0))


def _tf1_scope(kind: str, index: int, position: int) -> str:
    """The TF1 variable scope within which convolutions are counted."""
    spec = index - STEM_BLOCKS
    if kind == 'resample':
        return f'spinenet/sub_policy{spec}/resample_with_alpha_resample_{spec}_{position}'
    if kind == 'block':
        return f'spinenet/sub_policy{spec}/scale_permuted_block_{index}'
    return 'spinenet'
