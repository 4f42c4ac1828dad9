"""The second stage's box head: which class a region shows, and where exactly its box is."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from spinenet_jax.lowering.feature_map import FeatureMap
from spinenet_jax.models.initialisers import FanOut, GlorotUniform, Normal
from spinenet_jax.models.layers import Layers

CONV_INIT, HIDDEN_INIT = FanOut(2.0), GlorotUniform()
CLASS_INIT, BOX_INIT = Normal(0.01), Normal(0.001)


class RegionBoxHead(nn.Module):
    """3x3 convolutions, a fully connected layer, and two linear predictors.

    Attributes:
      num_classes: channels of the classifier, channel 0 being background.
      channels, convs: width and number of the convolutions.
      hidden: width of the fully connected layer.
      layers: makes convolutions and norms.
      shared_boxes: whether one box code serves all classes, as in a cascade.
    """

    num_classes: int
    channels: int
    convs: int
    hidden: int
    layers: Layers
    shared_boxes: bool = False

    @nn.compact
    def __call__(self, x: FeatureMap, *, train: bool) -> tuple[jax.Array, jax.Array]:
        """Crops [R,s,s,C] to logits f32[R,K] and box codes f32[R,4*K], class by class.

        With `shared_boxes` the codes are f32[R,4].
        """
        layers = self.layers
        for j in range(self.convs):
            name = f'conv{j}'
            x = layers.conv(self.channels, 3, name=name, use_bias=True, kernel_init=CONV_INIT)(x)
            x = layers.act(layers.norm(train, name=f'norm{j}')(x))
        flat = x.whole().reshape(x.images, -1)
        flat = nn.Dense(self.hidden, dtype=layers.dtype, kernel_init=HIDDEN_INIT, name='hidden')(
            flat
        )
        x = layers.feature_map(flat[:, None, None], x.level)
        flat = layers.act(layers.norm(train, name='norm_hidden')(x)).whole()[:, 0, 0]
        codes = 4 * (1 if self.shared_boxes else self.num_classes)
        outputs = (
            nn.Dense(width, dtype=layers.dtype, kernel_init=init, name=name)(flat)
            for name, width, init in (
                ('class', self.num_classes, CLASS_INIT),
                ('box', codes, BOX_INIT),
            )
        )
        logits, codes = (output.astype(jnp.float32) for output in outputs)
        return logits, codes
