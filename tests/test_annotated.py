"""What is annotated, as a picture."""

import numpy as np

from spinenet_jax.annotated import draw_annotated
from spinenet_jax.data.segmentations import Polygons, Rle

IMAGE = np.full((40, 80, 3), 100, np.uint8)
RECORD = {
    'boxes': np.array([[5, 10, 25, 30], [10, 50, 30, 70]], np.float32),
    'labels': np.array([1, 2]),
}


def changed(segmentations, side=160):
    """bool[h,w]: which pixels are drawn on; no words are."""
    record = {**RECORD, 'segmentations': segmentations} if segmentations else RECORD
    picture = draw_annotated(IMAGE, record, {1: '', 2: ''}, side)
    assert picture.shape == (side // 2, side, 3) and (IMAGE == 100).all()
    return (picture != 100).any(-1)


def test_a_mask_is_filled_and_an_object_without_one_is_framed():
    """The lower left triangle of the first box, twice as large; the second box's left edge."""
    drawn = changed([Polygons([np.array([10.0, 5, 10, 25, 30, 25])]), None])
    assert drawn[40:48, 22:34].all() and not drawn[12:24, 44:58].any()
    assert drawn[30:50, 100].all() and not drawn[30:50, 106:130].any()


def test_boxes_where_no_mask_can_be_drawn():
    of_another_size = Rle((10, 10), b'0')
    for segmentations in (None, [None, of_another_size]):
        drawn = changed(segmentations)
        for left in (20, 100):
            assert drawn[30:50, left].all() and not drawn[30:48, left + 6 : left + 30].any()


def test_an_image_without_objects():
    record = {'boxes': np.zeros((0, 4), np.float32), 'labels': [], 'segmentations': []}
    assert (draw_annotated(IMAGE, record, {}, 80) == 100).all()
