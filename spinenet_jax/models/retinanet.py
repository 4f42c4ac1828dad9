"""RetinaNet: a backbone's pyramid, and on it a class head and a box head."""

import jax
from flax import linen as nn

from spinenet_jax.models.heads import PRIOR_BIAS, PredictionHead
from spinenet_jax.models.layers import Layers


class RetinaNet(nn.Module):
    """One-stage detector (Lin et al., 2017; SpineNet paper, section 4.1).

    Attributes:
      backbone: images to {level: features}.
      layers: makes the heads' convolutions and norms.
      num_classes: channels of the classifier, channel 0 being background.
      anchors_per_cell: anchors at each position of each map.
      head_channels, head_convs: width and depth of both towers.
      separable_heads: see `heads.PredictionHead`.
    """

    backbone: nn.Module
    layers: Layers
    num_classes: int
    anchors_per_cell: int = 9
    head_channels: int = 256
    head_convs: int = 4
    separable_heads: bool = False

    def setup(self) -> None:
        tower = {
            'channels': self.head_channels,
            'convs': self.head_convs,
            'layers': self.layers,
            'separable': self.separable_heads,
        }
        self.class_head = PredictionHead(
            self.anchors_per_cell * self.num_classes, bias=PRIOR_BIAS, **tower
        )
        self.box_head = PredictionHead(self.anchors_per_cell * 4, **tower)

    def __call__(
        self, images: jax.Array, *, train: bool
    ) -> tuple[list[jax.Array], list[jax.Array]]:
        """Class logits and box codes of every anchor.

        Args:
          images: f[B,H,W,3], normalised.
          train: whether batch norm uses (and updates) the batch's statistics.

        Returns:
          Two lists over levels, lowest first: logits f32[B,h,w,anchors * classes] (anchor-major)
          and box codes f32[B,h,w,anchors * 4] (dy, dx, dh, dw).
        """
        pyramid = self.backbone(images, train=train)
        return self.class_head(pyramid, train=train), self.box_head(pyramid, train=train)
