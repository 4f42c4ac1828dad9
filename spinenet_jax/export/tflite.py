"""Exports to LiteRT (TensorFlow Lite): the network by jax2tf, suppression by TensorFlow's own."""

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from spinenet_jax.export import portable
from spinenet_jax.export.detector import Outputs, Request, build_candidates, build_function
from spinenet_jax.inference import Trained
from spinenet_jax.lowering.policy import PLAIN
from spinenet_jax.tasks.detection import DetectionTask

if TYPE_CHECKING:
    import tensorflow as tf

FILE = 'model.tflite'
PACKAGES = ('tensorflow', 'ai_edge_litert')
CANDIDATES = 5000  # anchors, and pairs of anchor and class, that suppression looks at


def write(trained: Trained, request: Request, folder: str | os.PathLike) -> None:
    """Writes a file of builtin operations alone, for images of one number and size.

    LiteRT knows no sort of JAX's, so that candidates are chosen by `tf.math.top_k` and suppressed
    by `NonMaxSuppressionV5`, each class in a place of its own. Unlike `ops.detections.detect` it
    looks at the 5,000 best candidates and no others, and equal scores may come in another order.
    """
    import tensorflow as tf
    from jax.experimental import jax2tf

    def converted(function):
        return jax2tf.convert(
            function, with_gradient=False, native_serialization_platforms=('cpu',)
        )

    if request.raw:
        run = converted(build_function(trained, PLAIN, request, portable.detect))
    else:
        candidates = converted(build_candidates(trained, PLAIN))

        def run(images):
            return _suppressed(trained.task, candidates(images), request)

    spec = tf.TensorSpec(
        (request.batch, *request.size, 3), tf.float32 if request.raw else tf.uint8, 'images'
    )
    module = tf.Module()
    module.serve = tf.function(run, autograph=False, input_signature=[spec])
    concrete = module.serve.get_concrete_function()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete], module)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    if request.weights != 'float32':
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if request.weights == 'float16':
        converter.target_spec.supported_types = [tf.float16]
    with open(os.path.join(folder, FILE), 'wb') as file:
        file.write(converter.convert())


def load(folder: str | os.PathLike) -> Callable[[np.ndarray], Outputs]:
    """The function that a file holds, run by LiteRT."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=os.path.join(folder, FILE))
    interpreter.allocate_tensors()
    runner = interpreter.get_signature_runner()
    return lambda images: runner(images=images)


def _suppressed(
    task: DetectionTask, candidates: 'dict[str, tf.Tensor]', request: Request
) -> 'dict[str, tf.Tensor]':
    """The detections of a batch, in TensorFlow's operations."""
    import tensorflow as tf

    images = zip(
        tf.unstack(candidates['logits'], request.batch),
        tf.unstack(candidates['boxes'], request.batch),
        strict=True,
    )
    rows = [_detections(task, logits, boxes) for logits, boxes in images]
    found = {name: tf.stack([row[name] for row in rows]) for name in rows[0]}
    limits = tf.constant([*request.size, *request.size], tf.float32)
    scale = tf.tile(candidates['scale'], [2])
    found['boxes'] = tf.minimum(tf.maximum(found['boxes'] / scale, 0.0), limits)
    return found


def _detections(
    task: DetectionTask, logits: 'tf.Tensor', boxes: 'tf.Tensor'
) -> 'dict[str, tf.Tensor]':
    """The detections of one image from f32[A,K] and f32[A,4]."""
    import tensorflow as tf

    rules = task.rules
    _, rows = tf.math.top_k(tf.reduce_max(logits, axis=1), min(CANDIDATES, logits.shape[0]))
    pairs = tf.reshape(tf.transpose(tf.gather(logits, rows)), [-1])  # class-major
    count = min(CANDIDATES, int(pairs.shape[0]))
    best, picked = tf.math.top_k(pairs, count)
    scores = tf.sigmoid(best)
    kinds = picked // int(rows.shape[0])
    chosen = tf.gather(boxes, tf.gather(rows, picked % int(rows.shape[0])))
    index, kept, valid = tf.raw_ops.NonMaxSuppressionV5(
        boxes=_apart(chosen, kinds, float(max(task.image_size) + 1)),
        scores=scores,
        max_output_size=min(rules.detections, count),
        iou_threshold=rules.iou,
        score_threshold=rules.score,
        soft_nms_sigma=0.0,
        pad_to_max_output_size=True,
    )
    is_valid = tf.range(min(rules.detections, count)) < valid
    labels = tf.gather(kinds, index) + rules.first_class
    return {
        'boxes': tf.where(is_valid[:, None], tf.gather(chosen, index), 0.0),
        'scores': tf.where(is_valid, kept, 0.0),
        'classes': tf.where(is_valid, labels, 0),
        'valid': is_valid,
    }


def _apart(boxes: 'tf.Tensor', kinds: 'tf.Tensor', side: float) -> 'tf.Tensor':
    """Boxes moved so that those of different classes do not meet, and empty ones meet nothing.

    An empty box, which lies outside the image, overlaps not even itself: LiteRT would return it
    again and again. In its stead stands a square in a place of its own.

    Args:
      boxes: f32[N,4].
      kinds: i32[N].
      side: more than any coordinate.
    """
    import tensorflow as tf

    count = int(boxes.shape[0])
    corner = tf.range(count, dtype=tf.float32)[:, None] * 2.0
    far = tf.cast(tf.reduce_max(kinds) + 1, tf.float32) * side
    alone = far + tf.concat([corner, corner, corner + 1.0, corner + 1.0], axis=1)
    empty = tf.reduce_any(boxes[:, 2:] <= boxes[:, :2], axis=1)[:, None]
    return tf.where(empty, alone, boxes + tf.cast(kinds, tf.float32)[:, None] * side)
