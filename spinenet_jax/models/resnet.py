"""ResNet-50, -101 and -152 (He et al., 2016): the scale-decreased baseline backbones."""

import jax
from flax import linen as nn

from spinenet_jax.lowering.feature_map import FeatureMap
from spinenet_jax.models.blocks import maybe_remat
from spinenet_jax.models.layers import Layers
from spinenet_jax.models.resnet_sizes import DEPTHS, STAGE_FILTERS
from spinenet_jax.models.stem import LEVEL as STEM_LEVEL
from spinenet_jax.models.stem import stem


class ResNet(nn.Module):
    """Bottleneck ResNet with the stride on the 3x3 convolution, as both public implementations.

    Attributes:
      depth: 50, 101 or 152.
      layers: makes convolutions and norms.
      width: multiplies the filters of every stage, truncated; the 7x7 stem stays at 64.
      stochastic_depth: rate of the last block; block i of n (from 1) gets rate * i / n.
      dropblock_keep_prob, dropblock_size: DropBlock in the last two stages; 1.0 is off.
      remat: recompute each block in the backward pass.
    """

    depth: int
    layers: Layers
    width: float = 1.0
    stochastic_depth: float = 0.0
    dropblock_keep_prob: float = 1.0
    dropblock_size: int = 7
    remat: bool = False

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> dict[int, FeatureMap]:
        """f[B,H,W,3] to {2: C2, 3: C3, 4: C4, 5: C5}; C_l is [B,ceil(H/2^l),ceil(W/2^l),*]."""
        x = stem(self.layers, images, train)
        block = maybe_remat(self.remat)
        maps, done, total = {}, 0, sum(DEPTHS[self.depth])
        for stage, repeats in enumerate(DEPTHS[self.depth]):
            level = stage + STEM_LEVEL
            for repeat in range(repeats):
                done += 1
                x = block(
                    kind='bottleneck',
                    filters=int(STAGE_FILTERS[stage] * self.width),
                    layers=self.layers,
                    stride=2 if repeat == 0 and stage > 0 else 1,
                    project=repeat == 0,
                    drop_rate=self.stochastic_depth * done / total,
                    keep_prob=self.dropblock_keep_prob if stage >= 2 else 1.0,
                    drop_size=self.dropblock_size,
                    name=f'stage{level}_{repeat}',
                )(x, train).settled()
            maps[level] = x
        return maps
