"""The stem that SpineNet and ResNet share: 7x7 convolution of stride 2, norm, 3x3 max-pool."""

import jax

from spinenet_jax.lowering.feature_map import FeatureMap
from spinenet_jax.models.layers import Layers

LEVEL = 2  # of its map
CHANNELS = 64  # in every model, whatever its width


def stem(layers: Layers, images: jax.Array, train: bool) -> FeatureMap:
    """The level-2 map of the images, [B,ceil(H/4),ceil(W/4),64].

    Makes the submodules `stem_conv` and `stem_norm` of the module that calls it.

    Args:
      layers: makes convolutions and norms.
      images: f[B,H,W,3], normalised, any H and W from 1 pixel up.
      train: whether batch norm uses the batch's statistics.
    """
    x = layers.feature_map(images, level=0)
    x = layers.conv(CHANNELS, 7, 2, name='stem_conv')(x)
    x = layers.act(layers.norm(train, name='stem_norm')(x))
    return layers.max_pool(x, 3, 2).settled()
