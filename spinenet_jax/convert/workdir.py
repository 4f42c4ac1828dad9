"""Writes converted weights as a workdir that eval.py, predict.py and train.init_from take."""

import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from spinenet_jax.convert import coco_categories
from spinenet_jax.convert.weights import Recognised
from spinenet_jax.errors import UserError
from spinenet_jax.models.build import build_model
from spinenet_jax.training.checkpoint import Checkpoints
from spinenet_jax.training.state import TrainState
from spinenet_jax.training.workdir import create, record_categories, record_config

CLASSIFICATION_SIDE = 224


def make_config(found: Recognised, given: ConfigDict | None) -> ConfigDict:
    """The config of a recognised model: `given`, or the published one of its name, made to fit.

    Sizes, padding, pooling and norm constants are the checkpoint's; the activation is `given`'s,
    else swish, which no checkpoint tells.
    """
    if given is not None:
        config = ConfigDict(given.to_dict())
    elif found.name and found.task != 'classification':
        from configs import retinanet  # beside the scripts, not part of the package

        config = retinanet.get_config(f'{found.name}-C')
    else:
        from configs import common

        config = common.get_config()
        config.model.activation = 'swish'
        if found.task == 'classification':
            config.task = 'classification'
            config.data.image_size = (CLASSIFICATION_SIDE, CLASSIFICATION_SIDE)
    config.model.update(found.settings)
    return config


def check_shapes(
    config: ConfigDict, found: Recognised, arrays: dict[str, np.ndarray], where: str
) -> None:
    """Refuse weights that do not fit the model that `config` builds.

    Raises:
      UserError: naming the first array that is of another shape there.
    """
    task = 'detection' if found.task == 'backbone' else found.task
    model = build_model(config.model, task=task, axis_name=None)
    image = jax.ShapeDtypeStruct((1, 128, 128, 3), jnp.float32)
    wanted = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), image)
    for path, expected in sorted(flatten_dict(wanted, sep='/').items()):
        if path in arrays and arrays[path].shape != expected.shape:
            raise UserError(
                f'{where}: does not fit the SpineNet it looks like, {path} has shape '
                f'{arrays[path].shape} instead of {expected.shape}'
            )


def write(
    workdir: str | os.PathLike, config: ConfigDict, arrays: dict[str, np.ndarray], step: int
) -> str:
    """Write config.json and a checkpoint of `step`; returns the checkpoint's path.

    A detector of 91 classes gets COCO's categories.json, whose names predict.py writes.

    arrays: {path: array}, paths beginning with params/ or batch_stats/.
    Raises UserError where the folder cannot be written or holds another model's checkpoints.
    """
    folder = create(workdir)
    record_config(folder, config)
    if config.task == 'detection' and config.model.num_classes == coco_categories.NUM_CLASSES:
        record_categories(folder, coco_categories.categories())
    tree: dict[str, Any] = {'params': {}, 'batch_stats': {}, **unflatten_dict(arrays, sep='/')}
    checkpoints = Checkpoints(workdir)
    checkpoints.save(
        TrainState(
            step=np.int32(step),
            params=tree['params'],
            batch_stats=tree['batch_stats'],
            opt_state={},
        )
    )
    checkpoints.close()
    return str(folder / 'checkpoints' / str(step))
