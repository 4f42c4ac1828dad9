"""Maps paths of our parameters to variable names of the published TensorFlow implementations.

Names only, and which axes are swapped: no arrays, no TensorFlow, no files (`tf_checkpoint.py` reads
those). A path of ours is '<collection>/<module>/.../<leaf>', e.g.
'params/backbone/stem_conv/kernel' or 'batch_stats/class_head/norm0_3/mean'.

TF1 is tensorflow/tpu (variable scopes), TF2 the Model Garden (object-based checkpoints). A model is
a list of `Layer`, each with its three names; another kind of model is another list (`layers`). A
TF2 layer's place in its checkpoint ('layer_with_weights-26') differs from variant to variant, so
the name Keras gave the layer decides; where a block or head names its attributes, those decide.
"""

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from spinenet_jax.models.graph import GRAPHS, Graph
from spinenet_jax.models.resnet_sizes import DEPTHS, FIRST_LEVEL

# The variables of a layer: their name in TensorFlow, and collection and leaf of ours.
CONV = {'kernel': ('params', 'kernel')}
BIASED = {**CONV, 'bias': ('params', 'bias')}
DEPTHWISE = {'depthwise_kernel': ('params', 'kernel')}
POINTWISE = {'pointwise_kernel': ('params', 'kernel'), 'bias': ('params', 'bias')}
NORM = {
    'gamma': ('params', 'scale'),
    'beta': ('params', 'bias'),
    'moving_mean': ('batch_stats', 'mean'),
    'moving_variance': ('batch_stats', 'var'),
}
# Kernels whose two last axes TensorFlow has the other way round: the transposed convolution's
# (outputs, then inputs) and the depthwise ones' (channels, then one).
SWAPPED = re.compile(r'mask_head/upsample/kernel$|/(depthwise|down\d)/kernel$')
BLOCK_CONVS = {'bottleneck': 3, 'residual': 2}  # of one block, its shortcut not counted
# The Garden's graph has had a sixteenth block, P2, since it left its beta. A model of levels 3 to 7
# drops it after having numbered its two resamplings of two convolutions each.
P2_CONVS = 4


class RegionHeads(NamedTuple):
    """The heads of Mask R-CNN.

    Attributes:
      proposal_convs: convolutions of the region proposal network.
      convs: of each box head, and of the mask head.
      stages: box heads; more than one in a cascade.
    """

    proposal_convs: int = 1
    convs: int = 4
    stages: int = 1


class Architecture(NamedTuple):
    """What decides the names: nothing here depends on widths.

    Attributes:
      block_repeats: copies of each block, at least 1.
      head_convs: convolutions in each RetinaNet tower; 0 is a model without them.
      classifier: whether a TF1 image classifier's dense layer follows the backbone.
      regions: the heads of Mask R-CNN, where there are any.
      levels: (lowest, highest) output level.
      graph: the backbone's blocks.
      counts_p2: TF2 only: whether the numbers of the dropped block P2 are left out, or whether, as
        in the Garden's beta, whose checkpoints its README offers, no number is. Mobile graphs
        have no such block.
      resnet_depth: of a ResNet-FPN, which then is the backbone instead; 0 for none.
      named_fpn: TF2 only: whether the pyramid's layers have names of their own ('lateral_3'), or
        are numbered after those of the ResNet, as in the Garden's beta.
      separable_heads: whether the convolutions of RetinaNet's towers are depthwise, then 1x1.
    """

    block_repeats: int = 1
    head_convs: int = 4
    classifier: bool = False
    regions: RegionHeads | None = None
    levels: tuple[int, int] = (3, 7)
    graph: Graph = GRAPHS['spinenet49']
    counts_p2: bool = True
    resnet_depth: int = 0
    named_fpn: bool = True
    separable_heads: bool = False


class Layer(NamedTuple):
    """One layer under its three names.

    Attributes:
      ours: path of the module, e.g. 'backbone/stem_conv'.
      tf1: variable scope, e.g. 'spinenet/conv2d'; '' where TF1 has no such model.
      tf2: canonical name (`tf2_canonical`), e.g. 'conv2d' or 'head/_classifier'; '' as above.
      leaves: its variables: CONV, BIASED, NORM, or DEPTHWISE and POINTWISE, which in TensorFlow
        may be one layer.
    """

    ours: str
    tf1: str
    tf2: str
    leaves: dict[str, tuple[str, str]]


def layers(architecture: Architecture) -> Iterator[Layer]:
    """Every layer of the model: the backbone's, then those of its heads."""
    if architecture.resnet_depth:
        yield from _resnet_fpn(architecture)
    elif architecture.graph.is_mobile:
        yield from _mobile_spinenet(architecture)
    else:
        yield from _spinenet(architecture)
    if architecture.head_convs:
        yield from _retinanet(architecture)
    if architecture.regions:
        yield from _mask_rcnn(architecture.regions, _levels(architecture))
    if architecture.classifier:
        yield Layer('head', 'classification_head/dense', '', BIASED)


def names_in(flavour: str, architecture: Architecture) -> dict[str, str]:
    """`tf1_names` or `tf2_names`, by the flavour 'tf1' or 'tf2'."""
    return tf1_names(architecture) if flavour == 'tf1' else tf2_names(architecture)


def tf1_names(architecture: Architecture) -> dict[str, str]:
    """{our path: TF1 variable name} of every parameter and statistic of the model."""
    return _names((layer.ours, layer.tf1, layer.leaves) for layer in layers(architecture))


def tf2_names(architecture: Architecture) -> dict[str, str]:
    """{our path: canonical TF2 name, as `tf2_canonical` gives} of the whole model."""
    return _names((layer.ours, layer.tf2, layer.leaves) for layer in layers(architecture))


def _names(rows: Iterable[tuple[str, str, dict[str, tuple[str, str]]]]) -> dict[str, str]:
    """{our path: name} of all variables of (our layer, their layer, leaves)."""
    return {
        f'{collection}/{ours}/{leaf}': f'{theirs}/{variable}'
        for ours, theirs, leaves in rows
        if theirs
        for variable, (collection, leaf) in leaves.items()
    }


class Numbering:
    """The names that Keras gives by itself: 'conv2d', then 'conv2d_1', 'conv2d_2', ..."""

    def __init__(self) -> None:
        """Starts with nothing counted."""
        self._counts: dict[str, int] = {}

    def next(self, name: str) -> str:
        """The next layer called `name`, which may have a scope before it."""
        number = self._counts.get(name, 0)
        self.skip(name, 1)
        return _numbered(name, number)

    def skip(self, name: str, count: int) -> None:
        """Leave out some numbers."""
        self._counts[name] = self._counts.get(name, 0) + count


def _numbered(name: str, number: int) -> str:
    return f'{name}_{number}' if number else name


class _Builder:
    """Gives a backbone's layers; the numbers of both originals follow the order of the calls."""

    def __init__(self) -> None:
        self.tf1, self.tf2 = Numbering(), Numbering()

    def pair(self, conv: str, norm: str, scope: str, tf2_conv: str, tf2_norm: str) -> list[Layer]:
        """A convolution and the norm after it; `scope` is TF1's."""
        tf1_conv = self.tf1.next(f'{scope}/conv2d')
        tf1_norm = self.tf1.next(f'{scope}/batch_normalization')
        return [
            Layer(f'backbone/{conv}', tf1_conv, tf2_conv, CONV),
            Layer(f'backbone/{norm}', tf1_norm, tf2_norm, NORM),
        ]

    def plain(self, conv: str, norm: str, scope: str) -> list[Layer]:
        """A pair that TF2 numbers over the whole model."""
        names = self.tf2.next('conv2d'), self.tf2.next('batch_normalization')
        return self.pair(conv, norm, scope, *names)

    def block(self, module: str, kind: str, scope: str, shortcut: bool = False) -> list[Layer]:
        """A block, in TF2 a layer of its own with pairs as attributes."""
        name, found = self.tf2.next(f'{kind}_block'), []
        for part in ('shortcut',) if shortcut else ():
            names = f'{module}/{part}', f'{module}/norm_{part}'
            found += self.pair(*names, scope, f'{name}/_{part}', f'{name}/_norm0')
        for n in range(1, BLOCK_CONVS[kind] + 1):
            names = f'{module}/conv{n}', f'{module}/norm{n}'
            found += self.pair(*names, scope, f'{name}/_conv{n}', f'{name}/_norm{n}')
        return found


def _spinenet(architecture: Architecture) -> Iterator[Layer]:
    """The backbone, in the order in which both originals build it: their numbers follow it."""
    graph, repeats = architecture.graph, architecture.block_repeats
    build = _Builder()
    yield from build.plain('stem_conv', 'stem_norm', 'spinenet')
    for index in range(len(graph.stem)):
        for r in range(repeats):
            first = index == r == 0  # the only block that changes width
            module = f'stem_block{index}_{r}'
            yield from build.block(module, 'bottleneck', 'spinenet', shortcut=first)
    for number, spec in enumerate(graph.blocks):
        index = len(graph.stem) + number
        for position, parent in enumerate(spec.parents):
            module = f'resample{index}_{position}'
            scope = f'sub_policy{number}/resample_with_alpha_resample_{number}_{position}'
            down = ('down',) if spec.level > graph.levels[parent] else ()
            for step in ('in', *down, 'out'):
                names = f'{module}/conv_{step}', f'{module}/norm_{step}'
                yield from build.plain(*names, f'spinenet/{scope}')
        scope = f'spinenet/sub_policy{number}/scale_permuted_block_{index}'
        for r in range(repeats):
            yield from build.block(f'block{index}_{r}', spec.kind, scope)
    if architecture.counts_p2:
        build.tf2.skip('conv2d', P2_CONVS)
        build.tf2.skip('batch_normalization', P2_CONVS)
    for level in _levels(architecture):
        yield from build.plain(f'endpoint{level}', f'endpoint_norm{level}', 'spinenet')


def _resnet_fpn(architecture: Architecture) -> Iterator[Layer]:
    """ResNet, then the pyramid on it: laterals, outputs, coarser levels, norms, in this order."""
    build, repeats = _Builder(), DEPTHS[architecture.resnet_depth]
    scope = f'resnet{architecture.resnet_depth}'
    yield from build.plain('resnet/stem_conv', 'resnet/stem_norm', scope)
    for level, count in enumerate(repeats, FIRST_LEVEL):
        for r in range(count):
            module = f'resnet/stage{level}_{r}'
            yield from build.block(module, 'bottleneck', scope, shortcut=r == 0)
    top = FIRST_LEVEL + len(repeats) - 1
    levels = _levels(architecture)
    merged, coarser = [n for n in levels if n <= top], [n for n in levels if n > top]
    for ours, tf1, tf2, places in (
        ('lateral', 'fpn/l{}', 'lateral_{}', merged),
        ('output', 'fpn/post_hoc_d{}', 'post_hoc_{}', merged),
        ('output', 'fpn/p{}', 'coarser_{}', coarser),
    ):
        for level in places:
            name = tf2.format(level) if architecture.named_fpn else build.tf2.next('conv2d')
            yield Layer(f'backbone/{ours}{level}', tf1.format(level), name, BIASED)
    for level in levels:
        kind = 'batch_normalization'
        name = f'norm_{level}' if architecture.named_fpn else build.tf2.next(kind)
        yield Layer(f'backbone/norm{level}', f'fpn/p{level}-bn', name, NORM)


# The parts of an inverted bottleneck: convolution, its name in TF1 and in TF2, its variables, the
# norm after it, and that one's name in TF2.
INVERTED_BOTTLENECK = (
    ('expand', 'conv2d', '_conv0', CONV, 'norm_expand', '_norm0'),
    ('depthwise', 'depthwise_conv2d', '_conv1', DEPTHWISE, 'norm_depthwise', '_norm1'),
    ('squeeze', 'conv2d', '_squeeze_excitation/_se_reduce', BIASED, '', ''),
    ('excite', 'conv2d', '_squeeze_excitation/_se_expand', BIASED, '', ''),
    ('project', 'conv2d', '_conv2', CONV, 'norm_project', '_norm2'),
)


def _mobile_spinenet(architecture: Architecture) -> Iterator[Layer]:
    """SpineNet-Mobile's backbone; each kind of layer is numbered by itself."""
    graph = architecture.graph
    tf1, tf2 = Numbering(), Numbering()

    def plain(conv: str, norm: str, scope: str, kind: str = 'conv2d') -> Iterator[Layer]:
        """A convolution and the norm after it, which TF2 numbers over the whole model."""
        leaves = CONV if kind == 'conv2d' else DEPTHWISE
        yield Layer(f'backbone/{conv}', tf1.next(f'{scope}/{kind}'), tf2.next(kind), leaves)
        kind = 'batch_normalization'
        yield Layer(f'backbone/{norm}', tf1.next(f'{scope}/{kind}'), tf2.next(kind), NORM)

    def block(module: str, scope: str) -> Iterator[Layer]:
        """An inverted bottleneck, in TF2 a layer of its own."""
        name = tf2.next('inverted_bottleneck_block')
        for conv, tf1_conv, tf2_conv, leaves, norm, tf2_norm in INVERTED_BOTTLENECK:
            tf1_name = tf1.next(f'{scope}/{tf1_conv}')
            yield Layer(f'backbone/{module}/{conv}', tf1_name, f'{name}/{tf2_conv}', leaves)
            if norm:
                tf1_name = tf1.next(f'{scope}/batch_normalization')
                yield Layer(f'backbone/{module}/{norm}', tf1_name, f'{name}/{tf2_norm}', NORM)

    root = 'spinenet_mbconv'
    yield from plain('stem_conv', 'stem_norm', root)
    for index in range(len(graph.stem)):
        yield from block(f'stem_block{index}_0', root)
    for number, spec in enumerate(graph.blocks):
        index = len(graph.stem) + number
        for position, parent in enumerate(spec.parents):
            module = f'resample{index}_{position}'
            part = f'resample_with_sepconv_resample_{number}_{position}'
            scope = f'{root}/sub_policy{number}/{part}'
            for n in range(spec.level - graph.levels[parent]):
                names = f'{module}/down{n}', f'{module}/norm_down{n}'
                yield from plain(*names, scope, 'depthwise_conv2d')
            yield from plain(f'{module}/conv_out', f'{module}/norm_out', scope)
        scope = f'{root}/sub_policy{number}/scale_permuted_block_{index}'
        yield from block(f'block{index}_0', scope)
    for level in _levels(architecture):
        yield from plain(f'endpoint{level}', f'endpoint_norm{level}', root)


def _retinanet(architecture: Architecture) -> Iterator[Layer]:
    """The class and the box tower; kernels are shared over levels, norms are not."""

    def conv(ours: str, tf1: str, tf2: str) -> Iterator[Layer]:
        if not architecture.separable_heads:
            yield Layer(ours, tf1, tf2, BIASED)
            return
        yield Layer(f'{ours}/depthwise', tf1, tf2, DEPTHWISE)
        yield Layer(f'{ours}/pointwise', tf1, tf2, POINTWISE)

    for ours, tf1, tf2, predictor in (
        ('class_head', 'retinanet/class_net/class', 'head/_cls', 'head/_classifier'),
        ('box_head', 'retinanet/box_net/box', 'head/_box', 'head/_box_regressor'),
    ):
        for j in range(architecture.head_convs):
            yield from conv(f'{ours}/conv{j}', f'{tf1}-{j}', f'{tf2}_convs/{j}')
            for place, level in enumerate(_levels(architecture)):
                tf2_norm = f'{tf2}_norms/{place}/{j}'
                yield Layer(f'{ours}/norm{j}_{level}', f'{tf1}-{j}-{level}', tf2_norm, NORM)
        yield from conv(f'{ours}/predict', f'{tf1}-predict', predictor)


def _mask_rcnn(heads: RegionHeads, levels: range) -> Iterator[Layer]:
    """The region proposal network, the box heads and the mask head."""
    for j in range(heads.proposal_convs):
        yield Layer(
            f'proposal_head/conv{j}',
            f'rpn_head/{_dashed("rpn", j)}',
            f'rpn_head/_convs/{j}',
            BIASED,
        )
        for place, level in enumerate(levels):
            yield Layer(
                f'proposal_head/norm{j}_{level}',
                f'rpn_head/{_dashed(f"rpn-l{level}-bn", j)}',
                f'rpn_head/_norms/{place}/{j}',
                NORM,
            )
    yield Layer('proposal_head/score', 'rpn_head/rpn-class', 'rpn_head/_classifier', BIASED)
    yield Layer('proposal_head/box', 'rpn_head/rpn-box', 'rpn_head/_box_regressor', BIASED)
    for stage in range(heads.stages):
        yield from _box_head(heads, stage)
    tf1, tf2 = Numbering(), 'mask_head'
    for j in range(heads.convs):
        name = f'mask_head/mask-conv-l{j}'
        yield Layer(f'mask_head/conv{j}', name, f'{tf2}/_convs/{j}', BIASED)
        name = tf1.next('mask_head/batch_normalization')
        yield Layer(f'mask_head/norm{j}', name, f'{tf2}/_conv_norms/{j}', NORM)
    yield Layer('mask_head/upsample', 'mask_head/conv5-mask', f'{tf2}/_deconv', BIASED)
    name = tf1.next('mask_head/batch_normalization')
    yield Layer('mask_head/norm_upsample', name, f'{tf2}/_deconv_bn', NORM)
    yield Layer('mask_head/predict', 'mask_head/mask_fcn_logits', f'{tf2}/_mask_regressor', BIASED)


def _box_head(heads: RegionHeads, stage: int) -> Iterator[Layer]:
    """One stage's box head; TF1 has a scope around each of a cascade's."""
    ours, tf2, numbers = f'box_heads_{stage}', f'detection_head/{stage}', Numbering()
    tf1 = f'frcnn_layer_{stage}/fast_rcnn_head' if heads.stages > 1 else 'fast_rcnn_head'
    for j in range(heads.convs):
        yield Layer(f'{ours}/conv{j}', f'{tf1}/conv_{j}', f'{tf2}/_convs/{j}', BIASED)
        name = numbers.next(f'{tf1}/batch_normalization')
        yield Layer(f'{ours}/norm{j}', name, f'{tf2}/_conv_norms/{j}', NORM)
    yield Layer(f'{ours}/hidden', f'{tf1}/fc6', f'{tf2}/_fcs/0', BIASED)
    name = numbers.next(f'{tf1}/batch_normalization')
    yield Layer(f'{ours}/norm_hidden', name, f'{tf2}/_fc_norms/0', NORM)
    yield Layer(f'{ours}/class', f'{tf1}/class-predict', f'{tf2}/_classifier', BIASED)
    yield Layer(f'{ours}/box', f'{tf1}/box-predict', f'{tf2}/_box_regressor', BIASED)


def _dashed(name: str, number: int) -> str:
    """How TF1's region proposal network numbers: 'rpn', 'rpn-1', 'rpn-2'."""
    return f'{name}-{number}' if number else name


def _levels(architecture: Architecture) -> range:
    return range(architecture.levels[0], architecture.levels[1] + 1)


_TF2_HEAD = re.compile(r'(?:^|/)_?((?:rpn_|detection_|mask_)?head)/(.+)$')
_TF2_BLOCK = re.compile(r'(?:^|/)((?:inverted_)?bottleneck_block|residual_block)(?:_(\d+))?/')
_TF2_ATTRIBUTE = re.compile(
    r'/(_shortcut|_conv\d|_norm\d|_squeeze_excitation/_se_(?:reduce|expand))/(\w+)$'
)
_TF2_PLAIN = re.compile(
    r'^(?:.*/)?((?:depthwise_)?conv2d|(?:sync_)?batch_normalization)(?:_(\d+))?/(\w+)$'
)
_TF2_PYRAMID = re.compile(r'^(?:.*/)?((?:lateral|post_hoc|coarser|norm)_\d+)/(\w+)$')


def tf2_canonical(variables: Iterable[tuple[str, str]]) -> list[str | None]:
    """Names of TF2 variables that hold for every checkpoint of one architecture.

    Keras numbers layers of one kind on and on, over every model a process builds, so numbers are
    counted from the smallest of their kind that occurs (the stem's, which is built first). The
    synchronised norms of the Garden's beta, a class and so a count of their own, are named as the
    plain ones are.

    Args:
      variables: (checkpoint key without its '/.ATTRIBUTES/...' end, full name) of each variable.

    Returns:
      For each 'conv2d_5/kernel', 'bottleneck_block/_norm2/gamma', 'head/_cls_norms/0/1/beta' or the
      like; None for what belongs to no layer that we know.
    """
    parsed = [_tf2_parse(key, name) for key, name in variables]
    first: dict[str, int] = {}
    for kind, number, _ in filter(None, parsed):
        first[kind] = min(first.get(kind, number), number)
    return [
        None if item is None else _numbered(item[0], item[1] - first[item[0]]) + item[2]
        for item in parsed
    ]


def _tf2_parse(key: str, name: str) -> tuple[str, int, str] | None:
    """(layer, its number, the rest of its canonical name); what has no number has 0."""
    if match := _TF2_HEAD.search(key):
        return f'{match[1]}/{match[2]}', 0, ''
    block, attribute = _TF2_BLOCK.search(name), _TF2_ATTRIBUTE.search(key)
    if block and attribute:
        return block[1], int(block[2] or 0), f'/{attribute[1]}/{attribute[2]}'
    if block or 'layer_with_weights' not in key:
        return None
    if plain := _TF2_PLAIN.match(name):
        return plain[1].removeprefix('sync_'), int(plain[2] or 0), f'/{plain[3]}'
    if pyramid := _TF2_PYRAMID.match(name):
        return pyramid[1], 0, f'/{pyramid[2]}'
    return None
