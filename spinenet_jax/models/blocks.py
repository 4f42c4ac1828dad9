"""Bottleneck and residual blocks, of which SpineNet and ResNet are made.

How blocks are wired is in `graph.py` and `spinenet.py`.
"""

import jax
from flax import linen as nn

from spinenet_jax.lowering.batch_norm import MOMENTS
from spinenet_jax.lowering.feature_map import FeatureMap
from spinenet_jax.models.dropout import DropBlock, stochastic_depth
from spinenet_jax.models.graph import EXPANSION
from spinenet_jax.models.layers import Layers


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
    def __call__(self, x: FeatureMap, train: bool) -> FeatureMap:
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
        x = stochastic_depth(x, self.drop_rate, train=train)
        return layers.act(x + shortcut)

    def _drop_block(self, x: FeatureMap, train: bool) -> FeatureMap:
        return DropBlock(self.keep_prob, self.drop_size)(x, train=train)


def maybe_remat(remat: bool, block: type[nn.Module] = Block) -> type[nn.Module]:
    """`block`, or a block that is recomputed in the backward pass instead of stored.

    What batch norm sums over devices is stored even so: it is few numbers, and to compute it again
    would double the waiting for other devices.
    """
    policy = jax.checkpoint_policies.save_only_these_names(MOMENTS)
    return nn.remat(block, static_argnums=(2,), policy=policy) if remat else block
