"""The walker: builds the scale-permuted backbone that a graph describes (paper, section 3).

The graph itself is data (`graph.py`); this file turns it into feature maps P3 to P7.
"""

from collections.abc import Callable

import jax
from flax import linen as nn

from spinenet_jax.models.blocks import maybe_remat
from spinenet_jax.models.graph import EXPANSION, STEM_BLOCKS, Graph, filters
from spinenet_jax.models.norm import Layers
from spinenet_jax.models.stem import LEVEL as STEM_LEVEL
from spinenet_jax.models.stem import stem
from spinenet_jax.ops import resample, strips


class Resample(nn.Module):
    """Bring a parent's map to the size and width of the block it feeds (paper, section 3.3).

    1x1 convolution to `alpha` of the parent's width; nearest-neighbour up-sampling, or a 3x3
    convolution of stride 2 and max-pools; 1x1 convolution to the target's width, not activated.

    Attributes:
      middle: channels between the two 1x1 convolutions.
      channels: channels out.
      halvings: target level minus parent level; negative up-samples.
      layers: makes convolutions and norms.
      strips_in, strips_out: into how many strips the parent's and the target's maps are cut.
      pooling: 'chain' of 3x3 max-pools, or the 'single' max-pool of the TF1 original.
    """

    middle: int
    channels: int
    halvings: int
    layers: Layers
    pooling: str = 'chain'
    strips_in: int = 1
    strips_out: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, size: tuple[int, int], *, train: bool) -> jax.Array:
        """[B,H,W,C] to [B,*size,channels]; `size` is that of whole maps."""
        layers = self.layers._replace(strips=self.strips_in)
        old_width = x.shape[2] * self.strips_in
        x = layers.conv(self.middle, 1, name='conv_in')(x)
        x = layers.act(layers.norm(train, name='norm_in')(x))
        if self.halvings > 0:
            x = layers.conv(self.middle, 3, 2, name='conv_down')(x)
            x = layers.act(layers.norm(train, name='norm_down')(x))
        whole = size[1] % old_width == 0 if self.halvings < 0 else self.halvings == 1
        if whole and self.strips_in == self.strips_out:  # no strip needs its neighbours
            x = resample.nearest(x, (size[0], size[1] // self.strips_out))
        elif self.halvings != 0:
            x = self._resize(strips.join(x, self.strips_in), old_width, size)
            x = strips.split(x, self.strips_out)
        layers = self.layers._replace(strips=self.strips_out)
        x = layers.conv(self.channels, 1, name='conv_out')(x)
        return layers.norm(train, name='norm_out')(x)

    def _resize(self, x: jax.Array, old_width: int, size: tuple[int, int]) -> jax.Array:
        """What convolutions leave to max-pools and nearest neighbours."""
        slices = self.layers.platform == 'cpu'
        if self.halvings > 0 and self.pooling == 'single':
            x = resample.single_pool(x, old_width, size[1], slices)
        elif self.halvings > 0:
            x = resample.chain_pools(x, self.halvings - 1, slices)
        return resample.nearest(x, size)


class SpineNet(nn.Module):
    """A scale-permuted network from a graph.

    Attributes:
      graph: the blocks and their wiring; must be valid (`graph.validate`).
      layers: makes convolutions and norms; also carries activation and padding.
      width: multiplies the base filters, truncated to whole channels; the 7x7 stem stays at 64.
      resample_alpha: width inside a resampling, as a share of the parent's.
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
    def __call__(self, images: jax.Array, *, train: bool) -> dict[int, jax.Array]:
        """f[B,H,W,3] normalised images to {level: f[B,ceil(H/2^l),ceil(W/2^l),endpoint_channels]}.

        Any H and W from 1 pixel up; sizes that are multiples of 2**7 need no fractional resize.
        """
        x, count = stem(self.layers, images, train)
        cut = self._cut(images.shape) | {STEM_LEVEL: count}
        nodes = []
        for index in range(STEM_BLOCKS):
            group = self._group(f'stem_block{index}', 'bottleneck', STEM_LEVEL, 0.0, count)
            nodes.append(group(nodes[-1] if nodes else x, train))
        merges = self.graph.merges
        for index, block in enumerate(self.graph.blocks, STEM_BLOCKS):
            size = resample.level_size(images.shape[1:3], block.level)
            terms = [
                self._resample(index, position, parent, cut)(nodes[parent], size, train=train)
                for position, parent in enumerate(block.parents)
            ]
            x = sum(terms[1:], terms[0])
            x = self.layers.act(sum((nodes[i] for i in merges.get(index, ())), x))
            rate = self.stochastic_depth * (index - 1) / len(self.graph.blocks)
            group = self._group(f'block{index}', block.kind, block.level, rate, cut[block.level])
            nodes.append(group(x, train))
        return {
            level: self._endpoint(level, nodes[index], cut[level], train)
            for level, index in self.graph.outputs.items()
            if self.levels[0] <= level <= self.levels[1]
        }

    def _group(
        self, name: str, kind: str, level: int, rate: float, count: int
    ) -> Callable[[jax.Array, bool], jax.Array]:
        """The copies of one block, on maps in `count` strips.

        Only the first stem block changes width, and so projects.
        """
        block = maybe_remat(self.remat)
        in_stem = name.startswith('stem')

        def apply(x: jax.Array, train: bool) -> jax.Array:
            for repeat in range(self.block_repeats):
                x = block(
                    kind=kind,
                    filters=filters(level, self.width),
                    layers=self.layers._replace(strips=count),
                    project=name == 'stem_block0' and repeat == 0,
                    drop_rate=rate,
                    keep_prob=1.0 if in_stem else self.dropblock_keep_prob,
                    drop_size=self.dropblock_size,
                    name=f'{name}_{repeat}',
                )(x, train)
            return x

        return apply

    def _resample(self, index: int, position: int, parent: int, cut: dict[int, int]) -> Resample:
        """The edge from `parent` to block `index`; `cut` has the strips by level."""
        block = self.graph.blocks[index - STEM_BLOCKS]
        level = self.graph.levels[parent]
        return Resample(
            middle=int(filters(level, self.width) * self.resample_alpha),
            channels=filters(block.level, self.width) * EXPANSION[block.kind],
            halvings=block.level - level,
            layers=self.layers,
            pooling=self.pooling,
            strips_in=cut[level],
            strips_out=cut[block.level],
            name=f'resample{index}_{position}',
        )

    def _cut(self, shape: tuple[int, ...]) -> dict[int, int]:
        """How many strips for each level's maps, images of `shape` [B,H,W,3]."""
        return {
            block.level: self.layers.strips_at(
                block.level, shape[0], resample.level_size(shape[1:3], block.level)[1]
            )
            for block in self.graph.blocks
        }

    def _endpoint(self, level: int, x: jax.Array, count: int, train: bool) -> jax.Array:
        layers = self.layers._replace(strips=count)
        x = layers.conv(self.endpoint_channels, 1, name=f'endpoint{level}')(x)
        x = layers.act(layers.norm(train, name=f'endpoint_norm{level}')(x))
        return strips.join(x, count)
