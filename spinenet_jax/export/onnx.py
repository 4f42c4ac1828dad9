"""Exports to ONNX by jax2onnx, run by onnxruntime."""

import dataclasses
import logging
import os
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import jaxpr_as_fun

from spinenet_jax.export import portable
from spinenet_jax.export.detector import Outputs, Request, build_function
from spinenet_jax.inference import Trained
from spinenet_jax.lowering.policy import PLAIN

FILE = 'model.onnx'
PACKAGES = ('jax2onnx', 'onnx', 'onnxruntime')
# jax2onnx takes the channels of a max-pool for one of its sides.
POLICY = dataclasses.replace(PLAIN, name='onnx', shifted_pools=True)


def write(trained: Trained, request: Request, folder: str | os.PathLike) -> None:
    """Writes a file of standard operations for images of one number and size.

    The converter is given a traced program: it replaces functions of Flax and JAX while it traces a
    model itself, and gets some of them wrong.
    """
    import onnx
    from jax2onnx import to_onnx

    # Of every value whose shape it has not noted down; such values are given no type.
    logging.getLogger('onnx_ir').setLevel(logging.ERROR)
    function = build_function(trained, POLICY, request, portable.detect_one_by_one)
    dtype = jnp.float32 if request.raw else jnp.uint8
    images = jax.ShapeDtypeStruct((request.batch, *request.size, 3), dtype)
    program, outputs = jax.make_jaxpr(function, return_shape=True)(images)
    model = to_onnx(
        jaxpr_as_fun(program),
        [images],
        model_name='detector',
        input_names=['images'],
        output_names=[path[0].key for path, _ in jax.tree.leaves_with_path(outputs)],
    )
    onnx.save(model, os.path.join(folder, FILE))


def load(folder: str | os.PathLike) -> Callable[[np.ndarray], Outputs]:
    """The function that a file holds, run by onnxruntime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # it warns of every constant that it folds
    session = onnxruntime.InferenceSession(
        os.path.join(folder, FILE), options, providers=['CPUExecutionProvider']
    )
    names = [output.name for output in session.get_outputs()]

    def run(images: np.ndarray) -> Outputs:
        return dict(zip(names, session.run(names, {'images': images}), strict=True))

    return run
