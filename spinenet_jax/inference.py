"""Loads the trained model of a workdir: config, classes, weights, and the step that runs it.

What to run it on is left to `evaluation.runner` and `prediction`.
"""

import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import optax
from absl import logging
from flax import linen as nn
from ml_collections import ConfigDict

from spinenet_jax import settings
from spinenet_jax.data.batch import Category
from spinenet_jax.errors import UserError
from spinenet_jax.evaluation.runner import EvalStep
from spinenet_jax.files import DamagedFileError, read_json
from spinenet_jax.lowering.policy import policy_of
from spinenet_jax.ops.images import normalise
from spinenet_jax.parallel import AXIS
from spinenet_jax.tasks.build import build_task, build_task_model
from spinenet_jax.tasks.task import Task
from spinenet_jax.training.checkpoint import load_model, workdir_of
from spinenet_jax.training.step import make_eval_step


@dataclasses.dataclass(frozen=True)
class Trained:
    """A trained model.

    Attributes:
      config: the settings, with the number of classes resolved.
      task: see `tasks.task`.
      eval_step: see `training.step.make_eval_step`.
      params: weights, on the host.
      batch_stats: running statistics of batch norm, on the host.
      step: the checkpoint's.
      categories: the classes it was trained on, in the order of their labels; empty if unknown.
    """

    config: ConfigDict
    task: Task
    eval_step: EvalStep
    params: optax.Params
    batch_stats: optax.Params
    step: int
    categories: Sequence[Category]


def read_config(workdir: str | os.PathLike) -> ConfigDict:
    """The resolved config that a run left in its workdir, over today's defaults.

    What an earlier version did not write is filled in, what is no setting any more is ignored;
    the log says both.

    Args:
      workdir: of the run, or one of its checkpoints (`workdir/checkpoints/1000`).

    Raises:
      UserError: there is no such file, or it holds something else.
    """
    path = workdir_of(workdir) / 'config.json'
    if not path.exists():
        raise UserError(f'{path}: no such file; give --config, or the --workdir of a run')
    try:
        saved = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f'{path}: cannot be read as JSON: {error}') from error
    config, differences = settings.from_saved(saved, str(path))
    if differences:
        logging.warning('%s', differences)
    return config


def load_trained(config: ConfigDict, workdir: str | os.PathLike, checkpoint: str) -> Trained:
    """Loads a run's weights into the model that the config describes.

    Args:
      config: `task`, `model`, and what the task reads. `model.num_classes` 0 is
        replaced by the number of classes in the workdir.
      workdir: of the run, or one of its checkpoints (`workdir/checkpoints/1000`).
      checkpoint: 'best', 'latest' or a step.

    Raises:
      UserError: a setting that is not legal, no checkpoint, or one of another model.
    """
    settings.check(config)
    variables, step = load_model(workdir, checkpoint)
    categories = read_categories(workdir)
    config = ConfigDict(config.to_dict())
    if config.model.num_classes == 0:
        if not categories:
            raise UserError(f'{workdir}: no categories.json, so set --config.model.num_classes')
        config.model.num_classes = 1 + max(c.label for c in categories)
    task = build_task(config)
    policy = policy_of(jax.local_devices()[0])
    model = build_task_model(config, axis_name=AXIS, policy=policy)
    images = jax.ShapeDtypeStruct((1, *task.image_size, 3), jnp.float32)
    wanted = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)
    _check_fits(wanted, variables, f'checkpoint {step} in {workdir}')
    return Trained(
        config=config,
        task=task,
        eval_step=make_eval_step(model, task),
        params=variables['params'],
        batch_stats=variables['batch_stats'],
        step=step,
        categories=categories,
    )


def make_feature_step(
    trained: Trained,
) -> Callable[[Mapping[str, optax.Params], jax.Array, jax.Array], dict[int, jax.Array]]:
    """The backbone of a trained model as a jitted function, with the normalisation of its task.

    Returns:
      A function of {'params', 'batch_stats'}, images u8[B,H,W,3] of the task's size and what of
      them is image, i32[B,2] (height, width); it gives the pyramid, {level: f32[B,h,w,C]}.
    """
    policy = policy_of(jax.local_devices()[0])
    model = build_task_model(trained.config, axis_name=None, policy=policy)

    def pyramid(module, images, content_size):
        maps = module.backbone(normalise(images, content_size), train=False)
        return {level: x.whole().astype(jnp.float32) for level, x in maps.items()}

    return jax.jit(nn.apply(pyramid, model))


def read_categories(workdir: str | os.PathLike) -> list[Category]:
    """The classes of a run, from its categories.json; none if it is not there.

    Raises:
      UserError: the file is damaged.
    """
    path = workdir_of(workdir) / 'categories.json'
    try:
        rows = read_json(path) or []
        return [Category(int(c['label']), int(c['id']), str(c['name'])) for c in rows]
    except (DamagedFileError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f'{path} does not hold the classes of a run: train.py on this workdir writes it anew'
        ) from error


def _check_fits(
    wanted: Mapping[str, optax.Params], found: Mapping[str, optax.Params], name: str
) -> None:
    """UserError naming the first array that is missing, unknown or of another shape."""
    shapes = []
    for tree in (wanted, found):
        tree = {'params': tree['params'], 'batch_stats': tree.get('batch_stats', {})}
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        shapes.append({jax.tree_util.keystr(path): tuple(leaf.shape) for path, leaf in leaves})
    model, stored = shapes
    for key in sorted(model.keys() | stored.keys()):
        if model.get(key) != stored.get(key):
            raise UserError(
                f'{name} is of another model than the config: {key} is '
                f'{stored.get(key, "missing")} there and {model.get(key, "missing")} here'
            )
