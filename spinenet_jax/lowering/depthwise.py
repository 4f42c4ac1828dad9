"""Depthwise convolutions as sums of shifted maps, for CPUs, where XLA's grouped ones are slow."""

from collections.abc import Iterator
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

    One product for each tap of the kernel, which XLA fuses into a single pass over the map. The
    gradient by the map is such a pass as well, that by the kernel a single sum of as many products
    (docs/cpu_log.md has the times).

    Args:
      x: f[B,H,W,C].
      kernel: f[k,k,1,C].
      stride, pads, dilation: as of `plain.conv`; no padding is wider than the kernel reaches.
      groups: C.

    Raises:
      ValueError: a kernel that joins channels.
    """
    if kernel.shape[2:] != (1, groups) or groups != x.shape[3]:
        raise ValueError(f'depthwise.conv: kernel {kernel.shape} joins channels of {x.shape}')
    return _conv(x, kernel, stride, tuple(map(tuple, pads)), dilation)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _conv(x: jax.Array, kernel: jax.Array, stride: int, pads: Pads, dilation: int) -> jax.Array:
    products = [
        seen * tap
        for seen, tap in zip(
            _seen_by_taps(x, kernel.shape[0], stride, pads, dilation),
            kernel.reshape(-1, kernel.shape[3]),
            strict=True,
        )
    ]
    return sum(products[1:], products[0])


def _forward(
    x: jax.Array, kernel: jax.Array, stride: int, pads: Pads, dilation: int
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _conv(x, kernel, stride, pads, dilation), (x, kernel)


def _backward(
    stride: int,
    pads: Pads,
    dilation: int,
    saved: tuple[jax.Array, jax.Array],
    gradient: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    taps = kernel.shape[0]
    seen = _seen_by_taps(x, taps, stride, pads, dilation)
    wide = gradient.astype(jnp.float32)
    # One reduction of many operands: each by itself would first write the map as its tap sees it.
    sums = lax.reduce(
        tuple(part * wide for part in seen),
        (jnp.float32(0),) * taps**2,
        lambda total, part: tuple(map(lax.add, total, part)),
        (0, 1, 2),
    )
    by_kernel = jnp.stack(sums).reshape(kernel.shape).astype(kernel.dtype)
    # The convolution of the gradient, with zeros in between, by the turned kernel.
    apart = [(0, 0, 0), (0, 0, stride - 1), (0, 0, stride - 1), (0, 0, 0)]
    gradient = lax.pad(gradient, jnp.zeros((), gradient.dtype), apart)
    around = tuple(
        (dilation * (taps - 1) - before, size + before - spread)
        for (before, _), size, spread in zip(pads, x.shape[1:3], gradient.shape[1:3], strict=True)
    )
    return _conv(gradient, kernel[::-1, ::-1], 1, around, dilation), by_kernel


_conv.defvjp(_forward, _backward)


def _seen_by_taps(
    x: jax.Array, taps: int, stride: int, pads: Pads, dilation: int
) -> Iterator[jax.Array]:
    """The values of f[B,H,W,C] under each tap of a taps x taps kernel, f[B,h,w,C] each."""
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    batch, height, width, channels = x.shape
    reach = dilation * (taps - 1)
    last = [(side - 1 - reach) // stride * stride + 1 for side in (height, width)]
    for top in range(0, reach + 1, dilation):
        for left in range(0, reach + 1, dilation):
            yield lax.slice(
                x,
                (0, top, left, 0),
                (batch, top + last[0], left + last[1], channels),
                (1, stride, stride, 1),
            )
