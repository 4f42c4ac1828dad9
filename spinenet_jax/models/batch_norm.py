"""Batch norm as a Flax module with the variables of `flax.linen.BatchNorm`."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from spinenet_jax.lowering import batch_norm
from spinenet_jax.models.parameters import parameter


class BatchNorm(nn.Module):
    """Batch norm of maps, also of maps that hold several positions in their channels.

    With such positions on an axis of their own the result would be the same, at the price of copies
    from and to a layout in which few channels fill half of a TPU's lanes.

    Attributes:
      use_running_average, momentum, epsilon, dtype, axis_name: as of `flax.linen.BatchNorm`.
      positions: how many are folded into the channels.
    """

    use_running_average: bool
    momentum: float
    epsilon: float
    dtype: jnp.dtype
    axis_name: str | None
    positions: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """f[B,h,w,positions*C] to the same shape."""
        shape = (x.shape[-1] // self.positions,)
        scale = parameter(self, 'scale', nn.initializers.ones, shape)
        bias = parameter(self, 'bias', nn.initializers.zeros, shape)
        mean = self.variable('batch_stats', 'mean', jnp.zeros, shape)
        variance = self.variable('batch_stats', 'var', jnp.ones, shape)
        running = mean.value, variance.value
        options = {'epsilon': self.epsilon, 'dtype': self.dtype, 'positions': self.positions}
        if self.use_running_average:
            return batch_norm.by_running(x, scale, bias, running, **options)
        first = self.is_initializing()
        axis_name = None if first else self.axis_name
        x, updated = batch_norm.by_batch(
            x, scale, bias, running, momentum=self.momentum, axis_name=axis_name, **options
        )
        if not first:
            mean.value, variance.value = updated
        return x
