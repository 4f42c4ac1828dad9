"""Checks that boxes are what greedy suppression leaves of candidates, up to rounding."""

from typing import NamedTuple

import numpy as np

from spinenet_jax.ops import boxes as box_ops

# What rounding may change: maps that differ by 1e-5 of their largest value allow as much.
PIXELS, SCORE, OVERLAP = 2e-2, 2e-5, 1e-3


class Candidates(NamedTuple):
    """Boxes f32[n,4] with scores f32[n] and groups i[n], within which they suppress each other.

    What is `optional`, bool[n], may be missing: it is at the end of a limit.
    """

    boxes: np.ndarray
    scores: np.ndarray
    groups: np.ndarray
    optional: np.ndarray

    def above(self, limit: float, where: np.ndarray | bool = True) -> 'Candidates':
        """Those of a score above `limit`, and as optional ones those that rounding may put there.

        `where` bool[n] says which the limit is for.
        """
        near = np.where(where, np.abs(self.scores - limit) <= SCORE, False)
        keep = ~np.asarray(where) | (self.scores > limit) | near
        changed = self._replace(optional=self.optional | near)
        return Candidates(*(x[keep] for x in changed))


def check(boxes: np.ndarray, scores: np.ndarray, candidates: Candidates, iou: float) -> np.ndarray:
    """Fail unless boxes f32[k,4] with scores f32[k] are what is left of the candidates.

    Two computations may differ in the last bits; which of two overlapping boxes stays, and which
    others they then drop in turn, can follow from these. So that no seed fails by chance, not the
    outcome is compared but what makes it right: the boxes are candidates, those of a group overlap
    less than by `iou`, and any other candidate overlaps a better box that stayed by `iou`. Without
    rounding, the result of greedy suppression is the only one that passes (by induction from the
    best candidate down).

    Returns:
      i[k], the place of each box among the candidates.
    """
    assert np.all(np.diff(scores) <= 0)
    apart = np.abs(boxes[:, None] - candidates.boxes).max(-1) / PIXELS
    apart = np.maximum(apart, np.abs(scores[:, None] - candidates.scores) / SCORE)
    places = apart.argmin(1)
    print(f'{len(places)} of {len(candidates.scores)} candidates, {apart.min(1).max():.2f} apart')
    assert apart.min(1).max() <= 1 and len(set(places)) == len(places)

    overlaps = np.array(box_ops.iou(boxes, candidates.boxes))
    overlaps[candidates.groups[places][:, None] != candidates.groups] = 0
    overlaps[np.arange(len(places)), places] = 0
    assert overlaps[:, places].max() < iou + OVERLAP
    overlaps[scores[:, None] < candidates.scores - SCORE] = 0
    dropped = ~candidates.optional
    dropped[places] = False
    assert np.all(overlaps.max(0)[dropped] > iou - OVERLAP)
    return places
