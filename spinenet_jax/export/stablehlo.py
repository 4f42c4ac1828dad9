"""Exports to StableHLO, which JAX alone loads and runs on CPUs, GPUs and TPUs."""

import os
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from spinenet_jax.export.detector import Outputs, Request, build_function, policy_for
from spinenet_jax.inference import Trained

FILE = 'model.stablehlo'
PACKAGES = ('flatbuffers',)


def write(trained: Trained, request: Request, folder: str | os.PathLike) -> None:
    """Writes the model with its weights as one file for all platforms of the request."""
    function = build_function(trained, policy_for(request), request)
    dtype = jnp.float32 if request.raw else jnp.uint8
    images = jax.ShapeDtypeStruct(_shape(request), dtype)
    exported = export.export(jax.jit(function), platforms=request.platforms)(images)
    with open(os.path.join(folder, FILE), 'wb') as file:
        file.write(exported.serialize())


def load(folder: str | os.PathLike) -> Callable[[np.ndarray], Outputs]:
    """The function that a file holds."""
    with open(os.path.join(folder, FILE), 'rb') as file:
        return jax.jit(export.deserialize(bytearray(file.read())).call)


def _shape(request: Request) -> Sequence[object]:
    """[B,h,w,3] with symbols where the request leaves a size open."""
    names = ('batch', 'height', 'width')
    sizes = (request.batch, *(request.size or (0, 0)))
    words = [str(size) if size else name for name, size in zip(names, sizes, strict=True)]
    return export.symbolic_shape(', '.join([*words, '3']))
