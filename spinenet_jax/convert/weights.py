"""Reads the variables of a TensorFlow checkpoint under our paths, in our order of axes.

Which model it is: `recognition.py`. Files are left to `tf_checkpoint.py`, names to `tf_names.py`,
writing to `workdir.py`.
"""

import re
from typing import NamedTuple

import numpy as np

from spinenet_jax.convert.tensor_bundle import Bundle
from spinenet_jax.convert.tf_checkpoint import Variables
from spinenet_jax.convert.tf_names import SWAPPED, Architecture, names_in
from spinenet_jax.errors import UserError

# TF1 orders the shapes of anchors 1, 2, 1/2 (width / height), TF2 and we 1/2, 1, 2.
TF1_RATIOS = (2, 0, 1)


class Match(NamedTuple):
    """Which variable of a checkpoint goes to which path of ours, and what is left over.

    Attributes:
      names: {our path: name in the file}.
      missing: our paths, with their TensorFlow names, that the checkpoint does not have.
      unmatched: variables of the checkpoint that nothing of ours takes.
    """

    names: dict[str, str]
    missing: list[str]
    unmatched: list[str]


def match(variables: Variables, architecture: Architecture) -> Match:
    """Pair the variables of a checkpoint with the paths of our model."""
    names, missing = {}, []
    ours = names_in(variables.flavour, architecture)
    for path, name in ours.items():
        if name in variables.keys:
            names[path] = variables.keys[name]
        else:
            missing.append(f'{path} ({name})')
    unmatched = sorted(variables.keys.keys() - set(ours.values()))
    return Match(names, missing, unmatched + sorted(variables.unknown))


def read(bundle: Bundle, names: dict[str, str], flavour: str) -> dict[str, np.ndarray]:
    """Read variables from a checkpoint and bring them into our order.

    Args:
      bundle: the checkpoint.
      names: {our path: name in the file}, as `match` gives; shapes must be those of our model.
      flavour: 'tf1' or 'tf2'.

    Returns:
      {our path: f32 array}.

    Raises:
      UserError: naming values that no model can have: not finite, or a negative variance.
    """
    arrays, wrong = {}, []
    for path, name in names.items():
        value = np.asarray(bundle.read(name), np.float32)
        if not np.all(np.isfinite(value)):
            wrong.append(f'{name} is not finite')
        elif path.endswith('/var') and np.any(value < 0):
            wrong.append(f'{name} is negative')
        arrays[path] = _in_our_order(path, value, flavour)
    if wrong:
        some = ', '.join(wrong[:3]) + (f' and {len(wrong) - 3} more' if len(wrong) > 3 else '')
        raise UserError(
            f'{bundle.prefix}: {some}; the training that wrote it had diverged, so take an '
            'earlier checkpoint'
        )
    return arrays


def our_shape(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a variable with its axes in our order."""
    return (*shape[:2], shape[3], shape[2]) if SWAPPED.search(path) and len(shape) == 4 else shape


def _in_our_order(path: str, value: np.ndarray, flavour: str) -> np.ndarray:
    """A variable with its axes and channels in our order."""
    if SWAPPED.search(path):
        return value.swapaxes(2, 3)
    # The depthwise half of a separable predictor, which has no channels of anchors, is above.
    if flavour == 'tf1' and re.search(r'(class_head|box_head)/predict/', path):
        return _reorder(value, scales=3)
    if flavour == 'tf1' and re.search(r'proposal_head/(score|box)/', path):
        return _reorder(value, scales=1)
    return value


def _reorder(values: np.ndarray, scales: int) -> np.ndarray:
    """A predictor's output channels (scale, ratio, value) from TF1's order of ratios to ours."""
    channels = values.reshape(*values.shape[:-1], scales, len(TF1_RATIOS), -1)
    return channels[..., TF1_RATIOS, :].reshape(values.shape)
