"""What the TF1 original computed on small inputs and narrow networks, for tests of single stages.

Arrays `tests/goldens/tf1_*.npz`, and the settings of the networks beside them as JSON. `ops` holds
single operations on made-up input, `mask_rcnn` and `cascade` every stage of inference, and
`mask_rcnn_train` and `mask_rcnn_train_frozen_bn` every stage of one training step.
"""

import functools
import json
import pathlib
from typing import Any

import numpy as np

FOLDER = pathlib.Path(__file__).parent / 'goldens'
LEVELS = range(3, 8)
RATIOS = (1.0, 2.0, 0.5)  # of anchors, width / height, in TF1's order


@functools.cache
def arrays(name: str) -> dict[str, np.ndarray]:
    """Every array of one file."""
    with np.load(FOLDER / f'tf1_{name}.npz') as stored:
        return dict(stored)


@functools.cache
def settings(name: str) -> dict[str, Any]:
    """How the network was built and trained."""
    return json.loads((FOLDER / f'tf1_{name}.json').read_text())


def levels(stored: dict[str, np.ndarray], key: str) -> list[np.ndarray]:
    """The arrays `key/3` to `key/7`."""
    return [stored[f'{key}/{level}'] for level in LEVELS]
