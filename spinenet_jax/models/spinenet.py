"""Scale-permuted networks: builds the backbone that a graph describes (SpineNet paper, section 3).

The graph itself is data (`graph.py`); this file turns it into feature maps P3 to P7.
"""

import jax
from flax import linen as nn

from spinenet_jax.lowering.feature_map import FeatureMap
from spinenet_jax.models.blocks import Block, maybe_remat
from spinenet_jax.models.graph import EXPANSION, MOBILE, Graph, filters
from spinenet_jax.models.layers import Layers
from spinenet_jax.models.mobile import InvertedBottleneck, SeparableResample, mobile_stem
from spinenet_jax.models.stem import stem
from spinenet_jax.ops.resample import level_size


class Resample(nn.Module):
    """Bring a parent's map to the size and width of the block it feeds (paper, section 3.3).

    1x1 convolution to `alpha` of the parent's width; nearest-neighbour up-sampling, or a 3x3
    convolution of stride 2 and max-pools; 1x1 convolution to the target's width, not activated.

    Attributes:
      middle: channels between the two 1x1 convolutions.
      channels: channels out.
      level: of the block it feeds.
      layers: makes convolutions and norms.
      pooling: 'chain' of 3x3 max-pools, or the 'single' max-pool of the TF1 original.
    """

    middle: int
    channels: int
    level: int
    layers: Layers
    pooling: str = 'chain'

    @nn.compact
    def __call__(self, x: FeatureMap, size: tuple[int, int], *, train: bool) -> FeatureMap:
        """[B,H,W,C] to [B,*size,channels]."""
        layers, halvings, width = self.layers, self.level - x.level, x.size[1]
        x = layers.conv(self.middle, 1, name='conv_in')(x)
        x = layers.act(layers.norm(train, name='norm_in')(x))
        if halvings > 0:
            x = layers.conv(self.middle, 3, 2, name='conv_down')(x)
            x = layers.act(layers.norm(train, name='norm_down')(x))
            for window, stride in pools(self.pooling, halvings, width, size[1]):
                x = layers.max_pool(x, window, stride)
        x = layers.resize(x, size, self.level)  # where the sizes are right, this does nothing
        x = layers.conv(self.channels, 1, name='conv_out')(x)
        return layers.norm(train, name='norm_out')(x)


def pools(pooling: str, halvings: int, old_width: int, new_width: int) -> list[tuple[int, int]]:
    """(window, stride) of the max-pools after the convolution of stride 2, first to last.

    'chain' has a 3x3 pool of stride 2 for every halving that is left (the Model Garden's flavour).
    'single' has at most one, as the TF1 original: its stride is half the ratio of the widths (2
    where that ratio is not whole), its window 3, or 5 for ratios above 4; ratios up to 2 need none.
    What is still missing is left to nearest-neighbour resizing.

    Args:
      pooling: 'chain' or 'single'.
      halvings: levels from the parent to the block it feeds, at least 1.
      old_width, new_width: of the two maps.
    """
    if pooling == 'chain':
        return [(3, 2)] * (halvings - 1)
    if old_width // new_width <= 2:
        return []
    stride = old_width // new_width // 2 if old_width % new_width == 0 else 2
    return [(3 if old_width <= 4 * new_width else 5, stride)]


class SpineNet(nn.Module):
    """A scale-permuted network from a graph.

    Attributes:
      graph: the blocks and their wiring; must be valid (`graph.validate`).
      layers: makes convolutions and norms; also carries activation and padding.
      width: multiplies the base filters, truncated to whole channels; the 7x7 stem stays at 64.
        A mobile network's narrows with the others.
      resample_alpha: width inside a resampling, as a share of the parent's; mobile networks have
        none.
      block_repeats: copies of each block in a row, at least 1.
      endpoint_channels: channels of every output map.
      levels: (lowest, highest) output level.
      stochastic_depth: rate of the last block; block i of n (from 1) gets rate * i / n, the stem 0.
      dropblock_keep_prob, dropblock_size: DropBlock in the permuted blocks; 1.0 is off.
      pooling: 'chain' or 'single', see `Resample`.
      remat: recompute each block in the backward pass instead of storing its activations.
    """

    graph: Graph
    layers: Layers
    width: float = 1.0
    resample_alpha: float = 0.5
    block_repeats: int = 1
    endpoint_channels: int = 256
    levels: tuple[int, int] = (3, 7)
    stochastic_depth: float = 0.0
    dropblock_keep_prob: float = 1.0
    dropblock_size: int = 7
    pooling: str = 'chain'
    remat: bool = False

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> dict[int, FeatureMap]:
        """f[B,H,W,3] normalised images to {level: [B,ceil(H/2^l),ceil(W/2^l),endpoint_channels]}.

        Any H and W from 1 pixel up; sizes that are multiples of 2**7 need no fractional resize.
        """
        graph, merges = self.graph, self.graph.merges
        if graph.is_mobile:
            x = mobile_stem(self.layers, images, filters(0, self.width, MOBILE), train)
        else:
            x = stem(self.layers, images, train)
        nodes: list[FeatureMap] = []
        for index, level in enumerate(graph.stem):
            kind = graph.kinds[index]
            x = self._group(f'stem_block{index}', kind, level, 0.0, x, train)
            nodes.append(x)
        for number, block in enumerate(graph.blocks, 1):
            index = len(nodes)
            size = level_size(images.shape[1:3], block.level)
            terms = [
                self._resample(index, position, parent)(nodes[parent], size, train=train)
                for position, parent in enumerate(block.parents)
            ]
            x = sum(terms[1:], terms[0])
            x = self.layers.act(sum((nodes[i] for i in merges.get(index, ())), x))
            rate = self.stochastic_depth * number / len(graph.blocks)
            nodes.append(self._group(f'block{index}', block.kind, block.level, rate, x, train))
        return {
            level: self._endpoint(nodes[index], train)
            for level, index in graph.outputs.items()
            if self.levels[0] <= level <= self.levels[1]
        }

    def _group(
        self, name: str, kind: str, level: int, rate: float, x: FeatureMap, train: bool
    ) -> FeatureMap:
        """The copies of one block in a row.

        Only blocks of the stem change the width of their map or halve it, and so project: the first
        one of all, and the first one of each further level.
        """
        in_stem = name.startswith('stem')
        halves = level > x.level
        for repeat in range(self.block_repeats):
            stride = 2 if halves and repeat == 0 else 1
            if kind == MOBILE:
                block = maybe_remat(self.remat, InvertedBottleneck)(
                    filters=filters(level, self.width, kind),
                    layers=self.layers,
                    stride=stride,
                    drop_rate=rate,
                    name=f'{name}_{repeat}',
                )
            else:
                block = maybe_remat(self.remat, Block)(
                    kind=kind,
                    filters=filters(level, self.width, kind),
                    layers=self.layers,
                    stride=stride,
                    project=repeat == 0 and (halves or name == 'stem_block0'),
                    drop_rate=rate,
                    keep_prob=1.0 if in_stem else self.dropblock_keep_prob,
                    drop_size=self.dropblock_size,
                    name=f'{name}_{repeat}',
                )
            x = block(x, train)
            x = x.settled() if halves and repeat == 0 else x
        return x

    def _resample(self, index: int, position: int, parent: int) -> Resample | SeparableResample:
        """The edge from `parent` to block `index`."""
        block = self.graph.blocks[index - len(self.graph.stem)]
        channels = filters(block.level, self.width, block.kind) * EXPANSION[block.kind]
        name = f'resample{index}_{position}'
        if block.kind == MOBILE:
            return SeparableResample(channels, block.level, self.layers, name=name)
        return Resample(
            middle=int(filters(self.graph.levels[parent], self.width) * self.resample_alpha),
            channels=channels,
            level=block.level,
            layers=self.layers,
            pooling=self.pooling,
            name=name,
        )

    def _endpoint(self, x: FeatureMap, train: bool) -> FeatureMap:
        level, layers = x.level, self.layers
        x = layers.conv(self.endpoint_channels, 1, name=f'endpoint{level}')(x)
        return layers.act(layers.norm(train, name=f'endpoint_norm{level}')(x))
