"""Pictures of detections: what is drawn stays inside, and boxes that cannot be drawn do no harm."""

import numpy as np
import pytest

from spinenet_jax import visualize


def test_frame_covers_the_border_pixels_inside_the_box_only():
    image = np.zeros((40, 50, 3), np.uint8)
    drawn = visualize.draw_detections(image, [[10, 20, 30, 45]], [3], names=[''])
    inked = np.argwhere(drawn.any(-1))
    assert inked.min(0).tolist() == [10, 20]
    assert inked.max(0).tolist() == [29, 44]  # the far edge is exclusive
    assert not drawn[12:28, 22:43].any()
    assert tuple(drawn[10, 30]) == visualize.class_colour(3)
    assert not image.any(), 'the input must not change'


@pytest.mark.parametrize(
    'box',
    [[5, 5, 5, 9], [9, 5, 5, 9], [-9, -9, -1, -1], [99, 99, 120, 120], [np.nan, 0, 9, 9]],
    ids=['flat', 'inverted', 'before', 'beyond', 'nan'],
)
def test_boxes_with_nothing_inside_are_left_out(box):
    image = np.zeros((40, 50, 3), np.uint8)
    assert not visualize.draw_detections(image, [box], [1], [0.5], ['cat']).any()


def test_no_boxes_gives_a_copy():
    image = np.full((4, 5, 3), 9, np.uint8)
    drawn = visualize.draw_detections(image, np.zeros((0, 4)), [], [])
    assert drawn is not image
    assert (drawn == image).all()


@pytest.mark.parametrize('corner', [(0, 0), (0, 299), (199, 0), (199, 299), (-0, 150)])
def test_labels_at_the_edges_are_drawn_whole(corner):
    inside = np.zeros((200, 300, 3), np.uint8)
    visualize.draw_label(inside, 'zebra 97%', (100, 100), (255, 0, 0))
    at_edge = np.zeros((200, 300, 3), np.uint8)
    visualize.draw_label(at_edge, 'zebra 97%', corner, (255, 0, 0))
    assert at_edge.any(-1).sum() == inside.any(-1).sum()


@pytest.mark.parametrize('side', [640, 4000])
def test_text_and_lines_grow_with_the_image(side):
    image = np.zeros((side // 2, side, 3), np.uint8)
    box = np.array([[0.4, 0.2, 0.8, 0.4]], np.float32) * [side // 2, side, side // 2, side]
    drawn = visualize.draw_detections(image, box, [1], [0.8], ['dog'])
    # Labels cover about the same share of a small and of a large photo.
    assert 0.005 < drawn.any(-1).mean() < 0.02


def test_class_colours_are_stable_and_distinct():
    colours = [visualize.class_colour(k) for k in range(91)]
    assert len(set(colours)) == 91
    near = [
        np.abs(np.subtract(colours[a], colours[b])).max() for a in range(1, 11) for b in range(1, a)
    ]
    assert min(near) > 40
    assert visualize.class_colour(1) == colours[1]


def test_tile_keeps_aspect_and_order():
    wide = np.full((100, 200, 3), 50, np.uint8)
    tall = np.full((300, 100, 3), 100, np.uint8)
    sheet = visualize.tile([wide, tall, wide], columns=2, size=60, gap=4)
    # Two rows: 60 high (the tall one) and 30 high; columns of 60; gaps of 4 around.
    assert sheet.shape == (4 + 60 + 4 + 30 + 4, 4 + 60 + 4 + 60 + 4, 3)
    assert (sheet[4 + 15 : 4 + 45, 4:64] == 50).all()
    assert (sheet[4:64, 68 + 20 : 68 + 40] == 100).all()
    assert (sheet[68:98, 4:64] == 50).all()
    assert (sheet[68:98, 68:] == 255).all()


def test_tile_of_nothing_is_blank():
    assert (visualize.tile([], columns=2, size=10, titles=('a', 'b'))[30:] == 255).all()


def test_fit_scales_boxes_with_the_image():
    image, boxes = visualize.fit(np.zeros((20, 40, 3), np.uint8), [[1, 2, 3, 4]], 80)
    assert image.shape == (40, 80, 3)
    assert boxes.tolist() == [[2, 4, 6, 8]]
    assert visualize.fit(image, np.zeros((0, 4)), 10)[1].shape == (0, 4)


def test_masks_are_filled_outlined_and_told_apart():
    image = np.full((120, 160, 3), 90, np.uint8)
    masks = np.zeros((3, 120, 160), bool)
    masks[0, 20:80, 20:70] = True
    masks[1, 20:80, 70:120] = True  # touches the first, of the same class
    boxes = np.array([[20, 20, 80, 70], [20, 70, 80, 120], [5, 5, 9, 9]], np.float32)
    drawn = visualize.draw_instances(image, masks, boxes, [4, 4, 4], names=['', '', ''])
    assert (image == 90).all()
    left, right = drawn[50, 45].astype(int), drawn[50, 95].astype(int)
    assert np.abs(left - right).max() > 40 and np.abs(left - 90).max() > 20
    assert np.abs(drawn[50, 20].astype(int) - left).max() > 20  # the outline
    assert (drawn[100:, :] == 90).all() and (drawn[:15, :15] == 90).all()  # the third is empty
    labelled = visualize.draw_instances(image, masks, boxes, [4, 4, 4], [0.9, 0.8, 0.7])
    assert (labelled != drawn).any()
