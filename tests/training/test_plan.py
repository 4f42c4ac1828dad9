"""How many steps a run has, and what is said of one that is too short."""

import pytest

from configs import common
from spinenet_jax.training import loop, optim


def config_of(**train):
    config = common.get_config()
    config.train.update({'batch_size': 8, 'epochs': 24.0, 'eval_every_epochs': 4.0, **train})
    config.optim.update({'warmup_epochs': 0.0, 'decay_epochs': (16.0, 22.0)})
    return config


def test_a_small_set_is_shown_more_often_and_the_schedule_stretches_with_it():
    """24 images are 3 steps an epoch, 72 in all; 720 are ten times as many."""
    config = config_of(min_steps=720)
    plan = loop._plan(config, 24)
    assert (plan.steps_per_epoch, plan.total, plan.eval_every) == (3, 720, 120)
    assert plan.stretched_epoch == pytest.approx(30)
    schedule = optim.learning_rate_schedule(config.optim, 256, plan.stretched_epoch, plan.total)
    assert [float(schedule(s)) for s in (479, 480, 659, 660)] == pytest.approx(
        [0.28, 0.028, 0.028, 0.0028]
    )


@pytest.mark.parametrize('images', [240, 118_287])
def test_a_set_that_is_large_enough_keeps_its_epochs(images):
    least, plain = (loop._plan(config_of(min_steps=n), images) for n in (720, 0))
    assert least == plain
    assert plain.stretched_epoch == plain.steps_per_epoch


def test_warm_up_has_a_least_number_of_steps():
    config = config_of()
    config.optim.update({'min_warmup_steps': 50, 'warmup_start_rate': 0.0})
    rates = optim.learning_rate_schedule(config.optim, 256, 30.0, 720)
    assert [float(rates(s)) for s in (0, 25, 50)] == pytest.approx([0, 0.14, 0.28])
    config.optim.warmup_epochs = 4.0  # 120 steps, which are more
    rates = optim.learning_rate_schedule(config.optim, 256, 30.0, 720)
    assert float(rates(60)) == pytest.approx(0.14)


def test_a_run_that_is_too_short_is_told_so():
    config = config_of()
    (line,) = loop._remarks(config, loop._plan(config, 24))
    assert line.startswith('72 steps may be too few') and 'train.min_steps' in line
    config = config_of(min_steps=300)
    assert loop._remarks(config, loop._plan(config, 24)) == []
    config.optim.min_warmup_steps = 300
    (line,) = loop._remarks(config, loop._plan(config, 24))
    assert 'never reaches optim.learning_rate' in line
