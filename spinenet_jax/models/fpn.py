"""Feature pyramid network (Lin et al., 2017) on a ResNet: the baseline's P3 to P7."""

import jax
from flax import linen as nn

from spinenet_jax.lowering.feature_map import FeatureMap
from spinenet_jax.models.layers import Conv, Layers
from spinenet_jax.models.resnet import ResNet


class ResNetFPN(nn.Module):
    """ResNet with top-down connections; P6 and P7 are strided convolutions of P5 and P6.

    Attributes:
      resnet: the backbone.
      layers: makes convolutions and norms.
      channels: of every output map.
      levels: (lowest, highest) output level; lowest at least 2.
    """

    resnet: ResNet
    layers: Layers
    channels: int = 256
    levels: tuple[int, int] = (3, 7)

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> dict[int, FeatureMap]:
        """f[B,H,W,3] to {level: [B,ceil(H/2^l),ceil(W/2^l),channels]}."""
        lowest, highest = self.levels
        maps = self.resnet(images, train=train)
        top = max(maps)
        merged = {}
        for level in range(top, lowest - 1, -1):
            lateral = self._conv(f'lateral{level}', 1)(maps[level])
            if level < top:
                lateral += self.layers.resize(merged[level + 1], lateral.size, level)
            merged[level] = lateral
        pyramid = {level: self._conv(f'output{level}', 3)(x) for level, x in merged.items()}
        for level in range(top + 1, highest + 1):
            x = pyramid[level - 1]
            x = x if level == top + 1 else self.layers.act(x)
            # TF1 pads its ResNet's strided convolutions alike on both sides, but not these.
            same = self.layers._replace(padding='same')
            conv = same.conv(self.channels, 3, 2, name=f'output{level}', use_bias=True)
            pyramid[level] = conv(x).settled()
        return {
            level: self.layers.norm(train, name=f'norm{level}')(pyramid[level])
            for level in range(lowest, highest + 1)
        }

    def _conv(self, name: str, kernel: int) -> Conv:
        return self.layers.conv(self.channels, kernel, name=name, use_bias=True)
