"""From bytes to the network's input: normalisation on the device."""

import jax
import jax.numpy as jnp
import numpy as np

# ImageNet's channel statistics (RGB, of values in [0, 1]).
MEAN = np.array((0.485, 0.456, 0.406), np.float32)
STDDEV = np.array((0.229, 0.224, 0.225), np.float32)


def normalise(images: jax.Array, content_size: jax.Array) -> jax.Array:
    """(x / 255 - mean) / standard deviation, and zero beyond an image's content.

    Args:
      images: u8[B,H,W,3] RGB; rows and columns beyond the content may hold anything.
      content_size: i32[B,2], height and width of the content, at the top left.

    Returns:
      f32[B,H,W,3].
    """
    scaled = (images.astype(jnp.float32) / 255.0 - MEAN) / STDDEV
    _, height, width, _ = images.shape
    rows = jnp.arange(height)[None, :, None] < content_size[:, 0, None, None]
    columns = jnp.arange(width)[None, None, :] < content_size[:, 1, None, None]
    return jnp.where((rows & columns)[..., None], scaled, 0.0)
