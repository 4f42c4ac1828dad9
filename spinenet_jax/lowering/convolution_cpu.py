"""3x3 convolutions for CPUs, where XLA's own are slow, above all their gradient by the kernel.

What was measured is in docs/cpu_log.md. A wide convolution of stride 1 takes 16 multiplications
where the plain sum has 36 (Winograd's F(2x2, 3x3)), and so do its gradients; with a stride, or in
bfloat16, a wide gradient by a kernel is nine matrix products. Each shape of these costs one to two
seconds to compile, a plain convolution a tenth, so whatever is small or narrow is left to XLA.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from spinenet_jax.lowering.plain import NHWC, Pads

# Below these a convolution is as fast plainly: narrower ones in time, smaller ones so nearly that
# what they gain is not worth the time it takes to compile them.
LEAST_CHANNELS, LEAST_MULTIPLICATIONS = 64, 500_000_000
# Narrower gradients by the kernel are slower as matrix products, which are as narrow as they are.
LEAST_CHANNELS_BY_KERNEL = 128


@partial(jax.jit, static_argnames=('stride', 'pads', 'dilation', 'groups'))
def conv(
    x: jax.Array,
    kernel: jax.Array,
    *,
    stride: int = 1,
    pads: Pads,
    dilation: int = 1,
    groups: int = 1,
) -> jax.Array:
    """A 3x3 convolution.

    With stride 1, each 2x2 square of the result comes from the 4x4 square of the input around it:
    both are transformed by sums and differences, and 16 matrix products take the place of 36
    multiplications (Lavin and Gray, 2016, section 4.1). The same sums in another order: results
    differ by rounding, no more than those of two direct orders do. The gradient by the input is
    computed alike; that by the kernel is the transpose of all this, 16 products again. Small,
    narrow or bfloat16 maps, and strides, are convolved plainly.

    Args:
      x: f[B,H,W,C].
      kernel: f[3,3,C,D].
      stride, pads, dilation, groups: as of `plain.conv`; with stride 1, one zero on every side.

    Raises:
      ValueError: another kernel, dilation, groups, or padding that changes the size.
    """
    keeps_size = stride > 1 or tuple(pads) == ((1, 1), (1, 1))
    if kernel.shape[:2] != (3, 3) or dilation != 1 or groups != 1 or not keeps_size:
        raise ValueError(
            f'convolution_cpu.conv computes 3x3 convolutions, not kernel {kernel.shape}, stride '
            f'{stride}, pads {pads}, dilation {dilation}, groups {groups}'
        )
    return _conv(x, kernel, (stride, stride), pads)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _conv(x: jax.Array, kernel: jax.Array, strides: tuple[int, int], pads: Pads) -> jax.Array:
    if strides == (1, 1) and _gains(x, kernel):
        return _winograd(x, kernel)
    return _plain(x, kernel, strides, pads)


def _forward(
    x: jax.Array, kernel: jax.Array, strides: tuple[int, int], pads: Pads
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _conv(x, kernel, strides, pads), (x, kernel)


def _backward(
    strides: tuple[int, int],
    pads: Pads,
    saved: tuple[jax.Array, jax.Array],
    gradient: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    if strides == (1, 1):
        by_input = _conv(gradient, kernel[::-1, ::-1].swapaxes(2, 3), strides, pads)
    else:
        by_input = jax.vjp(lambda x: _plain(x, kernel, strides, pads), x)[1](gradient)[0]
    large = gradient.size * kernel.size // kernel.shape[3] >= LEAST_MULTIPLICATIONS
    if large and min(kernel.shape[2:]) >= LEAST_CHANNELS_BY_KERNEL:
        if strides == (1, 1) and _gains(x, kernel):
            return by_input, jax.linear_transpose(partial(_winograd, x), kernel)(gradient)[0]
        return by_input, _by_kernel(x, gradient, strides, pads)
    return by_input, jax.vjp(lambda k: _plain(x, k, strides, pads), kernel)[1](gradient)[0]


_conv.defvjp(_forward, _backward)


def _gains(x: jax.Array, kernel: jax.Array) -> bool:
    """Whether Winograd's way is faster than the plain one, and exact enough."""
    large = x.size // x.shape[3] * kernel.size >= LEAST_MULTIPLICATIONS
    wide = min(kernel.shape[2:]) >= LEAST_CHANNELS
    return x.dtype == jnp.float32 and wide and large


def _plain(x: jax.Array, kernel: jax.Array, strides: tuple[int, int], pads: Pads) -> jax.Array:
    return lax.conv_general_dilated(x, kernel, strides, pads, dimension_numbers=NHWC)


def _by_kernel(
    x: jax.Array, gradient: jax.Array, strides: tuple[int, int], pads: Pads
) -> jax.Array:
    """The gradient f[3,3,C,D], one product over all positions for each of the nine taps."""
    batch, rows, columns, features = gradient.shape
    channels = x.shape[3]
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    gradient = gradient.reshape(-1, features)

    def tap(i: int, j: int) -> jax.Array:
        last = (i + (rows - 1) * strides[0] + 1, j + (columns - 1) * strides[1] + 1)
        seen = lax.slice(x, (0, i, j, 0), (batch, *last, channels), (1, *strides, 1))
        return lax.dot_general(
            seen.reshape(-1, channels), gradient, dimension_numbers=(((0,), (0,)), ((), ()))
        )

    return jnp.stack([jnp.stack([tap(i, j) for j in range(3)]) for i in range(3)])


def _winograd(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The convolution of f[B,H,W,C] with f[3,3,C,D]."""
    batch, height, width, channels = x.shape
    rows, columns = -(-height // 2), -(-width // 2)
    pads = ((0, 0), (1, 2 * rows - height + 1), (1, 2 * columns - width + 1), (0, 0))
    x = jnp.pad(x, pads)
    products = []
    for line, kernel_line in zip(
        _input_transform(x, 1, rows), _kernel_transform(kernel, 0), strict=True
    ):
        pairs = zip(
            _input_transform(line, 2, columns), _kernel_transform(kernel_line, 0), strict=True
        )
        products.append(
            [
                jnp.dot(cell.reshape(-1, channels), matrix).reshape(batch, rows, columns, -1)
                for cell, matrix in pairs
            ]
        )
    lines = [_output_transform(line) for line in products]  # four lines of (even, odd) columns
    even_columns, odd_columns = (_output_transform([line[i] for line in lines]) for i in (0, 1))
    squares = [
        jnp.stack([even, odd], axis=3) for even, odd in zip(even_columns, odd_columns, strict=True)
    ]
    result = jnp.stack(squares, axis=2).reshape(batch, 2 * rows, 2 * columns, -1)
    return result[:, :height, :width]


def _input_transform(x: jax.Array, axis: int, count: int) -> list[jax.Array]:
    """Winograd's B^T d along `axis`: four sums of each of `count` windows of 4, 2 apart."""
    a, b, c, d = (
        lax.slice_in_dim(x, start, start + 2 * count - 1, 2, axis=axis) for start in range(4)
    )
    return [a - c, b + c, c - b, b - d]


def _kernel_transform(kernel: jax.Array, axis: int) -> list[jax.Array]:
    """Winograd's G g along `axis`, which is removed: four sums of the 3 taps."""
    first, middle, last = (lax.index_in_dim(kernel, i, axis, keepdims=False) for i in range(3))
    ends = first + last
    return [first, 0.5 * (ends + middle), 0.5 * (ends - middle), last]


def _output_transform(products: list[jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Winograd's A^T m: even and odd positions of the result, from the four products."""
    a, b, c, d = products
    return a + b + c, b - c - d
