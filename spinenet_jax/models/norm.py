"""How convolutions and batch norms are made, once, for every model of the package.

A `Layers` value is handed down to the blocks; nothing else knows about dtype, the replica axis or
the padding flavour.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from spinenet_jax.errors import UserError
from spinenet_jax.ops.convolution import folded_conv, pointwise_product

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {'relu': nn.relu, 'swish': nn.swish}
# Both public implementations: variance 1/fan_in, truncated normal; not He.
KERNEL_INIT = nn.initializers.variance_scaling(1.0, 'fan_in', 'truncated_normal')
ZERO_INIT = nn.initializers.zeros_init()


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
      pointwise_product: compute 1x1 convolutions as matrix products (faster on CPU and TPU, same
        result).
      fold_stem: compute the 7x7 convolution of the image on 2x2 cells (faster on TPU, same result).
    """

    activation: str = 'relu'
    dtype: jnp.dtype = jnp.float32
    axis_name: str | None = None
    padding: str = 'same'
    momentum: float = 0.99
    epsilon: float = 1e-3
    pointwise_product: bool = False
    fold_stem: bool = False

    def check(self) -> None:
        """Raise `UserError` for an activation or padding that does not exist."""
        for what, value, legal in (
            ('activation', self.activation, tuple(ACTIVATIONS)),
            ('padding', self.padding, ('same', 'symmetric')),
        ):
            if value not in legal:
                raise UserError(f'model.{what}={value!r}: choose one of {", ".join(legal)}')

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
        formulation = None
        if self.pointwise_product and kernel == stride == 1:
            formulation = pointwise_product
        elif self.fold_stem and (kernel, stride) == (7, 2):
            formulation = folded_conv
        return nn.Conv(
            features,
            (kernel, kernel),
            (stride, stride),
            padding=[((kernel - 1) // 2,) * 2] * 2 if symmetric else 'SAME',
            use_bias=use_bias,
            kernel_init=kernel_init,
            bias_init=bias_init,
            dtype=self.dtype,
            conv_general_dilated=formulation,
            name=name,
        )

    def norm(self, train: bool, *, name: str) -> nn.BatchNorm:
        """Batch norm; in training its statistics are those of all replicas of `axis_name`."""
        return nn.BatchNorm(
            use_running_average=not train,
            momentum=self.momentum,
            epsilon=self.epsilon,
            dtype=self.dtype,
            axis_name=self.axis_name if train else None,
            name=name,
        )
