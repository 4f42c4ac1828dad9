"""Draws the initial variables of a Flax model, kernels on the host and without compiling.

`model.init` under `jax.jit` compiles a random program for every kernel, of which a detector has
more than a hundred. Here kernels whose initialiser can (`models/initialisers.py`) are drawn by
numpy. The network is still traced, for the shapes and for all other variables, but what is left to
compile is zeros and ones.
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from spinenet_jax.models.initialisers import HostInitialiser

Path = tuple[str, ...]  # ('params', 'backbone', 'stem_conv', 'kernel')


class _Kernel(NamedTuple):
    """How a kernel is drawn."""

    initialiser: HostInitialiser
    shape: tuple[int, ...]


def draw_variables(model: nn.Module, image_size: tuple[int, int], seed: int) -> dict[str, Any]:
    """The initial variables of a model, a function of the seed and of each variable's path.

    Args:
      model: called as `model.init(keys, f32[1,H,W,3], train=False)`.
      image_size: (H, W) in pixels.
      seed: any integer.

    Returns:
      {'params': tree, 'batch_stats': tree} of arrays on the default device, as `model.init` gives
      them; only the random numbers are others.

    Raises:
      ValueError: a lifted transformation (`nn.scan`, `nn.vmap`) stacks kernels, so that their
        initialiser does not see the shape that they end up with.
    """
    kernels: dict[Path, _Kernel] = {}
    shapes: dict[Path, tuple[int, ...]] = {}

    def others(key: jax.Array) -> dict[Path, jax.Array]:
        images = jnp.zeros((1, *image_size, 3), jnp.float32)
        with _kernels_left_out(kernels):
            variables = model.init({'params': key}, images, train=False)
        flat = flax.traverse_util.flatten_dict(variables)
        shapes.update({path: value.shape for path, value in flat.items()})
        return {path: value for path, value in flat.items() if path not in kernels}

    values = compile_quickly(others)(jax.random.key(seed))
    drawn = {}
    for path, (initialiser, shape) in kernels.items():
        if shapes[path] != shape:
            raise ValueError(f'{"/".join(path)}: initialised as {shape}, stored as {shapes[path]}')
        drawn[path] = initialiser.sample(_generator(seed, path), shape)
    values |= jax.device_put(drawn)
    return flax.traverse_util.unflatten_dict({path: values[path] for path in shapes})


def compile_quickly(function: Callable) -> Callable:
    """`jax.jit` for a program that runs once: on a CPU it is compiled without optimisation."""
    options = {'xla_backend_optimization_level': 0} if jax.default_backend() == 'cpu' else None
    return jax.jit(function, compiler_options=options)


def _generator(seed: int, path: Path) -> np.random.Generator:
    """The random numbers of one variable."""
    return np.random.default_rng((seed % 2**64, zlib.crc32('/'.join(path).encode())))


@contextlib.contextmanager
def _kernels_left_out(kernels: dict[Path, _Kernel]) -> Iterator[None]:
    """Parameters that can be drawn on the host are noted in `kernels`; they read zeros meanwhile.

    Flax intercepts the methods that a model defines (`nn.intercept_methods`), but not `param`, so
    this is replaced for the time of a trace.
    """
    param = nn.Module.param

    def noting(self: nn.Module, name: str, init_fn: Callable, *arguments, **options):
        if not hasattr(init_fn, 'sample'):
            return param(self, name, init_fn, *arguments, **options)
        kernels['params', *self.path, name] = _Kernel(init_fn, tuple(arguments[0]))
        return param(self, name, lambda _, *given: jnp.zeros(*given), *arguments, **options)

    nn.Module.param = noting
    try:
        yield
    finally:
        nn.Module.param = param
