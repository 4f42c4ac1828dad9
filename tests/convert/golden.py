"""Loads stored outputs of the Model Garden, runs our models and measures how far they are apart."""

import functools
import pathlib
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from spinenet_jax import settings
from spinenet_jax.data.batch import Rows
from spinenet_jax.data.pipeline import Augmentation, WholeImage
from spinenet_jax.models.build import build_model
from tools.maintenance import oracle_cases as cases

FOLDER = pathlib.Path(__file__).parents[1] / 'goldens'
LEVELS = range(3, 8)


@functools.cache
def load(stage: str) -> dict[str, np.ndarray]:
    """Every array of one stage."""
    with np.load(FOLDER / f'{stage}.npz') as stored:
        return dict(stored)


def model_config(model: dict[str, Any]) -> ConfigDict:
    """A config's `model` part for a model of `oracle_cases`."""
    return ConfigDict({**settings.default_config().model.to_dict(), 'dtype': 'float32', **model})


def random_variables(
    module: Any, size: tuple[int, int], draw: Callable[..., np.ndarray] = cases.weight
) -> dict[str, Any]:
    """The module's variables as `draw` (path, shape) gives them."""
    image = jax.ShapeDtypeStruct((1, *size, 3), np.float32)
    shapes = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False), image)
    flat = flatten_dict(shapes, sep='/')
    return nest({path: draw(path, v.shape) for path, v in flat.items()})


def rows(size: tuple[int, int], max_boxes: int = 8) -> Rows:
    """Rows of images that are neither scaled nor mirrored."""
    return Rows(Augmentation(size, 1.0, 1.0, False, max_boxes), WholeImage(size))


def nest(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """{path: array} as the tree that Flax takes."""
    return unflatten_dict(arrays, sep='/')


def forward(model: dict[str, Any], images: np.ndarray) -> dict[str, np.ndarray]:
    """`run` of a model of `oracle_cases` with random weights."""
    module = build_model(model_config(model), task='detection', axis_name=None)
    return run(module, random_variables(module, images.shape[1:3]), images)


def run(module: Any, variables: dict[str, Any], images: np.ndarray) -> dict[str, np.ndarray]:
    """{'feature3', 'logits3', 'codes3', ...} at inference for normalised f32[B,H,W,3] images."""

    @jax.jit
    def outputs(variables, images):
        features = module.apply(variables, images, method=lambda m, x: m.backbone(x, train=False))
        return features, *module.apply(variables, images, train=False)

    features, logits, codes = outputs(variables, images)
    result = {}
    for place, level in enumerate(LEVELS):
        result[f'feature{level}'] = features[level].whole()
        result[f'logits{level}'] = logits[place]
        result[f'codes{level}'] = codes[place]
    return {key: np.asarray(value) for key, value in result.items()}


def error(ours: np.ndarray, theirs: np.ndarray, scale: float, slack: float = 0.0) -> float:
    """Largest difference, beyond an absolute `slack`, relative to `scale`."""
    assert ours.shape == theirs.shape, f'shape {ours.shape} here, {theirs.shape} there'
    return max(float(np.max(np.abs(ours - theirs))) - slack, 0.0) / max(scale, 1e-12)


def check(
    ours: dict[str, np.ndarray],
    theirs: dict[str, np.ndarray],
    tolerance: float,
    slack: dict[str, float] | None = None,
) -> None:
    """Fail with every array that differs by more than `tolerance` of the largest value of theirs.

    `slack` is an absolute difference an array may have besides.

    A convolution's bias before a norm has no effect: rounding is all there is in its gradient, so
    it is measured by its kernel's.
    """
    assert ours.keys() == theirs.keys(), f'only on one side: {sorted(ours.keys() ^ theirs.keys())}'
    errors = {}
    for key in theirs:
        kernel = re.sub(r'(head/conv\d+)/bias$', r'\1/kernel', key)
        scale = float(np.max(np.abs(theirs[kernel])))
        errors[key] = error(ours[key], theirs[key], scale, (slack or {}).get(key, 0.0))
    worst = sorted(errors, key=errors.get, reverse=True)
    print(f'worst of {len(errors)}: {worst[0]} {errors[worst[0]]:.2e}')
    wrong = [f'{key}: {errors[key]:.2e}' for key in worst if not errors[key] <= tolerance]
    assert not wrong, f'{len(wrong)} of {len(errors)} arrays differ from the Model Garden: {wrong}'


def part(stored: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The arrays below 'prefix/', without it."""
    below = f'{prefix}/'
    return {key.removeprefix(below): v for key, v in stored.items() if key.startswith(below)}


def total_loss(
    task: Any,
    module: Any,
    batch: dict[str, Any],
    weight_decay: float,
    seen_as: Callable[[Any], Any] = lambda model: model,
) -> Callable[..., Any]:
    """The loss of instance segmentation with weight decay, as both public codes add it.

    Args:
      task, module: of instance segmentation.
      batch: the objects.
      weight_decay: of kernels.
      seen_as: what the task gets in place of the bound module.

    Returns:
      A function of params, batch_stats and normalised images; the loss, and beside it
      (losses, decay, outputs, updated statistics).
    """

    def total(params, batch_stats, images):
        def learn(model, images):
            return task.learn(seen_as(model), images, batch)

        outputs, updated = nn.apply(learn, module, mutable=['batch_stats'])(
            {'params': params, 'batch_stats': batch_stats},
            images,
            rngs={'sampling': jax.random.key(0)},
        )
        targets = task.targets(batch)
        losses = task.losses(task.numerators(outputs, targets), task.normalisers(outputs, targets))
        kernels = [x for path, x in flatten_dict(params).items() if path[-1] == 'kernel']
        decay = weight_decay / 2 * sum(jnp.sum(x * x) for x in kernels)
        return losses['loss'] + decay, (losses, decay, outputs, updated)

    return total
