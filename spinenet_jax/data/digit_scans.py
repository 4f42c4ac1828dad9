"""Scans of handwritten digits, for trying a classifier without a download.

The 1,797 scans of 8x8 pixels that come with scikit-learn (UCI "Optical Recognition of Handwritten
Digits"), smoothed to 80x80. A fifth of each digit is held out, the same scans that the scenes of
digits.py keep for validation.
"""

import cv2
import numpy as np

from spinenet_jax.data.batch import LABEL, Category, Record, Unreadable, assign_labels
from spinenet_jax.data.digits import smoothed_scans, split_scans
from spinenet_jax.errors import UserError


class DigitScans:
    """The split 'train' (1,433 scans) or 'val' (364), see `batch.Source`."""

    provides = LABEL
    ground_truth = None  # there are no boxes

    def __init__(self, split: str, num_classes: int = 0):
        """`num_classes` counts outputs with background: at least 11, or 0."""
        scans, labels = smoothed_scans()
        parts = split_scans(labels, seed=0)
        if split not in parts:
            raise UserError(f'no split "{split}" of the digits: there are {", ".join(parts)}')
        self.name = split
        self.categories: list[Category] = assign_labels(
            [(k + 1, str(k)) for k in range(10)], num_classes
        )
        self.report: list[str] = []
        self.unreadable = Unreadable()
        self._places, self._labels = parts[split], labels[parts[split]]
        self._encoded = [_encode(scan) for scan in scans[self._places]]
        self.image_ids = self._places.tolist()

    def __len__(self) -> int:
        return len(self._encoded)

    def __getitem__(self, index: int) -> Record:
        return Record(
            image=self._encoded[index],
            image_id=self.image_ids[index],
            size=None,
            label=int(self._labels[index]),
        )

    def describe(self, index: int) -> str:
        """The number of the scan in scikit-learn's order."""
        return f'scan {self.image_ids[index]}'


def _encode(scan: np.ndarray) -> bytes:
    """A PNG, white on black, from opacity float32[s,s]."""
    gray = np.clip(scan * 255, 0, 255).astype(np.uint8)
    return cv2.imencode('.png', gray, (cv2.IMWRITE_PNG_COMPRESSION, 1))[1].tobytes()
