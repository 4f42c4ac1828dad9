"""XLA's own convolution, which every other formulation of this folder equals but for rounding."""

import jax
from jax import lax

Pads = tuple[tuple[int, int], tuple[int, int]]  # (before, after) of rows, then of columns

NHWC = ('NHWC', 'HWIO', 'NHWC')


def conv(
    x: jax.Array,
    kernel: jax.Array,
    *,
    stride: int = 1,
    pads: Pads,
    dilation: int = 1,
    groups: int = 1,
) -> jax.Array:
    """A convolution.

    Args:
      x: f[B,H,W,C].
      kernel: f[k,k,C/groups,D].
      stride: rows, and columns, from one result to the next.
      pads: zeros around the map.
      dilation: rows, and columns, from one tap of the kernel to the next.
      groups: into how many groups the channels fall; each is convolved on its own.

    Returns:
      f[B,h,w,D].
    """
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        pads,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=NHWC,
        feature_group_count=groups,
    )


def pads_of(
    size: tuple[int, int], kernel_size: int, stride: int, padding: str, dilation: int = 1
) -> Pads:
    """The zeros around a map of `size` (height, width), so that n positions give ceil(n / stride).

    Args:
      size: of the map.
      kernel_size: of the square kernel; odd.
      stride, dilation: of the convolution.
      padding: 'same', as TensorFlow 2 pads: of an odd number of zeros the larger part comes last;
        or 'symmetric', as the TF1 original pads strided convolutions: as many on both sides.
    """
    reach = dilation * (kernel_size - 1) + 1
    if padding == 'symmetric' and stride > 1:
        return ((reach - 1) // 2,) * 2, ((reach - 1) // 2,) * 2
    rows, columns = lax.padtype_to_pads(size, (reach, reach), (stride, stride), 'SAME')
    return rows, columns
