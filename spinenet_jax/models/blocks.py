"""The pieces a backbone is made of: bottleneck and residual blocks, and what they drop in training.

How blocks are wired is in `graph.py` and `spinenet.py`.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from spinenet_jax.models.graph import EXPANSION
from spinenet_jax.models.norm import Layers
from spinenet_jax.ops import strips as strip_ops


class StochasticDepth(nn.Module):
    """Drop a whole residual branch, an image at a time (Huang et al., 2016).

    Attributes:
      rate: probability in [0, 1) that an image's branch is dropped; kept ones grow by 1/(1 - rate).
      strips: into how many strips each image is cut (ops/strips.py).
    """

    rate: float
    strips: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        if not train or self.rate == 0.0:
            return x
        keep = 1.0 - self.rate
        shape = (x.shape[0] // self.strips,) + (1,) * (x.ndim - 1)
        kept = jax.random.bernoulli(self.make_rng('dropout'), keep, shape)
        kept = jnp.repeat(kept, self.strips, axis=0)
        return jnp.where(kept, x / jnp.asarray(keep, x.dtype), jnp.zeros((), x.dtype))


class DropBlock(nn.Module):
    """Drop square regions of a feature map, each channel its own (Ghiasi et al., 2018).

    Attributes:
      keep_prob: share of activations kept, in (0, 1]; 1 does nothing.
      block_size: side of a dropped square in cells; at most the map's smaller side is used.
      strips: into how many strips each image is cut (ops/strips.py).
    """

    keep_prob: float
    block_size: int = 7
    strips: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        if not train or self.keep_prob == 1.0:
            return x
        x = strip_ops.join(x, self.strips)
        _, height, width, _ = x.shape
        size = min(self.block_size, height, width)
        rows, columns = height - size + 1, width - size + 1
        seed_rate = (1.0 - self.keep_prob) * height * width / size**2 / (rows * columns)
        seeds = jax.random.bernoulli(
            self.make_rng('dropout'), min(seed_rate, 1.0), (x.shape[0], rows, columns, x.shape[3])
        )
        # A seed is the first corner of its square: full padding grows [rows, columns] to the map.
        dropped = nn.max_pool(
            seeds.astype(x.dtype), (size, size), padding=[(size - 1, size - 1)] * 2
        )
        kept = 1.0 - jnp.maximum(dropped, 0.0)
        share = jnp.mean(kept, dtype=jnp.float32)
        x = x * kept / jnp.maximum(share, 1e-6).astype(x.dtype)
        return strip_ops.split(x, self.strips)


class Block(nn.Module):
    """A bottleneck (1x1, 3x3, 1x1) or residual (3x3, 3x3) block with its shortcut.

    Batch-norm scales start at 1 throughout, also the last one (as both public implementations).

    Attributes:
      kind: 'bottleneck' (4 * filters channels out) or 'residual' (filters channels out).
      filters: width of the 3x3 convolutions.
      layers: makes convolutions and norms.
      stride: of the block's 3x3 (bottleneck) or first 3x3 (residual) convolution.
      project: whether the shortcut is a 1x1 convolution; needed when stride or channels change.
      drop_rate: stochastic depth's rate of this block, in [0, 1).
      keep_prob, drop_size: of DropBlock, after every norm and on the shortcut; 1 is off.
    """

    kind: str
    filters: int
    layers: Layers
    stride: int = 1
    project: bool = False
    drop_rate: float = 0.0
    keep_prob: float = 1.0
    drop_size: int = 7

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[B,H,W,C] to [B,ceil(H/stride),ceil(W/stride),filters * expansion]."""
        layers, out = self.layers, self.filters * EXPANSION[self.kind]
        plan = {
            'bottleneck': ((self.filters, 1, 1), (self.filters, 3, self.stride), (out, 1, 1)),
            'residual': ((self.filters, 3, self.stride), (out, 3, 1)),
        }[self.kind]
        shortcut = x
        if self.project:
            shortcut = layers.conv(out, 1, self.stride, name='shortcut')(shortcut)
            shortcut = layers.norm(train, name='norm_shortcut')(shortcut)
        shortcut = self._drop_block(shortcut, train)
        for number, (features, kernel, stride) in enumerate(plan, 1):
            x = layers.conv(features, kernel, stride, name=f'conv{number}')(x)
            x = layers.norm(train, name=f'norm{number}')(x)
            x = layers.act(x) if number < len(plan) else x
            x = self._drop_block(x, train)
        x = StochasticDepth(self.drop_rate, layers.strips)(x, train=train)
        return layers.act(x + shortcut)

    def _drop_block(self, x: jax.Array, train: bool) -> jax.Array:
        return DropBlock(self.keep_prob, self.drop_size, self.layers.strips)(x, train=train)


def maybe_remat(remat: bool) -> type[nn.Module]:
    """`Block`, or a `Block` that is recomputed in the backward pass instead of stored.

    What comes from other devices, the few numbers of batch norm, is stored: nobody waits twice.
    """
    return nn.remat(Block, static_argnums=(2,), policy=_is_sum_over_devices) if remat else Block


def _is_sum_over_devices(primitive: Any, *_, **__) -> bool:
    """Whether an operation adds up over devices; a policy of `jax.checkpoint`."""
    return primitive.name.startswith('psum')
