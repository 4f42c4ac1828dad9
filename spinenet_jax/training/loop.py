"""In which order does a run train, evaluate, save and stop?

Everything that takes part is built elsewhere: the parts in experiment.py, the step in step.py,
files by checkpoint.py, metrics.py and workdir.py.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
from absl import logging
from ml_collections import ConfigDict

from spinenet_jax import settings
from spinenet_jax.errors import UserError
from spinenet_jax.evaluation import report
from spinenet_jax.evaluation.runner import EvaluationResult
from spinenet_jax.parallel import replicate, unreplicate
from spinenet_jax.training import optim, workdir
from spinenet_jax.training.checkpoint import Checkpoints, load_model
from spinenet_jax.training.experiment import Experiment, build_experiment
from spinenet_jax.training.feed import device_batches
from spinenet_jax.training.metrics import MetricsLog, NonFiniteError, StepMonitor
from spinenet_jax.training.pictures import write_pictures
from spinenet_jax.training.preempt import PreemptionWatch
from spinenet_jax.training.state import TrainState, create_state, empty_state
from spinenet_jax.training.step import check_batch_size, make_train_step
from spinenet_jax.training.transfer import transfer

MOST_STEPS = 2**31 - 1  # a step is an int32


class RunResult(NamedTuple):
    """finished: False if the run was asked to stop before its last step."""

    state: TrainState
    finished: bool


def train(config: ConfigDict, workdir_path: str | os.PathLike) -> RunResult:
    """Train as the config says; the same command on the same workdir continues.

    Leaves config.json, environment.json, categories.json, metrics.jsonl, TensorBoard events,
    checkpoints/, pictures/ and, at the end, results.json and detections.json in the workdir.
    Raises UserError for what the user can put right, NonFiniteError if the loss is lost.
    """
    settings.check(config)
    folder = workdir.create(workdir_path)  # before the data is read: it may take a while
    for line in settings.remarks(config):
        logging.warning('%s', line)
    return run(config, folder, build_experiment(config), PreemptionWatch())


class _Plan(NamedTuple):
    """The numbers of steps that follow from a config and the number of images."""

    steps_per_epoch: int
    total: int
    eval_every: int
    save_every: int

    def evaluates(self, step: int) -> bool:
        return step == self.total or (self.eval_every > 0 and step % self.eval_every == 0)

    def saves(self, step: int) -> bool:
        return self.evaluates(step) or (self.save_every > 0 and step % self.save_every == 0)


class _Scorer:
    """Evaluates and writes down what came out."""

    def __init__(self, config, folder, experiment, checkpoints, log) -> None:
        self._config, self._folder, self._experiment = config, folder, experiment
        self._checkpoints, self._log = checkpoints, log
        self._began = time.monotonic()
        self.compile_seconds = 0.0

    def evaluate(self, state: TrainState, last: bool) -> None:
        """Score one state; after the last step also write results.json and detections.json."""
        step = int(state.step)
        result = self._experiment.evaluate(state)
        main = self._experiment.task.main_metric
        words = ', '.join(f'{name} {value:.3f}' for name, value in result.metrics.items())
        logging.info('evaluation at step %d: %s (%.0f s)', step, words, result.seconds)
        self._log.write(step, {f'eval/{name}': value for name, value in result.metrics.items()})
        value = result.metrics.get(main)  # missing where the split has no annotations
        if value is not None and self._checkpoints.note_evaluation(step, main, value):
            logging.info('step %d is the best so far: %s %.4f', step, main, value)
        if jax.process_index() != 0:
            return
        source = self._experiment.eval_source
        if source is not None:
            write_pictures(self._folder, step, self._experiment.task, source, result.examples)
        if last:
            self._write_results(step, result)

    def _write_results(self, step: int, result: EvaluationResult) -> None:
        """results.json and detections.json, with the times of this process."""
        facts = {
            'step': step,
            'split': getattr(self._experiment.eval_source, 'name', ''),
            'wall_seconds': round(time.monotonic() - self._began, 1),
            'compile_seconds': round(self.compile_seconds, 1),
        }
        report.write_files(self._folder, result, facts)
        logging.info('%s', report.table(result))
        logging.info('results are in %s', self._folder / 'results.json')


class _Helpers(NamedTuple):
    """What the steps report to."""

    checkpoints: Checkpoints
    monitor: StepMonitor
    scorer: _Scorer
    preemption: PreemptionWatch


def run(
    config: ConfigDict,
    folder: str | os.PathLike,
    experiment: Experiment,
    preemption: PreemptionWatch,
) -> RunResult:
    """The loop itself, on parts made elsewhere; see `train`.

    A checkpoint is saved before the evaluation of its step, so that a run killed while evaluating
    loses nothing; on restart that evaluation is made up for.
    """
    folder = workdir.create(folder)
    workdir.record_config(folder, config)
    workdir.record_environment(folder)
    workdir.record_categories(folder, experiment.categories)
    plan = _plan(config, experiment.image_count)
    schedule = optim.learning_rate_schedule(
        config.optim, config.train.batch_size, plan.steps_per_epoch, plan.total
    )
    optimizer = optim.make_optimizer(config.optim, schedule)
    checkpoints = Checkpoints(folder, config.train.keep_checkpoints)
    state = _first_state(config, checkpoints, experiment, optimizer)
    _log_start(config, experiment, plan, state)
    start = int(state.step)
    log = MetricsLog(folder, start)
    monitor = StepMonitor(
        log,
        start_step=start,
        total_steps=plan.total,
        steps_per_epoch=plan.steps_per_epoch,
        batch_size=config.train.batch_size,
        log_every=config.train.log_every_steps,
    )
    scorer = _Scorer(config, folder, experiment, checkpoints, log)
    step_function = make_train_step(
        *(experiment.model, experiment.task, optimizer, schedule),
        seed=config.seed,
        accumulate_steps=config.optim.accumulate_steps,
    )
    try:
        if start > 0 and plan.evaluates(start) and not log.has(start, 'eval/'):
            scorer.evaluate(state, last=start == plan.total)
        batches = device_batches(experiment.batches(start), experiment.task.rows.train.fields)
        helpers = _Helpers(checkpoints, monitor, scorer, preemption)
        with preemption:
            return _steps(state, batches, step_function, plan, helpers)
    except NonFiniteError as error:
        kept = checkpoints.latest_step
        where = 'no checkpoint was saved before' if kept is None else f'checkpoint {kept} is kept'
        raise NonFiniteError(f'{error}; {where}. Try a lower optim.learning_rate') from None
    finally:
        monitor.close()
        log.close()
        checkpoints.close()
        if experiment.unreadable():
            logging.warning('data: %s', experiment.unreadable())


def _steps(
    state: TrainState,
    batches: Iterator[dict[str, jax.Array]],
    step_function: Callable[..., tuple[TrainState, dict[str, jax.Array]]],
    plan: _Plan,
    helpers: _Helpers,
) -> RunResult:
    """From the state's step to the last, or to where the run is asked to stop."""
    replicated = replicate(state)
    start = int(state.step)
    for step in range(start + 1, plan.total + 1):
        batch = next(batches)
        began = time.monotonic()
        replicated, metrics = step_function(replicated, batch)
        if step == start + 1:  # tracing and compiling block, running does not
            helpers.scorer.compile_seconds = time.monotonic() - began
            logging.info('compiled the training step in %.1f s', time.monotonic() - began)
        helpers.monitor.push(step, metrics)
        stop = helpers.preemption.reached(step)
        if not (stop or plan.saves(step)):
            continue
        helpers.monitor.flush()
        state = unreplicate(replicated)
        helpers.checkpoints.save(state)
        if stop:
            logging.info('asked to stop: saved step %d, leaving', step)
            return RunResult(state, finished=False)
        if plan.evaluates(step):
            helpers.scorer.evaluate(state, last=step == plan.total)
        helpers.monitor.pause()
    return RunResult(state, finished=True)


def _plan(config: ConfigDict, image_count: int) -> _Plan:
    """Steps from epochs, at least one; UserError where a batch cannot be cut into equal parts."""
    batch_size = config.train.batch_size
    check_batch_size(batch_size, jax.device_count(), config.optim.accumulate_steps)
    steps = optim.steps_per_epoch(image_count, batch_size)
    every = config.train.eval_every_epochs
    if config.train.epochs * steps >= MOST_STEPS:
        raise UserError(
            f'train.epochs={config.train.epochs:g} of {steps} steps: a run has at most 2^31 steps'
        )
    return _Plan(
        steps_per_epoch=steps,
        total=max(1, round(config.train.epochs * steps)),
        eval_every=max(every > 0, round(every * steps)),  # never 0 unless asked for
        save_every=config.train.checkpoint_every_steps,
    )


def _log_start(config: ConfigDict, experiment: Experiment, plan: _Plan, state: TrainState) -> None:
    """What is about to be trained, on what."""
    for line in experiment.reports:
        logging.info('data: %s', line)
    optim.log_scaling(config.optim, config.train.batch_size)
    logging.info(
        '%s parameters, %d images, %d steps of %d images on %d x %s',
        f'{sum(leaf.size for leaf in jax.tree.leaves(state.params)):,}',
        *(experiment.image_count, plan.total, config.train.batch_size),
        *(jax.device_count(), jax.devices()[0].device_kind),
    )


def _first_state(config, checkpoints, experiment, optimizer) -> TrainState:
    """The latest checkpoint; else drawn weights, and those of train.init_from that fit."""
    parts = (experiment.model, optimizer, experiment.task.image_size)
    if checkpoints.latest_step is not None:
        state = checkpoints.restore_latest(empty_state(*parts))
        logging.info('continuing at step %d', int(state.step))
        return state
    state = create_state(*parts, config.seed)
    if not config.train.init_from:
        return state
    source, step = load_model(config.train.init_from)
    target = {'params': state.params, 'batch_stats': state.batch_stats}
    filled, told = transfer(target, source, config.train.init_from)
    logging.info('starting from step %d of %s:', step, config.train.init_from)
    for line in told.lines():
        logging.info('  %s', line)
    return state.replace(**filled)
