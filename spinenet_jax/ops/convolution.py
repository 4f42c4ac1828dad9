"""How a convolution is computed: the arithmetic of `lax`, formulated for the backend at hand."""

import jax
from jax import lax


def conv_general_dilated(lhs: jax.Array, rhs: jax.Array, window_strides, padding, **options):
    """`lax.conv_general_dilated`, for `flax.linen.Conv`."""
    return lax.conv_general_dilated(lhs, rhs, window_strides, padding, **options)
