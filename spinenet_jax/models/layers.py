"""Convolutions, norms, activations, pools and resizing, as every model of the package has them.

A `Layers` value holds what a model's layers have in common and is handed down to its blocks. What
it makes works on feature maps, and leaves how to compute them to `lowering/`.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.dtypes import promote_dtype

from spinenet_jax.errors import UserError
from spinenet_jax.lowering import operations
from spinenet_jax.lowering.feature_map import FeatureMap
from spinenet_jax.lowering.policy import PLAIN, Policy
from spinenet_jax.models.batch_norm import BatchNorm
from spinenet_jax.models.initialisers import FanIn, GlorotUniform
from spinenet_jax.models.parameters import parameter

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {'relu': nn.relu, 'swish': nn.swish}
# Both public implementations: variance 1/fan_in, truncated normal; not He.
KERNEL_INIT = FanIn()
# TF1's, of every depthwise and separable convolution: 2 / (9 * (channels + 1)).
SEPARABLE_INIT = GlorotUniform()
ZERO_INIT = nn.initializers.zeros_init()


def garden_hard_sigmoid(x: jax.Array) -> jax.Array:
    """The Model Garden's hard sigmoid; its constant makes outputs 2e-5 larger than a sixth does."""
    return nn.relu6(x + 3.0) * 0.16667


# Of squeeze-and-excite: what follows the squeezing convolution, and the gate. The first is the
# paper's and TF1's, the second the Model Garden's.
SQUEEZE_ACTIVATIONS: dict[str, tuple[Callable[[jax.Array], jax.Array], ...]] = {
    'sigmoid': (nn.swish, nn.sigmoid),
    'hard_sigmoid': (nn.relu, garden_hard_sigmoid),
}


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
      squeeze_gate: of squeeze-and-excite, a key of `SQUEEZE_ACTIVATIONS`.
      policy: how the device that the model runs on computes best; changes no result.
    """

    activation: str = 'relu'
    dtype: jnp.dtype = jnp.float32
    axis_name: str | None = None
    padding: str = 'same'
    momentum: float = 0.99
    epsilon: float = 1e-3
    squeeze_gate: str = 'sigmoid'
    policy: Policy = PLAIN

    def check(self) -> None:
        """Raise `UserError` for an activation or padding that does not exist."""
        for what, value, legal in (
            ('activation', self.activation, tuple(ACTIVATIONS)),
            ('padding', self.padding, ('same', 'symmetric')),
        ):
            if value not in legal:
                raise UserError(f'model.{what}={value!r}: choose one of {", ".join(legal)}')

    def feature_map(self, data: jax.Array, level: int) -> FeatureMap:
        """A plain array f[B,H,W,C] as a feature map; images are level 0."""
        return FeatureMap(data, level, self.policy)

    @property
    def squeeze_activations(self) -> tuple[Callable[[jax.Array], jax.Array], ...]:
        """What follows the squeezing convolution, and the gate."""
        return SQUEEZE_ACTIVATIONS[self.squeeze_gate]

    def act(self, x: FeatureMap) -> FeatureMap:
        """The model's activation."""
        return x.map(ACTIVATIONS[self.activation])

    def conv(
        self,
        features: int,
        kernel_size: int,
        stride: int = 1,
        *,
        name: str,
        use_bias: bool = False,
        kernel_init: Callable = KERNEL_INIT,
        bias_init: Callable = ZERO_INIT,
    ) -> 'Conv':
        """A square convolution; 1x1 and 3x3 of stride 1 keep the size, stride s gives ceil(n/s)."""
        return Conv(
            features,
            kernel_size,
            stride,
            padding=self.padding,
            dtype=self.dtype,
            use_bias=use_bias,
            kernel_init=kernel_init,
            bias_init=bias_init,
            name=name,
        )

    def depthwise(
        self, stride: int = 1, *, name: str, kernel_init: Callable = SEPARABLE_INIT
    ) -> 'Depthwise':
        """A 3x3 convolution of each channel by itself."""
        return Depthwise(
            stride, padding=self.padding, dtype=self.dtype, kernel_init=kernel_init, name=name
        )

    def separable_conv(
        self,
        features: int,
        *,
        name: str,
        kernel_init: Callable = SEPARABLE_INIT,
        bias_init: Callable = ZERO_INIT,
    ) -> 'SeparableConv':
        """A 3x3 convolution of each channel by itself, then a 1x1 convolution with a bias."""
        return SeparableConv(features, self, kernel_init, bias_init, name=name)

    def doubling_conv(
        self, features: int, *, name: str, kernel_init: Callable = KERNEL_INIT
    ) -> 'DoublingConv':
        """A transposed 2x2 convolution of stride 2, with a bias: both sides double."""
        return DoublingConv(features, dtype=self.dtype, kernel_init=kernel_init, name=name)

    def crop(self, pyramid: dict[int, FeatureMap], regions: jax.Array, size: int) -> FeatureMap:
        """ROIAlign: regions f32[B,R,4] of a pyramid {level: [B,h,w,C]} as maps [B*R,size,size,C].

        All regions of the first image come first. See `ops.roi_align`.
        """
        return operations.crop(pyramid, regions, size)

    def norm(self, train: bool, *, name: str) -> Callable[[FeatureMap], FeatureMap]:
        """Batch norm; in training its statistics are those of all replicas of `axis_name`."""

        def apply(x: FeatureMap) -> FeatureMap:
            return x.map(
                BatchNorm(
                    use_running_average=not train,
                    momentum=self.momentum,
                    epsilon=self.epsilon,
                    dtype=self.dtype,
                    axis_name=self.axis_name if train else None,
                    positions=x.layout.positions,
                    name=name,
                )
            )

        return apply

    def max_pool(self, x: FeatureMap, window: int, stride: int) -> FeatureMap:
        """Max-pool with 'same' padding: n positions give ceil(n / stride)."""
        return operations.max_pool(x, window, stride)

    def resize(self, x: FeatureMap, size: tuple[int, int], level: int) -> FeatureMap:
        """Nearest-neighbour resize to (height, width), which is a map of `level`."""
        return operations.resize(x, size, level)


class Conv(nn.Module):
    """A square convolution of feature maps; its parameters are `nn.Conv`'s.

    Attributes:
      features: channels out.
      kernel_size: odd.
      stride: 1 or a power of 2.
      padding: 'same' or 'symmetric', see `Layers`.
      dtype: compute type.
      use_bias, kernel_init, bias_init: as of `nn.Conv`.
    """

    features: int
    kernel_size: int
    stride: int
    padding: str
    dtype: jnp.dtype
    use_bias: bool
    kernel_init: Callable
    bias_init: Callable

    @nn.compact
    def __call__(self, x: FeatureMap) -> FeatureMap:
        """[B,H,W,C] to [B,ceil(H/stride),ceil(W/stride),features]."""
        shape = (self.kernel_size, self.kernel_size, x.channels, self.features)
        kernel = parameter(self, 'kernel', self.kernel_init, shape)
        bias = None
        if self.use_bias:
            bias = parameter(self, 'bias', self.bias_init, (self.features,))
        data, kernel, bias = promote_dtype(x.data, kernel, bias, dtype=self.dtype)
        x = x.map(lambda _: data)
        x = operations.conv(x, kernel, stride=self.stride, padding=self.padding)
        return x if bias is None else x.map(lambda data: data + bias.reshape(1, 1, 1, -1))


class Depthwise(nn.Module):
    """A 3x3 convolution of each channel by itself, without a bias.

    Attributes:
      stride: 1 or 2.
      padding: 'same' or 'symmetric', see `Layers`.
      dtype: compute type.
      kernel_init: of the kernel [3,3,1,C].
    """

    stride: int
    padding: str
    dtype: jnp.dtype
    kernel_init: Callable

    @nn.compact
    def __call__(self, x: FeatureMap) -> FeatureMap:
        """[B,H,W,C] to [B,ceil(H/stride),ceil(W/stride),C]."""
        kernel = parameter(self, 'kernel', self.kernel_init, (3, 3, 1, x.channels))
        data, kernel = promote_dtype(x.data, kernel, dtype=self.dtype)
        return operations.conv(
            x.map(lambda _: data),
            kernel,
            stride=self.stride,
            padding=self.padding,
            groups=x.channels,
        )


class SeparableConv(nn.Module):
    """A 3x3 convolution of each channel by itself, then a 1x1 convolution with a bias.

    Attributes:
      features: channels out.
      layers: makes the two convolutions.
      kernel_init, bias_init: of both kernels, and of the bias.
    """

    features: int
    layers: Layers
    kernel_init: Callable
    bias_init: Callable

    @nn.compact
    def __call__(self, x: FeatureMap) -> FeatureMap:
        """[B,H,W,C] to [B,H,W,features]."""
        x = self.layers.depthwise(name='depthwise', kernel_init=self.kernel_init)(x)
        return self.layers.conv(
            self.features,
            1,
            name='pointwise',
            use_bias=True,
            kernel_init=self.kernel_init,
            bias_init=self.bias_init,
        )(x)


class DoublingConv(nn.Module):
    """A transposed 2x2 convolution of stride 2: every position becomes a square of four.

    Attributes:
      features: channels out.
      dtype: compute type.
      kernel_init: of the kernel [2,2,C,features].
    """

    features: int
    dtype: jnp.dtype
    kernel_init: Callable

    @nn.compact
    def __call__(self, x: FeatureMap) -> FeatureMap:
        """[B,H,W,C] to [B,2*H,2*W,features]."""
        shape = (2, 2, x.channels, self.features)
        kernel = parameter(self, 'kernel', self.kernel_init, shape)
        bias = parameter(self, 'bias', ZERO_INIT, (self.features,))
        data, kernel, bias = promote_dtype(x.data, kernel, bias, dtype=self.dtype)
        x = operations.doubling_conv(x.map(lambda _: data), kernel)
        return x.map(lambda data: data + bias)
