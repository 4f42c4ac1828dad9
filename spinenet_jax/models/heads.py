"""RetinaNet's class and box subnets (Lin et al., 2017): towers shared over the pyramid's levels."""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from spinenet_jax.lowering.feature_map import FeatureMap
from spinenet_jax.models.initialisers import HostInitialiser, Normal
from spinenet_jax.models.layers import SEPARABLE_INIT, Layers

TOWER_INIT = Normal(0.01)
PREDICTOR_INIT = Normal(1e-5)
SEPARABLE_PREDICTOR_INIT = Normal(0.03)
PRIOR_BIAS = -math.log(99.0)  # a class probability of 0.01 at the start


class PredictionHead(nn.Module):
    """A tower of 3x3 convolutions and a predictor, applied to every level.

    Kernels are shared over levels; every level has batch norms of its own.

    Attributes:
      outputs: channels of the predictor.
      channels, convs: width and depth of the tower.
      layers: makes convolutions and norms.
      bias: the predictor's bias at the start.
      separable: whether convolutions are depthwise 3x3 and 1x1, as in mobile models.
    """

    outputs: int
    channels: int
    convs: int
    layers: Layers
    bias: float = 0.0
    separable: bool = False

    @nn.compact
    def __call__(self, pyramid: dict[int, FeatureMap], *, train: bool) -> list[jax.Array]:
        """{level: [B,h,w,C]} to a list over levels, lowest first, of f32[B,h,w,outputs]."""
        layers = self.layers
        tower = [
            self._conv(self.channels, TOWER_INIT, SEPARABLE_INIT, 0.0, name=f'conv{j}')
            for j in range(self.convs)
        ]
        predict = self._conv(
            self.outputs, PREDICTOR_INIT, SEPARABLE_PREDICTOR_INIT, self.bias, name='predict'
        )
        maps = []
        for level, x in sorted(pyramid.items()):
            for j, conv in enumerate(tower):
                x = layers.act(layers.norm(train, name=f'norm{j}_{level}')(conv(x)))
            maps.append(predict(x).whole().astype(jnp.float32))
        return maps

    def _conv(
        self,
        features: int,
        kernel_init: HostInitialiser,
        separable_init: HostInitialiser,
        bias: float,
        *,
        name: str,
    ) -> nn.Module:
        """A 3x3 convolution with a bias, ordinary or separable."""
        bias_init = nn.initializers.constant(bias)
        if self.separable:
            return self.layers.separable_conv(
                features, name=name, kernel_init=separable_init, bias_init=bias_init
            )
        return self.layers.conv(
            features, 3, name=name, use_bias=True, kernel_init=kernel_init, bias_init=bias_init
        )
