"""Region proposal network (Ren et al., 2015): scores and box codes of every anchor."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from spinenet_jax.lowering.feature_map import FeatureMap
from spinenet_jax.models.initialisers import Normal
from spinenet_jax.models.layers import Layers

INIT = Normal(0.01)


class ProposalHead(nn.Module):
    """3x3 convolutions, and on them two 1x1 predictors, applied to every level.

    Kernels are shared over levels; every level has batch norms of its own.

    Attributes:
      anchors_per_cell: at each position of each map.
      channels, convs: width and number of the 3x3 convolutions.
      layers: makes convolutions and norms.
    """

    anchors_per_cell: int
    channels: int
    convs: int
    layers: Layers

    @nn.compact
    def __call__(
        self, pyramid: dict[int, FeatureMap], *, train: bool
    ) -> tuple[list[jax.Array], list[jax.Array]]:
        """{level: [B,h,w,C]} to two lists over levels, lowest first.

        Returns:
          Logits f32[B,h,w,n] and box codes f32[B,h,w,n*4] (dy, dx, dh, dw), n anchors a cell.
        """
        layers = self.layers
        tower = [
            layers.conv(self.channels, 3, name=f'conv{j}', use_bias=True, kernel_init=INIT)
            for j in range(self.convs)
        ]
        score, box = (
            layers.conv(outputs, 1, name=name, use_bias=True, kernel_init=INIT)
            for name, outputs in (
                ('score', self.anchors_per_cell),
                ('box', 4 * self.anchors_per_cell),
            )
        )
        logits, codes = [], []
        for level, x in sorted(pyramid.items()):
            for j, conv in enumerate(tower):
                x = layers.act(layers.norm(train, name=f'norm{j}_{level}')(conv(x)))
            logits.append(score(x).whole().astype(jnp.float32))
            codes.append(box(x).whole().astype(jnp.float32))
        return logits, codes
