"""The feature pyramid on a ResNet."""

import jax
import numpy as np
from flax import linen as nn

from spinenet_jax.lowering.feature_map import FeatureMap
from spinenet_jax.models.fpn import ResNetFPN
from spinenet_jax.models.layers import Layers


class Maps(nn.Module):
    """Stands for a ResNet: random maps of levels 2 to 5 of an image of 64 x 64 pixels."""

    @nn.compact
    def __call__(self, images, *, train):
        key = jax.random.key(3)
        return {
            level: FeatureMap(jax.random.normal(key, (1, 64 >> level, 64 >> level, 2)), level)
            for level in range(2, 6)
        }


def test_the_originals_pad_the_pyramid_alike():
    """TF1's strided convolutions are padded on both sides, but not those of levels 6 and 7."""
    pyramids = []
    for padding in ('same', 'symmetric'):
        module = ResNetFPN(Maps(), Layers(padding=padding), channels=4)
        variables = module.init(jax.random.key(0), None, train=False)
        found = module.apply(variables, None, train=False)
        pyramids.append({level: np.asarray(x.whole()) for level, x in found.items()})
    assert list(pyramids[0]) == [3, 4, 5, 6, 7]
    for level, want in pyramids[0].items():
        np.testing.assert_array_equal(pyramids[1][level], want)
