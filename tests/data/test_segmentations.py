"""Segmentations in a few bytes: everything comes back, and what is bad is named, not raised."""

from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco

from spinenet_jax.data import segmentations
from spinenet_jax.data.segmentations import Polygons, Rle, Segmentations, pack

SIZE = (40, 60)
SQUARE = [10, 5, 30, 5, 30, 25, 10, 25]
BOX = [10, 5, 20, 20]


def table(values, boxes=None, size=SIZE):
    boxes = [BOX] * len(values) if boxes is None else boxes
    sizes = np.tile(size, (len(values), 1))
    return Segmentations([pack(v) for v in values], sizes, np.array(boxes, float).reshape(-1, 4))


def rle_of(mask):
    rle = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {'size': rle['size'], 'counts': rle['counts'].decode()}


def uncompressed(mask):
    values = mask.T.reshape(-1)
    edges = np.flatnonzero(np.diff(values)) + 1
    counts = np.diff([0, *edges, len(values)]).tolist()
    return {'size': list(mask.shape), 'counts': ([0] if values[0] else []) + counts}


def test_everything_comes_back():
    mask = np.zeros(SIZE, bool)
    mask[5:20, 8:30] = True
    values = [
        [SQUARE],
        [SQUARE, [1.25, 2.5, 7.01, 2.5, 4, 9.99]],  # two parts, two decimals
        [[0.123456789, 1, 20, 3, 9, 30.0]],  # more decimals than hundredths hold
        [[-0.5, 1, 20, 3, 9, 30]],
        [[10, 5, 700, 5, 700, 25]],  # beyond two bytes
        rle_of(mask),
        uncompressed(mask),
        None,
    ]
    found = table(values)
    assert len(found) == len(values)
    for row in range(5):
        assert isinstance(found[row], Polygons) and found[row].coco == values[row]
    for row in (5, 6):
        assert isinstance(found[row], Rle)
        np.testing.assert_array_equal(coco.decode(found[row].coco), mask)
        assert found[row].runs().tolist() == uncompressed(mask)['counts']
    assert found[7] is None
    np.testing.assert_array_equal(found.usable, [True] * 7 + [False])


def test_runs_of_random_masks():
    rng = np.random.default_rng(0)
    for share in (0.01, 0.5, 0.99):
        mask = rng.random((30, 200)) < share
        found = table([rle_of(mask), uncompressed(mask)], [[0, 0, 200, 30]] * 2, mask.shape)
        for row in (0, 1):
            assert found[row].runs().tolist() == uncompressed(mask)['counts']
            assert found[row].counts == rle_of(mask)['counts'].encode()


HALF = np.zeros(SIZE, bool)
HALF[:, 20:30] = True
BAD = {
    'none': (None, segmentations.NONE),
    'empty list': ([], segmentations.NONE),
    'a word': ('polygon', segmentations.NEITHER),
    'a number': (7, segmentations.NEITHER),
    'a list of words': (['a', 'b'], segmentations.NEITHER),
    'an empty polygon': ([[]], segmentations.FEW),
    'two points': ([[10, 5, 30, 25]], segmentations.FEW),
    'a line': ([[10, 5, 20, 15, 30, 25]], segmentations.FEW),
    'odd': ([SQUARE[:-1]], segmentations.ODD),
    'not a number': ([[10, 5, float('nan'), 5, 30, 25]], segmentations.WILD),
    'infinite': ([[10, 5, float('inf'), 5, 30, 25]], segmentations.WILD),
    'huge': ([[10, 5, 1e9, 5, 30, 25]], segmentations.WILD),
    'a number of 400 digits': ([[10, 5, 10**400, 5, 30, 25]], segmentations.WILD),
    'a run of 400 digits': ({'size': list(SIZE), 'counts': [10**400]}, segmentations.UNREADABLE),
    'words in a polygon': ([[10, 5, 'x', 5, 30, 25]], segmentations.WILD),
    'points in pairs': ([[[10, 5], [30, 5], [30, 25]]], segmentations.WILD),
    'another size': ({**rle_of(HALF), 'size': [60, 40]}, segmentations.SIZE),
    'a wrong sum': ({'size': list(SIZE), 'counts': [5, 10, 7]}, segmentations.SUM),
    'a wrong sum of text': (
        {'size': [41, 60], 'counts': rle_of(HALF)['counts']},
        segmentations.SUM,
    ),
    'negative runs': ({'size': list(SIZE), 'counts': [-5, 2405]}, segmentations.UNREADABLE),
    'half runs': ({'size': list(SIZE), 'counts': [0.5, 2399.5]}, segmentations.UNREADABLE),
    'no counts': ({'size': list(SIZE)}, segmentations.UNREADABLE),
    'no size': ({'counts': [2400]}, segmentations.UNREADABLE),
    'text of other letters': ({'size': list(SIZE), 'counts': 'ä!'}, segmentations.UNREADABLE),
    'text cut off': ({'size': list(SIZE), 'counts': 'oooo'}, segmentations.UNREADABLE),
    'text without end': ({'size': list(SIZE), 'counts': 'o' * 99 + '1'}, segmentations.UNREADABLE),
    'empty text': ({'size': list(SIZE), 'counts': ''}, segmentations.UNREADABLE),
    'nothing in it': ({'size': list(SIZE), 'counts': [2400]}, segmentations.EMPTY),
    'elsewhere': ([[40, 30, 50, 30, 50, 38]], segmentations.APART),
    'RLE elsewhere': ({**rle_of(np.roll(HALF, 25, 1))}, segmentations.APART),
    'outside the image': ([[100, 5, 130, 5, 130, 25]], segmentations.OUTSIDE),
}


@pytest.mark.parametrize('name', BAD)
def test_bad_ones_are_named(name):
    value, fault = BAD[name]
    found = table([[SQUARE], value, [SQUARE]])
    np.testing.assert_array_equal(found.usable, [True, False, True])
    lines = found.report(Path('x.json'), np.array([11, 12, 13]))
    named = f'x.json: 1 {segmentations.FAULTS[fault]} (first: 12)'
    assert named in lines, lines
    assert lines[-1] == 'x.json: 1 annotations give a box but no mask to train on'


def test_what_is_good_of_a_bad_one_stays():
    found = table([[SQUARE, [1, 2], SQUARE[:-1]], [[-20, -9, 30, 5, 30, 25]]])
    assert found.usable.all() and found[0].coco == [SQUARE]
    lines = found.report(Path('x.json'), np.array([1, 2]))
    assert len(lines) == 3 and any('three points' in line for line in lines)
    assert any('odd number' in line for line in lines) and any('cut (first: 2)' in x for x in lines)


def test_one_polygon_without_a_list_around_it():
    assert table([SQUARE])[0].coco == [SQUARE]


def test_images_of_unknown_size_and_none_at_all():
    found = table([rle_of(HALF), [SQUARE]], [[15, 0, 10, 10], BOX], size=(0, 0))
    assert found.usable.all() and not found.report(Path('x.json'), np.array([1, 2]))
    assert len(table([])) == 0 and not table([]).report(Path('x.json'), np.zeros(0, int))


def test_memory():
    # A mask of COCO has 60 numbers on average: two bytes each, and less than as much besides.
    rng = np.random.default_rng(0)
    polygon = [np.round(rng.uniform(0, 600, 60), 2).tolist()]
    found = table([polygon] * 1000, size=(600, 600))
    assert found.nbytes / 1000 < 120 + 80
