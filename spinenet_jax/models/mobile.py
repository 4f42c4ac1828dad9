"""SpineNet-Mobile's parts (SpineNet paper, appendix): inverted bottlenecks, stem and resampling.

The walker in `spinenet.py` uses them where a graph's blocks are inverted bottlenecks.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from spinenet_jax.lowering.feature_map import FeatureMap
from spinenet_jax.models.dropout import stochastic_depth
from spinenet_jax.models.layers import Layers

EXPAND = 6  # channels of the depthwise convolution, of one that goes in
SQUEEZE = 0.2  # channels between squeeze and excitation, of one that goes in


class InvertedBottleneck(nn.Module):
    """MBConv: 1x1 convolution to six times the width, depthwise 3x3, squeeze-and-excite, 1x1.

    Attributes:
      filters: channels out.
      layers: makes convolutions and norms.
      stride: of the depthwise convolution.
      drop_rate: stochastic depth's rate of this block, in [0, 1).
    """

    filters: int
    layers: Layers
    stride: int = 1
    drop_rate: float = 0.0

    @nn.compact
    def __call__(self, x: FeatureMap, train: bool) -> FeatureMap:
        """[B,H,W,C] to [B,ceil(H/stride),ceil(W/stride),filters], not activated.

        The shortcut is there where it fits: the same width, stride 1.
        """
        layers, shortcut, width = self.layers, x, x.channels
        x = layers.conv(EXPAND * width, 1, name='expand')(x)
        x = layers.act(layers.norm(train, name='norm_expand')(x))
        x = layers.depthwise(self.stride, name='depthwise')(x)
        x = layers.act(layers.norm(train, name='norm_depthwise')(x))
        x = self._excited(x, max(1, int(SQUEEZE * width)))
        x = layers.conv(self.filters, 1, name='project')(x)
        x = layers.norm(train, name='norm_project')(x)
        if self.stride == 1 and self.filters == width:
            x = stochastic_depth(x, self.drop_rate, train=train) + shortcut
        return x

    def _excited(self, x: FeatureMap, squeezed: int) -> FeatureMap:
        """Every channel times a factor in [0, 1] that follows from the means of all channels."""
        layers = self.layers

        def excited(data: jax.Array) -> jax.Array:
            mean = layers.feature_map(jnp.mean(data, axis=(1, 2), keepdims=True), x.level)
            mean = layers.conv(squeezed, 1, name='squeeze', use_bias=True)(mean)
            inner, gate = layers.squeeze_activations
            gates = layers.conv(x.channels, 1, name='excite', use_bias=True)(mean.map(inner))
            return data * gate(gates.data)

        return x.map_images(excited)


class SeparableResample(nn.Module):
    """Bring a parent's map to the size and width of the block it feeds.

    Nearest-neighbour up-sampling, or a depthwise convolution of stride 2 for every halving; then a
    1x1 convolution to the target's width, not activated.

    Attributes:
      channels: channels out.
      level: of the block it feeds.
      layers: makes convolutions and norms.
    """

    channels: int
    level: int
    layers: Layers

    @nn.compact
    def __call__(self, x: FeatureMap, size: tuple[int, int], *, train: bool) -> FeatureMap:
        """[B,H,W,C] to [B,*size,channels]."""
        layers = self.layers
        for n in range(self.level - x.level):
            x = layers.depthwise(2, name=f'down{n}')(x).settled()
            x = layers.act(layers.norm(train, name=f'norm_down{n}')(x))
        x = layers.resize(x, size, self.level)  # where the sizes are right, this does nothing
        x = layers.conv(self.channels, 1, name='conv_out')(x)
        return layers.norm(train, name='norm_out')(x)


def mobile_stem(layers: Layers, images: jax.Array, channels: int, train: bool) -> FeatureMap:
    """The level-1 map of the images, [B,ceil(H/2),ceil(W/2),channels].

    Makes the submodules `stem_conv` and `stem_norm` of the module that calls it.
    """
    x = layers.feature_map(images, level=0)
    x = layers.conv(channels, 3, 2, name='stem_conv')(x)
    return layers.act(layers.norm(train, name='stem_norm')(x)).settled()
