"""Initialisers of kernels, which Flax calls and which can also draw with numpy on the host.

A deep network has hundreds of kernels. Drawn by JAX, each distinct shape is a program of its own to
compile; drawn by numpy, none is (`training/initialisation.py`). The distributions are the same.
"""

import dataclasses
import math
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

CUT = 2.0  # deviations, where truncated normal distributions end
CUT_DEVIATION = 0.87962566103423978  # of a unit normal distribution after that


class HostInitialiser(Protocol):
    """An initialiser that can draw with numpy."""

    def __call__(self, key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
        """As every Flax initialiser."""

    def sample(self, generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """f32[shape] of the same distribution."""


@dataclasses.dataclass(frozen=True)
class Normal:
    """Normal values around zero.

    Attributes:
      stddev: their standard deviation.
    """

    stddev: float

    def __call__(
        self, key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32
    ) -> jax.Array:
        """As `nn.initializers.normal`."""
        return nn.initializers.normal(self.stddev)(key, shape, dtype)

    def sample(self, generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """f32[shape] drawn with numpy."""
        values = generator.standard_normal(shape, np.float32)
        values *= np.float32(self.stddev)
        return values


@dataclasses.dataclass(frozen=True)
class FanIn:
    """Normal values around zero with variance 1 / (inputs of an output), cut at two deviations.

    What TensorFlow calls variance scaling with a truncated normal distribution: values are scaled
    so that the variance is met after the cut. The last axis of a kernel counts outputs.
    """

    def __call__(
        self, key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32
    ) -> jax.Array:
        """As `nn.initializers.variance_scaling(1.0, 'fan_in', 'truncated_normal')`."""
        scaled = nn.initializers.variance_scaling(1.0, 'fan_in', 'truncated_normal')
        return scaled(key, shape, dtype)

    def sample(self, generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """f32[shape] drawn with numpy; values beyond the cut are drawn again."""
        values = generator.standard_normal(shape, np.float32)
        flat = values.reshape(-1)
        beyond = np.flatnonzero(np.abs(flat) > CUT)
        while beyond.size:
            again = generator.standard_normal(beyond.size, np.float32)
            flat[beyond] = again
            beyond = beyond[np.abs(again) > CUT]
        values *= np.float32(1 / (CUT_DEVIATION * math.sqrt(math.prod(shape[:-1]))))
        return values


@dataclasses.dataclass(frozen=True)
class FanOut:
    """Normal values around zero with variance `scale` / (outputs of an input), nothing cut.

    With a scale of 2 what TensorFlow's heads on regions start from. The last axis of a kernel
    counts outputs, those before the last two its taps.

    Attributes:
      scale: above 0.
    """

    scale: float

    def __call__(
        self, key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32
    ) -> jax.Array:
        """As `nn.initializers.variance_scaling(scale, 'fan_out', 'normal')`."""
        return nn.initializers.variance_scaling(self.scale, 'fan_out', 'normal')(key, shape, dtype)

    def sample(self, generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """f32[shape] drawn with numpy."""
        fan_out = math.prod(shape[:-2]) * shape[-1]
        return Normal(math.sqrt(self.scale / fan_out)).sample(generator, shape)


@dataclasses.dataclass(frozen=True)
class GlorotUniform:
    """Uniform values around zero, Keras's default (Glorot and Bengio, 2010).

    Their variance is 2 / (taps * (inputs + outputs)). The last two axes of a kernel count inputs
    and outputs, those before them its taps; a matrix has one.
    """

    def __call__(
        self, key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32
    ) -> jax.Array:
        """As `nn.initializers.glorot_uniform`."""
        return nn.initializers.glorot_uniform()(key, shape, dtype)

    def sample(self, generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """f32[shape] drawn with numpy."""
        *taps, inputs, outputs = shape
        limit = math.sqrt(6.0 / (math.prod(taps) * (inputs + outputs)))
        values = generator.random(shape, np.float32)
        values -= np.float32(0.5)
        values *= np.float32(2.0 * limit)
        return values
