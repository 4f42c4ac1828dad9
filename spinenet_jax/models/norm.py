"""How convolutions and batch norms are made, once, for every model of the package.

A `Layers` value is handed down to the blocks; nothing else knows about dtype, the replica axis or
the padding flavour.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from spinenet_jax.errors import UserError
from spinenet_jax.models.initialisers import FanIn
from spinenet_jax.ops import cells, convolution_cpu
from spinenet_jax.ops import strips as strip_ops
from spinenet_jax.ops.convolution import pointwise_product
from spinenet_jax.ops.convolution_tpu import strided_conv

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {'relu': nn.relu, 'swish': nn.swish}
# Both public implementations: variance 1/fan_in, truncated normal; not He.
KERNEL_INIT = FanIn()
ZERO_INIT = nn.initializers.zeros_init()
# 1x1 convolutions of smaller batches than this are matrix products (on a TPU, a batch of 8 fills
# the sublanes of its registers by itself).
PRODUCT_BELOW = {'cpu': math.inf, 'tpu_v3': strip_ops.SUBLANES, 'tpu': strip_ops.SUBLANES}
# The deepest level whose maps are cut into strips.
DEEPEST_CUT = {'tpu_v3': 2, 'tpu': math.inf}


class Layers(NamedTuple):
    """What every convolution and batch norm of a model has in common.

    Attributes:
      activation: 'relu' or 'swish'.
      dtype: compute type; parameters stay float32.
      axis_name: replica axis over which batch norm averages its statistics, or None.
      padding: of strided convolutions: 'same' (TensorFlow 2's: the odd pixel at the end) or
        'symmetric' (the TF1 original: (k - 1) // 2 on both sides).
      momentum: weight of the old running statistics, in [0, 1].
      epsilon: added to the variance.
      platform: 'cpu', 'tpu_v3' (and v2) and 'tpu' (v4 and later) compute some convolutions and
        pools in ways that are faster there (same result but for rounding): on all three 1x1
        convolutions as matrix products (ops/convolution.py), on a CPU 3x3 convolutions and
        max-pools (ops/convolution_cpu.py, ops/resample.py), on a TPU the stem, maps of few images
        (level 2, from v4 on all levels) and gradients of strided convolutions (ops/cells.py,
        ops/strips.py, ops/convolution_tpu.py). Others leave all to XLA.
      strips: into how many strips the maps are cut that these layers see.
      images: how many images they see, where the strips differ from map to map and follow from
        this (the heads, whose layers are shared); 0 where `strips` says it.
      on_cells: whether these are the stem's layers, on cells.
    """

    activation: str = 'relu'
    dtype: jnp.dtype = jnp.float32
    axis_name: str | None = None
    padding: str = 'same'
    momentum: float = 0.99
    epsilon: float = 1e-3
    platform: str = 'gpu'
    strips: int = 1
    images: int = 0
    on_cells: bool = False

    def check(self) -> None:
        """Raise `UserError` for an activation or padding that does not exist."""
        for what, value, legal in (
            ('activation', self.activation, tuple(ACTIVATIONS)),
            ('padding', self.padding, ('same', 'symmetric')),
        ):
            if value not in legal:
                raise UserError(f'model.{what}={value!r}: choose one of {", ".join(legal)}')

    def strips_at(self, level: int, images: int, width: int) -> int:
        """Into how many strips the maps of `level` are cut, `images` of them, `width` wide."""
        deepest = DEEPEST_CUT.get(self.platform, 0)
        return strip_ops.count(images, width) if level <= deepest else 1

    def act(self, x: jax.Array) -> jax.Array:
        """The model's activation."""
        return ACTIVATIONS[self.activation](x)

    def conv(
        self,
        features: int,
        kernel: int,
        stride: int = 1,
        *,
        name: str,
        use_bias: bool = False,
        kernel_init: Callable = KERNEL_INIT,
        bias_init: Callable = ZERO_INIT,
    ) -> nn.Conv:
        """A square convolution; 1x1 and 3x3 of stride 1 keep the size, stride s gives ceil(n/s)."""
        symmetric = self.padding == 'symmetric' and stride > 1
        return nn.Conv(
            features,
            (kernel, kernel),
            (stride, stride),
            padding=[((kernel - 1) // 2,) * 2] * 2 if symmetric else 'SAME',
            use_bias=use_bias,
            kernel_init=kernel_init,
            bias_init=bias_init,
            dtype=self.dtype,
            conv_general_dilated=self._formulation(kernel, stride),
            name=name,
        )

    def _formulation(self, kernel: int, stride: int) -> Callable | None:
        """How to compute a convolution; None is XLA's own."""
        if self.on_cells:
            return cells.conv(self.strips)
        if self.images:
            return strip_ops.conv_of(self.images)
        if self.strips > 1:
            return strip_ops.conv(self.strips)
        if self.platform in PRODUCT_BELOW and kernel == stride == 1:
            return functools.partial(pointwise_product, below=PRODUCT_BELOW[self.platform])
        if self.platform in ('tpu_v3', 'tpu') and stride == 2 and kernel > 1:
            return strided_conv
        return convolution_cpu.conv if self.platform == 'cpu' and kernel == 3 else None

    def norm(self, train: bool, *, name: str) -> nn.Module:
        """Batch norm; in training its statistics are those of all replicas of `axis_name`."""
        options = {
            'use_running_average': not train,
            'momentum': self.momentum,
            'epsilon': self.epsilon,
            'dtype': self.dtype,
            'axis_name': self.axis_name if train else None,
            'name': name,
        }
        return CellBatchNorm(**options) if self.on_cells else nn.BatchNorm(**options)


class CellBatchNorm(nn.Module):
    """`nn.BatchNorm` of a map of cells, [B,h,w,positions*C]; same variables, same result.

    Attributes: as `nn.BatchNorm`.
    """

    use_running_average: bool
    momentum: float
    epsilon: float
    dtype: jnp.dtype
    axis_name: str | None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """f[B,h,w,positions*C] to the same shape."""
        channels = x.shape[-1] // cells.POSITIONS
        scale = self.param('scale', nn.initializers.ones, (channels,))
        bias = self.param('bias', nn.initializers.zeros, (channels,))
        mean = self.variable('batch_stats', 'mean', jnp.zeros, (channels,))
        variance = self.variable('batch_stats', 'var', jnp.ones, (channels,))
        if self.use_running_average:
            statistics = mean.value, variance.value
        else:
            statistics = self._statistics(x.astype(jnp.float32))
            if not self.is_initializing():
                for old, new in zip((mean, variance), statistics, strict=True):
                    old.value = self.momentum * old.value + (1 - self.momentum) * new
        shift, spread = statistics
        factor = jax.lax.rsqrt(spread + self.epsilon) * scale
        shift, factor, bias = (jnp.tile(v, cells.POSITIONS) for v in (shift, factor, bias))
        return ((x - shift) * factor + bias).astype(self.dtype)

    def _statistics(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Mean and variance of each channel, over all replicas."""
        moments = jnp.stack([jnp.mean(x, (0, 1, 2)), jnp.mean(x * x, (0, 1, 2))])
        moments = moments.reshape(2, cells.POSITIONS, -1).mean(axis=1)
        if self.axis_name is not None and not self.is_initializing():
            moments = jax.lax.pmean(moments, self.axis_name)
        mean, square = moments
        return mean, jnp.maximum(square - mean * mean, 0.0)
