"""The stem that SpineNet and ResNet share: 7x7 convolution of stride 2, norm, 3x3 max-pool."""

import jax

from spinenet_jax.models.norm import Layers
from spinenet_jax.ops import cells, resample

LEVEL = 2  # of its map
CHANNELS = 64  # in every model, whatever its width


def stem(layers: Layers, images: jax.Array, train: bool) -> tuple[jax.Array, int]:
    """The level-2 map of the images, cut into strips where `layers` asks for them.

    Makes the submodules `stem_conv` and `stem_norm` of the module that calls it.

    Args:
      layers: makes convolutions and norms.
      images: f[B,H,W,3], normalised, any H and W from 1 pixel up.
      train: whether batch norm uses the batch's statistics.

    Returns:
      f[B*S,ceil(H/4),ceil(W/4)/S,64], and S; 1 unless H and W are multiples of 4.
    """
    batch, height, width, _ = images.shape
    on_tpu = layers.platform in ('tpu_v3', 'tpu')
    on_cells = on_tpu and height % cells.SIDE == width % cells.SIDE == 0
    count = layers.strips_at(LEVEL, batch, width // cells.SIDE) if on_cells else 1
    layers = layers._replace(on_cells=on_cells, strips=count)
    x = layers.conv(CHANNELS, 7, 2, name='stem_conv')(images.astype(layers.dtype))
    x = layers.act(layers.norm(train, name='stem_norm')(x))
    if on_cells:
        return cells.max_pool(x, count), count
    return resample.max_pool(x, 3, 2, slices=layers.platform == 'cpu'), count
