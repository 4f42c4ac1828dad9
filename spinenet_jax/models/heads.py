"""RetinaNet's class and box subnets (Lin et al., 2017): towers shared over the pyramid's levels."""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from spinenet_jax.lowering.feature_map import FeatureMap
from spinenet_jax.models.initialisers import Normal
from spinenet_jax.models.layers import Layers

TOWER_INIT = Normal(0.01)
PREDICTOR_INIT = Normal(1e-5)
PRIOR_BIAS = -math.log(99.0)  # a class probability of 0.01 at the start


class PredictionHead(nn.Module):
    """A tower of 3x3 convolutions and a predictor, applied to every level.

    Kernels are shared over levels; every level has batch norms of its own.

    Attributes:
      outputs: channels of the predictor.
      channels, convs: width and depth of the tower.
      layers: makes convolutions and norms.
      bias: the predictor's bias at the start.
    """

    outputs: int
    channels: int
    convs: int
    layers: Layers
    bias: float = 0.0

    @nn.compact
    def __call__(self, pyramid: dict[int, FeatureMap], *, train: bool) -> list[jax.Array]:
        """{level: [B,h,w,C]} to a list over levels, lowest first, of f32[B,h,w,outputs]."""
        layers = self.layers
        tower = [
            layers.conv(self.channels, 3, name=f'conv{j}', use_bias=True, kernel_init=TOWER_INIT)
            for j in range(self.convs)
        ]
        predict = layers.conv(
            self.outputs,
            3,
            name='predict',
            use_bias=True,
            kernel_init=PREDICTOR_INIT,
            bias_init=nn.initializers.constant(self.bias),
        )
        maps = []
        for level, x in sorted(pyramid.items()):
            for j, conv in enumerate(tower):
                x = layers.act(layers.norm(train, name=f'norm{j}_{level}')(conv(x)))
            maps.append(predict(x).whole().astype(jnp.float32))
        return maps
