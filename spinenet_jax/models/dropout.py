"""What training drops at random: residual branches (stochastic depth) and squares (DropBlock)."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from spinenet_jax.lowering.feature_map import FeatureMap


def stochastic_depth(x: FeatureMap, rate: float, *, train: bool) -> FeatureMap:
    """Drop a whole residual branch, an image at a time (Huang et al., 2016).

    Args:
      x: the branch; kept ones grow by 1 / (1 - rate).
      rate: probability in [0, 1) that an image's branch is dropped.
      train: whether to drop at all.
    """
    # Random values follow from the name of the submodule: another one would draw others.
    name = 'StochasticDepth_0'
    return x.map_images(nn.Dropout(rate, (1, 2, 3), deterministic=not train, name=name))


class DropBlock(nn.Module):
    """Drop square regions of a feature map, each channel its own (Ghiasi et al., 2018).

    Attributes:
      keep_prob: fraction of activations kept, in (0, 1]; 1 does nothing.
      block_size: side of a dropped square in cells; at most the map's smaller side is used.
    """

    keep_prob: float
    block_size: int = 7

    @nn.compact
    def __call__(self, x: FeatureMap, *, train: bool) -> FeatureMap:
        """A map of the same shape and layout."""
        if not train or self.keep_prob == 1.0:
            return x
        data = x.whole()
        batch, height, width, channels = data.shape
        size = min(self.block_size, height, width)
        rows, columns = height - size + 1, width - size + 1
        seed_rate = (1.0 - self.keep_prob) * height * width / size**2 / (rows * columns)
        seeds = jax.random.bernoulli(
            self.make_rng('dropout'), min(seed_rate, 1.0), (batch, rows, columns, channels)
        )
        # A seed is the first corner of its square: full padding grows [rows, columns] to the map.
        dropped = nn.max_pool(
            seeds.astype(data.dtype), (size, size), padding=[(size - 1, size - 1)] * 2
        )
        kept = 1.0 - jnp.maximum(dropped, 0.0)
        kept_fraction = jnp.mean(kept, dtype=jnp.float32)
        return x.with_whole(data * kept / jnp.maximum(kept_fraction, 1e-6).astype(data.dtype))
