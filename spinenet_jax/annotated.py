"""Draws what is annotated in an image: masks where the data set has them, boxes elsewhere."""

from collections.abc import Mapping
from functools import partial

import numpy as np

from spinenet_jax.data.batch import Record
from spinenet_jax.data.masks import draw, fits
from spinenet_jax.visualize import Drawn, draw_detections, draw_instances, fit


def draw_annotated(
    image: np.ndarray, record: Record, names: Mapping[int, str], side: int
) -> np.ndarray:
    """The image with its objects.

    Args:
      image: u8[h,w,3] RGB, the pixels of the record.
      record: with boxes and labels; masks are drawn where it has segmentations.
      names: of labels; one without is drawn as a number.
      side: longer side of the picture, pixels.

    Returns:
      u8[h',w',3] RGB.
    """
    size = image.shape[:2]
    picture, boxes = fit(image, record['boxes'], side)
    labels = np.asarray(record['labels']).tolist()
    words = [names.get(label, str(label)) for label in labels]
    segmentations = record.get('segmentations', [None] * len(boxes))
    with_mask = [n for n, s in enumerate(segmentations) if fits(s, size)]
    only_boxes = sorted(set(range(len(boxes))) - set(with_mask))
    picture = draw_detections(
        picture,
        boxes[only_boxes],
        [labels[n] for n in only_boxes],
        names=[words[n] for n in only_boxes],
    )
    masks = [partial(draw, segmentations[n], (0, 0, *size), size) for n in with_mask]
    return draw_instances(
        picture,
        Drawn(masks, picture.shape[:2]),
        boxes[with_mask],
        [labels[n] for n in with_mask],
        names=[words[n] for n in with_mask],
    )
