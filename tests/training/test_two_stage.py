"""A two-stage task with masks goes through the real loop without a change to it."""

import json

import cv2
import jax
import numpy as np
import pytest
from test_loop import StopAfter, metrics
from two_stage import Squares, SquareTask, TwoStage, square_config, square_experiment

from spinenet_jax.data.decode import decode_image
from spinenet_jax.training import loop
from tests.contract import check_task


def go(folder, stop=-1):
    config = square_config()
    return loop.run(config, folder, square_experiment(config), StopAfter(stop))


@pytest.fixture(scope='module')
def straight(tmp_path_factory):
    folder = tmp_path_factory.mktemp('straight')
    return folder, go(folder).state


def test_keeps_the_contract():
    record = Squares()[1]
    check_task(SquareTask(), TwoStage(None), record, decode_image(record['image']))


def test_trains_scores_and_draws(straight):
    folder, state = straight
    assert int(state.step) == 6
    lines = metrics(folder)
    losses = [line['loss'] for line in lines if 'loss' in line]
    assert len(losses) == 6 and losses[-1] < losses[0]
    regions = {line['regions'] for line in lines if 'regions' in line}
    assert len(regions) > 1 and all(0 < count <= 8 * 3 for count in regions)
    scores = [line for line in lines if 'eval/mask/AP' in line]
    assert [line['step'] for line in scores] == [2, 4, 6] and 'eval/AP' in scores[0]
    best = json.loads((folder / 'best.json').read_text())
    assert best['metric'] == 'mask/AP'
    assert best['value'] == max(line['eval/mask/AP'] for line in scores)
    results = json.loads((folder / 'results.json').read_text())
    assert {'AP', 'mask/AP'} <= results.keys() and results['images'] == 8
    names = sorted(path.name for path in (folder / 'pictures').iterdir())
    assert names == [f'{step}_{image}.jpg' for step in (2, 4, 6) for image in (0, 4)]
    assert cv2.imread(str(folder / 'pictures' / names[0])).shape == (1004, 1944, 3)


def test_stopped_and_resumed_equals_straight(straight, tmp_path):
    folder, state = straight
    assert not go(tmp_path, stop=3).finished
    jax.tree.map(np.testing.assert_array_equal, go(tmp_path).state, state)
    assert metrics(tmp_path) == metrics(folder)
