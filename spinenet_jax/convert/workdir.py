"""Writes converted weights as a workdir that eval.py, predict.py and train.init_from take."""

import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from spinenet_jax.convert import coco_categories
from spinenet_jax.convert.recognition import Recognised
from spinenet_jax.convert.weights import our_shape
from spinenet_jax.errors import UserError
from spinenet_jax.models.build import build_model
from spinenet_jax.models.graph import BASE_FILTERS, MOBILE, MOBILE_FILTERS, Graph, filters
from spinenet_jax.training.checkpoint import FOLDER, Checkpoints, absolute
from spinenet_jax.training.state import TrainState
from spinenet_jax.training.workdir import create, record_categories, record_config


def fit_config(base: ConfigDict, found: Recognised, where: str) -> ConfigDict:
    """A copy of `base` with the channels, padding, pooling and norm constants of the checkpoint.

    What no checkpoint says, activation and size of the anchors, stays as it is in `base`.

    Raises:
      UserError: `base` is of another model than the checkpoint `where`.
    """
    graph, (low, high) = found.architecture.graph, found.architecture.levels
    is_resnet = found.architecture.resnet_depth > 0
    wanted = {
        'task': found.task,
        'model.backbone': 'resnet_fpn' if is_resnet else 'spinenet',
        'model.min_level': low,
        'model.max_level': high,
    }
    if found.task == 'backbone':
        del wanted['task']
    if is_resnet:
        sizes = ('depth', 'width')
    else:
        wanted['model.graph'] = graph.name
        sizes = ('block_repeats',)
        # Several factors may truncate to the same widths.
        if _widths(base.model, graph) != _widths(found.settings, graph):
            sizes += ('width', 'resample_alpha')
    wanted |= {f'model.{key}': found.settings[key] for key in sizes}
    for key, theirs in wanted.items():
        ours = base[key]
        if ours != theirs:
            raise UserError(
                f'--config has {key}={ours!r}, but {where} holds a model of {theirs!r}: give the '
                'config of that model, or none'
            )
    kept = ('width', 'resample_alpha')
    config = ConfigDict(base.to_dict())
    config.model.update({k: v for k, v in found.settings.items() if k not in kept})
    if found.flavour == 'tf1' and found.task == 'instance_segmentation':
        config.eval.decode = 'tf1'  # what published numbers were measured with
    return config


def _widths(model: Mapping[str, Any], graph: Graph) -> list[tuple[int, int]]:
    """Channels of each level's blocks, and those inside the resamplings from it."""
    if graph.is_mobile:  # its resamplings have no width of their own
        return [(filters(level, model['width'], MOBILE), 0) for level in MOBILE_FILTERS]
    widths = [filters(level, model['width']) for level in BASE_FILTERS]
    return [(width, int(width * model['resample_alpha'])) for width in widths]


def check_shapes(
    config: ConfigDict, found: Recognised, shapes: dict[str, tuple[int, ...]], where: str
) -> None:
    """Refuse weights that do not fit the model that `config` builds.

    Args:
      config: as `fit_config` gives it.
      found: what the checkpoint holds.
      shapes: {our path: shape in the checkpoint}; paths that are missing are not looked at.
      where: how an error calls the checkpoint.

    Raises:
      UserError: naming the first array that is unknown or of another shape there.
    """
    task = 'detection' if found.task == 'backbone' else found.task
    model = build_model(config.model, task=task, axis_name=None)
    image = jax.ShapeDtypeStruct((1, 128, 128, 3), jnp.float32)
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), image)
    wanted = {path: value.shape for path, value in flatten_dict(variables, sep='/').items()}
    for path, theirs in sorted(shapes.items()):
        shape = our_shape(path, theirs)
        if shape != wanted.get(path):
            raise UserError(
                f'{where}: does not fit the SpineNet it looks like, {path} has shape '
                f'{shape} instead of {wanted.get(path, "none at all")}'
            )


def check_unused(workdir: str | os.PathLike) -> None:
    """Refuse a workdir that holds checkpoints: new weights would be mixed with old ones.

    Raises:
      UserError: naming the newest checkpoint there.
    """
    folder = absolute(workdir) / FOLDER
    steps = ocp.utils.checkpoint_steps(folder) if folder.exists() else []
    if steps:
        raise UserError(
            f'--workdir={workdir}: holds checkpoint {max(steps)} already; give another folder, or '
            'delete this one'
        )


def write(
    workdir: str | os.PathLike, config: ConfigDict, arrays: dict[str, np.ndarray], step: int
) -> str:
    """Write config.json and a checkpoint of `step`; returns the checkpoint's path.

    A detector of 91 classes, with masks or without, gets COCO's categories.json, whose names
    predict.py writes.

    Args:
      workdir: folder to make, without checkpoints.
      config: of the model.
      arrays: {path: array}, paths beginning with params/ or batch_stats/.
      step: number of the checkpoint, from 0.

    Raises:
      UserError: the folder cannot be written or holds checkpoints.
    """
    check_unused(workdir)
    folder = create(workdir)
    record_config(folder, config)
    boxes = config.task in ('detection', 'instance_segmentation')
    if boxes and config.model.num_classes == coco_categories.NUM_CLASSES:
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
    return str(folder / FOLDER / str(step))
