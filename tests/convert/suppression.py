"""Checks that boxes are what greedy suppression leaves of candidates, up to rounding."""

from typing import NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment

# What rounding may change: maps that differ by 1e-5 of their largest value allow as much.
PIXELS, SCORE = 2e-2, 5e-5


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


def overlap_bounds(
    boxes: np.ndarray, others: np.ndarray, pixels: float = PIXELS
) -> tuple[np.ndarray, np.ndarray]:
    """The least and the largest IoU if every coordinate may be off by `pixels`.

    Matters where boxes are small: of slivers that clipping leaves, rounding decides everything.

    Args:
      boxes: f32[n,4]. others: f32[m,4].
      pixels: on either side.

    Returns:
      f64[n,m] each.
    """
    boxes, others = (np.asarray(x, np.float64) for x in (boxes, others))
    common = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    common = common - np.maximum(boxes[:, None, :2], others[None, :, :2])
    bounds = []
    for shift in (-2 * pixels, 2 * pixels):
        intersection = np.maximum(common + shift, 0).prod(-1)
        areas = [np.maximum(x[:, 2:] - x[:, :2] - shift, 0).prod(-1) for x in (boxes, others)]
        union = areas[0][:, None] + areas[1] - intersection
        some = intersection > 0
        iou = np.divide(intersection, union, out=np.ones_like(union), where=union > intersection)
        bounds.append(np.where(some, np.minimum(iou, 1), 0))
    return bounds[0], bounds[1]


def check(boxes: np.ndarray, scores: np.ndarray, candidates: Candidates, iou: float) -> np.ndarray:
    """Fail unless boxes f32[k,4] with scores f32[k] are what is left of the candidates.

    Two computations may differ in the last bits; which of two overlapping boxes stays, and which
    others they then drop in turn, can follow from these. So that no seed fails by chance, not the
    outcome is compared but what makes it right: the boxes are candidates, those of a group overlap
    less than by `iou`, and any other candidate overlaps a better box that stayed by `iou`. Without
    rounding, the result of greedy suppression is the only one that passes (by induction from the
    best candidate down). An empty box at the origin may be missing: the Garden marks what it
    suppressed by zeros, and so loses it (docs/differences.md).

    Returns:
      i[k], the place of each box among the candidates.
    """
    assert np.all(np.diff(scores) <= 0)
    apart = np.abs(boxes[:, None] - candidates.boxes).max(-1) / PIXELS
    apart = np.maximum(apart, np.abs(scores[:, None] - candidates.scores) / SCORE)
    # Clipping makes equal boxes whose scores may be equal too: each needs a candidate of its own.
    rows, places = linear_sum_assignment(np.minimum(apart, len(apart)))
    print(
        f'{len(rows)} of {len(candidates.scores)} candidates, {apart[rows, places].max():.2f} apart'
    )
    assert len(rows) == len(boxes) and apart[rows, places].max() <= 1

    least, most = overlap_bounds(boxes, candidates.boxes)
    for overlaps in (least, most):
        overlaps[candidates.groups[places][:, None] != candidates.groups] = 0
        overlaps[np.arange(len(places)), places] = 0
    assert least[:, places].max() <= iou
    most[scores[:, None] < candidates.scores - SCORE] = 0
    dropped = ~candidates.optional & (candidates.boxes > PIXELS).any(1)
    dropped[places] = False
    assert np.all(most.max(0)[dropped] >= iou)
    return places
