"""Mask R-CNN in the real loop on four devices: its regions are drawn anew in every step."""

import dataclasses

import jax
import numpy as np
import pytest
from test_loop import metrics
from tiny import StopAfter

from configs import digits
from spinenet_jax.evaluation.runner import EvaluationResult
from spinenet_jax.training import loop
from spinenet_jax.training.experiment import build_experiment

SCORE = {'AP': 0.0, 'mask/AP': 0.0}


GRAPH = '5R 0,1 | 2R 2,0 | 3B 3,2 out | 4R 3,4 out'


def narrow():
    """configs/digits.py:masks in four steps of eight images, on a graph of four blocks."""
    config = digits.get_config('masks')
    config.model.update(width=0.0625, endpoint_channels=8, head_channels=8, hidden_channels=16)
    config.model.update(graph=GRAPH, min_level=3, max_level=4, dtype='bfloat16')
    config.data.image_size = (64, 96)
    config.train.update(batch_size=8, epochs=4 * 8 / 2000, eval_every_epochs=0.0)
    config.train.update(max_proposals=40, regions=16, checkpoint_every_steps=2, log_every_steps=1)
    return config


def go(folder, stop=-1):
    config = narrow()
    experiment = dataclasses.replace(
        build_experiment(config),
        evaluate=lambda state: EvaluationResult(SCORE, {}, [], images=1, skipped=0, seconds=0.0),
        eval_source=None,
    )
    return loop.run(config, folder, experiment, StopAfter(stop))


@pytest.mark.slow
def test_stopped_and_resumed_equals_straight(tmp_path):
    straight, resumed = tmp_path / 'straight', tmp_path / 'resumed'
    state = go(straight).state
    assert int(state.step) == 4
    assert not go(resumed, stop=2).finished
    jax.tree.map(np.testing.assert_array_equal, go(resumed).state, state)
    assert metrics(resumed) == metrics(straight)
    losses = {name for name in metrics(straight)[0] if name.endswith('_loss')}
    assert any('mask' in name for name in losses) and len(losses) >= 5
