"""Exports to TensorFlow's SavedModel, by jax2tf."""

import os
from collections.abc import Callable

import jax
import numpy as np

from spinenet_jax.export import portable
from spinenet_jax.export.detector import Outputs, Request, build_function, policy_for
from spinenet_jax.inference import Trained

FILE = 'saved_model'
PACKAGES = ('tensorflow',)


def write(trained: Trained, request: Request, folder: str | os.PathLike) -> None:
    """Writes a SavedModel whose signature `serving_default` takes `images`."""
    import tensorflow as tf
    from jax.experimental import jax2tf

    function = build_function(trained, policy_for(request), request, portable.detect)
    size = request.size or (None, None)
    shape = [request.batch or None, *size, 3]
    names = ('b', 'h', 'w', 'c')
    words = [str(n) if n else name for n, name in zip(shape, names, strict=True)]
    converted = jax2tf.convert(
        jax.jit(function),
        polymorphic_shapes=[f'({", ".join(words)})'],
        with_gradient=False,
        native_serialization_platforms=request.platforms,
    )
    dtype = tf.float32 if request.raw else tf.uint8
    module = tf.Module()
    module.detect = tf.function(
        lambda images: converted(images),
        autograph=False,
        input_signature=[tf.TensorSpec(shape, dtype, 'images')],
    )
    tf.saved_model.save(module, os.path.join(folder, FILE), signatures=module.detect)


def load(folder: str | os.PathLike) -> Callable[[np.ndarray], Outputs]:
    """The signature that a SavedModel holds."""
    import tensorflow as tf

    module = tf.saved_model.load(os.path.join(folder, FILE))
    serve = module.signatures['serving_default']

    def run(images: np.ndarray) -> Outputs:
        found = serve(images=tf.constant(images))
        return jax.tree.map(lambda tensor: tensor.numpy(), dict(found))

    run.module = module  # TensorFlow frees variables with the object that holds them
    return run
