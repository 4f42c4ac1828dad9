"""Reads a run's weights for a TF2 checkpoint that the Model Garden's detectors load.

TensorFlow itself writes the file, in an environment of its own, where tools/convert_checkpoint.py
starts tools/maintenance/oracle_export.py.
"""

import os
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from spinenet_jax.errors import UserError
from spinenet_jax.inference import read_config
from spinenet_jax.ops.anchors import ANCHORS_PER_CELL
from spinenet_jax.training.checkpoint import load_model

# What the Garden's model has no switch for, and its only value.
FIXED = {'min_level': 3, 'max_level': 7, 'padding': 'same', 'pooling': 'chain'}
# Blocks that it repeats are wired in another way than ours, and its gate has no switch.
MOBILE = {'graph': 'mobile49', 'block_repeats': 1, 'squeeze_gate': 'hard_sigmoid'}
SPINENET = {'backbone': 'spinenet', 'graph': 'spinenet49'}


class Trained(NamedTuple):
    """What the Garden's model is built from.

    Attributes:
      model: the `model` part of the config, with the number of classes resolved, 'image_size' and
        'task'.
      arrays: {our path: array}.
      step: the checkpoint's.
    """

    model: dict[str, Any]
    arrays: dict[str, np.ndarray]
    step: int


def read_run(workdir: str | os.PathLike, which: str = 'best') -> Trained:
    """Read a detector that the Garden can build.

    Args:
      workdir: of a detection run.
      which: checkpoint, see `training.checkpoint.load_model`.

    Raises:
      UserError: no run is there, or its model is none that the Garden can build.
    """
    config = read_config(workdir)
    _check(config, workdir)
    variables, step = load_model(workdir, which)
    arrays = {k: np.asarray(v) for k, v in flatten_dict(variables, sep='/').items()}
    model = config.model.to_dict()
    model |= {'image_size': list(config.data.image_size), 'task': config.task}
    masks = config.task == 'instance_segmentation'
    predictor = 'box_heads_0/class' if masks else 'class_head/predict'
    if model['separable_heads'] and not masks:
        predictor += '/pointwise'
    bias = arrays.get(f'params/{predictor}/bias')
    if bias is None:
        raise UserError(f'{workdir}: a backbone alone; only whole detection models go to TF2')
    model['num_classes'] = bias.size // (1 if masks else ANCHORS_PER_CELL)
    return Trained(model, arrays, step)


def _check(config: ConfigDict, workdir: str | os.PathLike) -> None:
    """Only what the Garden computes in the same way."""
    if config.task not in ('detection', 'instance_segmentation'):
        raise UserError(f'{workdir}: task {config.task}; only detection models go to TF2')
    backbone = SPINENET  # the only one that Mask R-CNN's names are known for
    if config.task == 'detection':
        if config.model.backbone == 'resnet_fpn':
            backbone = {}
        elif config.model.graph == MOBILE['graph']:
            backbone = MOBILE
    for key, value in (backbone | FIXED).items():
        if config.model[key] != value:
            raise UserError(
                f'{workdir}: model.{key}={config.model[key]!r}, and the Model Garden computes '
                f'{value!r} only: its outputs would differ'
            )
