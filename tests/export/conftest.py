"""A detector of one block, which every export test shares: small enough to compile in seconds."""

import pytest

from configs import common
from spinenet_jax.data.batch import Category
from spinenet_jax.inference import Trained
from spinenet_jax.tasks.build import build_task, build_task_model
from tests.narrow import model_config, random_variables


@pytest.fixture(scope='session')
def trained():
    """Random weights; the input is 64x96."""
    config = common.get_config()
    small = {'graph': '3B 0,1 out', 'min_level': 3, 'max_level': 3, 'endpoint_channels': 8}
    config.model.update(model_config(**small, head_channels=8).to_dict())
    config.data.image_size = (64, 96)
    config.eval.max_detections = 30
    model = build_task_model(config, axis_name=None)
    variables = random_variables(model, (64, 96))
    categories = [Category(n, 10 * n, f'class {n}') for n in range(1, 5)]
    return Trained(
        config=config,
        task=build_task(config),
        eval_step=None,
        params=variables['params'],
        batch_stats=variables['batch_stats'],
        step=7,
        categories=categories,
    )
