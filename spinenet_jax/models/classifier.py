"""Image classifier: all levels of a backbone averaged into one vector, and a linear layer on it."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from spinenet_jax.lowering.feature_map import FeatureMap
from spinenet_jax.models.initialisers import Normal
from spinenet_jax.models.resnet import ResNet
from spinenet_jax.ops import resample

HEAD_INIT = Normal(0.01)


class Classifier(nn.Module):
    """The backbone of a detector, transferred to classification (SpineNet paper, section 5).

    Attributes:
      backbone: images to {level: features}, all of the same width.
      num_classes: outputs; by custom 0 is background, which no image is.
    """

    backbone: nn.Module
    num_classes: int

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """f[B,H,W,3] normalised images to logits f32[B,num_classes].

        Args:
          images: any size from 1 pixel up; published results are at 224.
          train: whether batch norm uses (and updates) the batch's statistics.
        """
        pyramid = self.backbone(images, train=train)
        features = aggregate({level: x.whole() for level, x in pyramid.items()})
        pooled = jnp.mean(features, axis=(1, 2), dtype=jnp.float32)
        return nn.Dense(self.num_classes, kernel_init=HEAD_INIT, name='head')(pooled)


def aggregate(pyramid: dict[int, jax.Array]) -> jax.Array:
    """The mean of all levels, at the size of the lowest.

    From the highest level down, what was added up so far is resized (nearest neighbour) to the
    next level's size and that level is added, as the TF1 original does it: where a size is not
    twice the one above (4 to 7 at 224 pixels), this differs from resizing each level once.

    Args:
      pyramid: {level: f[B,h,w,C]}, at least one; higher levels are not larger.

    Returns:
      f[B,h,w,C] of the lowest level's size.
    """
    total = None
    for _, features in sorted(pyramid.items(), reverse=True):
        size = features.shape[1:3]
        total = features if total is None else resample.nearest(total, size) + features
    return total / len(pyramid)


class TopMap(nn.Module):
    """A ResNet's last map alone: its classification features (He et al., 2016).

    `resnet` keeps the parameter path that it has inside a feature pyramid network, so that weights
    move from one to the other.
    """

    resnet: ResNet

    def __call__(self, images: jax.Array, *, train: bool) -> dict[int, FeatureMap]:
        """f[B,H,W,3] to {5: C5}."""
        maps = self.resnet(images, train=train)
        return {max(maps): maps[max(maps)]}
