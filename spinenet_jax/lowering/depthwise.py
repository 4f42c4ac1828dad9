"""Depthwise convolutions as sums of shifted maps, for CPUs, where XLA's grouped ones are slow."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from spinenet_jax.lowering.plain import Pads


@partial(jax.jit, static_argnames=('stride', 'pads', 'dilation', 'groups'))
def conv(
    x: jax.Array,
    kernel: jax.Array,
    *,
    stride: int = 1,
    pads: Pads,
    dilation: int = 1,
    groups: int,
) -> jax.Array:
    """A convolution of each channel by itself.

    One product for each tap of the kernel, which XLA fuses into a single pass over the map. Its
    gradients are such passes as well (docs/cpu_log.md has the times).

    Args:
      x: f[B,H,W,C].
      kernel: f[k,k,1,C].
      stride, pads, dilation: as of `plain.conv`.
      groups: C.

    Raises:
      ValueError: a kernel that joins channels.
    """
    if kernel.shape[2:] != (1, groups) or groups != x.shape[3]:
        raise ValueError(f'depthwise.conv: kernel {kernel.shape} joins channels of {x.shape}')
    taps = kernel.shape[0]
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    batch, height, width, channels = x.shape
    reach = dilation * (taps - 1)
    last = [(side - 1 - reach) // stride * stride + 1 for side in (height, width)]
    total = None
    for i in range(taps):
        for j in range(taps):
            top, left = i * dilation, j * dilation
            seen = lax.slice(
                x,
                (0, top, left, 0),
                (batch, top + last[0], left + last[1], channels),
                (1, stride, stride, 1),
            )
            product = seen * kernel[i, j, 0]
            total = product if total is None else total + product
    return total
