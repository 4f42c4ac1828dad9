"""Mask R-CNN and Cascade Mask R-CNN: a backbone's pyramid, proposals, and heads on regions of it.

Which regions the heads look at is the task's affair (`tasks/instance_segmentation.py`): it calls
the methods below one after the other.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from spinenet_jax.lowering.feature_map import FeatureMap
from spinenet_jax.models.layers import Layers
from spinenet_jax.models.mask_head import MaskHead
from spinenet_jax.models.region_box_head import RegionBoxHead
from spinenet_jax.models.rpn import ProposalHead
from spinenet_jax.ops.region_outputs import select_class

BOX_CROP, MASK_CROP = 7, 14  # samples a side of the regions' crops; masks are twice as large


class MaskRCNN(nn.Module):
    """Two-stage detector with masks (He et al., 2017; SpineNet paper, section 4.2).

    Attributes:
      backbone: images to {level: features}; every level feeds proposals and regions.
      layers: makes the heads' convolutions and norms.
      num_classes: channels of the classifier and of the masks, channel 0 being background.
      anchors_per_cell: anchors at each position of each map.
      head_channels, head_convs: width and depth of the box head and the mask head.
      hidden: width of the box head's fully connected layer.
      proposal_convs: 3x3 convolutions of the region proposal network, `head_channels` wide.
      stages: box heads one after the other; with more than one (Cai and Vasconcelos, 2018) all
        classes share a box.
      proposals, detections: regions of an image that `__call__` runs the heads on.
    """

    backbone: nn.Module
    layers: Layers
    num_classes: int
    anchors_per_cell: int = 3
    head_channels: int = 256
    head_convs: int = 4
    hidden: int = 1024
    proposal_convs: int = 1
    stages: int = 1
    proposals: int = 1000
    detections: int = 100

    def setup(self) -> None:
        channels, convs, layers = self.head_channels, self.head_convs, self.layers
        self.proposal_head = ProposalHead(
            self.anchors_per_cell, channels, self.proposal_convs, layers
        )
        self.box_heads = [
            RegionBoxHead(
                self.num_classes,
                channels,
                convs,
                self.hidden,
                layers,
                shared_boxes=self.stages > 1,
            )
            for _ in range(self.stages)
        ]
        self.mask_head = MaskHead(self.num_classes, channels, convs, layers)

    def features(self, images: jax.Array, *, train: bool) -> dict[int, FeatureMap]:
        """f[B,H,W,3] normalised images to {level: [B,h,w,C]}."""
        return self.backbone(images, train=train)

    def propose(
        self, pyramid: dict[int, FeatureMap], *, train: bool
    ) -> tuple[list[jax.Array], list[jax.Array]]:
        """Logits f32[B,h,w,n] and box codes f32[B,h,w,n*4] of every level's anchors."""
        return self.proposal_head(pyramid, train=train)

    def classify(
        self, pyramid: dict[int, FeatureMap], regions: jax.Array, *, stage: int = 0, train: bool
    ) -> tuple[jax.Array, jax.Array]:
        """What one stage's box head says of regions f32[B,R,4].

        Returns:
          Class logits f32[B,R,K] and box codes f32[B,R,4*K], in a cascade f32[B,R,4].
        """
        crops = self.layers.crop(pyramid, regions, BOX_CROP)
        outputs = self.box_heads[stage](crops, train=train)
        logits, codes = (x.reshape(*regions.shape[:2], -1) for x in outputs)
        return logits, codes

    def masks(
        self,
        pyramid: dict[int, FeatureMap],
        regions: jax.Array,
        classes: jax.Array,
        *,
        train: bool,
    ) -> jax.Array:
        """Mask logits f32[B,R,28,28] of regions f32[B,R,4], of one class i32[B,R] each."""
        crops = self.layers.crop(pyramid, regions, MASK_CROP)
        logits = self.mask_head(crops, train=train)
        return select_class(logits.reshape(*regions.shape[:2], *logits.shape[1:]), classes)

    def __call__(
        self, images: jax.Array, *, train: bool
    ) -> tuple[list[jax.Array], list[jax.Array], list[tuple[jax.Array, jax.Array]], jax.Array]:
        """Every part once, with regions as large as the image: for initialisation and costs.

        Args:
          images: f[B,H,W,3], normalised.
          train: whether batch norm uses (and updates) the batch's statistics.

        Returns:
          What `propose`, `classify` for each stage, and `masks` return.
        """
        batch, height, width, _ = images.shape
        pyramid = self.features(images, train=train)
        logits, codes = self.propose(pyramid, train=train)
        whole = jnp.asarray([0.0, 0.0, height, width], jnp.float32)
        regions = jnp.broadcast_to(whole, (batch, self.proposals, 4))
        found = [
            self.classify(pyramid, regions, stage=stage, train=train)
            for stage in range(self.stages)
        ]
        regions = jnp.broadcast_to(whole, (batch, self.detections, 4))
        classes = jnp.zeros((batch, self.detections), jnp.int32)
        masks = self.masks(pyramid, regions, classes, train=train)
        return logits, codes, found, masks
