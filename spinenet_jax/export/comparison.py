"""Compares detections of an exported model with those of the model itself."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

Arrays = Mapping[str, np.ndarray]


class Agreement(NamedTuple):
    """How well two sets of outputs agree.

    Attributes:
      compared: detections, or images for raw outputs.
      missing: detections of one that have no counterpart in the other.
      largest: the largest difference of each output.
    """

    compared: int
    missing: int
    largest: dict[str, float]


def compare_raw(expected: Arrays, found: Arrays) -> Agreement:
    """Compares raw outputs, element by element."""
    largest = {
        name: float(np.max(np.abs(expected[name] - found[name]), initial=0)) for name in expected
    }
    return Agreement(len(expected['logits']), 0, largest)


def compare_detections(
    expected: Arrays,
    found: Arrays,
    box_tolerance: float,
    score_tolerance: float,
    threshold: float,
) -> Agreement:
    """Pairs the detections of a batch, in both directions, and measures how far pairs are apart.

    Detections of almost equal scores may come in another order, and the last of a full list may
    be others: a detection whose score is within the tolerance of what a list ends with, its last
    if it is full and the threshold if it is not, is not missed.

    Args:
      expected, found: boxes [B,D,4], scores [B,D], classes [B,D], valid [B,D].
      box_tolerance, score_tolerance: how far a counterpart may be away.
      threshold: detections have a score above this.
    """
    compared = missing = 0
    largest = {'boxes': 0.0, 'scores': 0.0}
    for image in range(len(expected['valid'])):
        one, other = (
            {name: values[image][side['valid'][image]] for name, values in side.items()}
            for side in (expected, found)
        )
        compared += len(one['scores'])
        for a, b in ((one, other), (other, one)):
            full = len(a['scores']) == expected['valid'].shape[1]
            last = a['scores'].min() if full else threshold
            for n in range(len(a['scores'])):
                box, score = a['boxes'][n], a['scores'][n]
                boxes = np.abs(b['boxes'] - box).max(axis=1, initial=0)
                scores = np.abs(b['scores'] - score)
                near = (boxes <= box_tolerance) & (scores <= score_tolerance)
                near &= b['classes'] == a['classes'][n]
                if not near.any():
                    missing += bool(score > last + score_tolerance)
                    continue
                pair = np.flatnonzero(near)[np.argmin(boxes[near])]
                largest['boxes'] = max(largest['boxes'], float(boxes[pair]))
                largest['scores'] = max(largest['scores'], float(scores[pair]))
    return Agreement(compared, missing, largest)
