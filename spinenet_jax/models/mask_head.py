"""Mask R-CNN's mask head (He et al., 2017): the outline of the object in a region."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from spinenet_jax.lowering.feature_map import FeatureMap
from spinenet_jax.models.initialisers import FanOut
from spinenet_jax.models.layers import Layers

INIT = FanOut(2.0)


class MaskHead(nn.Module):
    """3x3 convolutions, a transposed convolution that doubles the size, a 1x1 predictor.

    Attributes:
      num_classes: channels of the predictor.
      channels, convs: width and number of the convolutions.
      layers: makes convolutions and norms.
    """

    num_classes: int
    channels: int
    convs: int
    layers: Layers

    @nn.compact
    def __call__(self, x: FeatureMap, *, train: bool) -> jax.Array:
        """Crops [R,s,s,C] to logits f32[R,2*s,2*s,K]."""
        layers = self.layers
        options = {'use_bias': True, 'kernel_init': INIT}
        for j in range(self.convs):
            x = layers.conv(self.channels, 3, name=f'conv{j}', **options)(x)
            x = layers.act(layers.norm(train, name=f'norm{j}')(x))
        x = layers.doubling_conv(self.channels, name='upsample', kernel_init=INIT)(x)
        x = layers.act(layers.norm(train, name='norm_upsample')(x))
        x = layers.conv(self.num_classes, 1, name='predict', **options)(x)
        return x.whole().astype(jnp.float32)
