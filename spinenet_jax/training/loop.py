"""Trains: runs the steps, evaluates, saves and stops, in the order that loses nothing.

Everything that takes part is built elsewhere: the parts in experiment.py, the step in step.py,
files by checkpoint.py, metrics.py and workdir.py.

A checkpoint is committed before anything is said of it, and the line of an evaluation in
metrics.jsonl is written after everything else that belongs to it. So a run that is killed at any
moment makes up, when it is started again, for whatever is missing.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
from absl import logging
from etils import epath
from ml_collections import ConfigDict

from spinenet_jax import console, settings
from spinenet_jax.errors import UserError, is_out_of_memory
from spinenet_jax.evaluation import report
from spinenet_jax.evaluation.runner import EvaluationResult
from spinenet_jax.parallel import replicate, unreplicate
from spinenet_jax.training import agreement, averaging, distributed, finite, optim, workdir
from spinenet_jax.training.checkpoint import Best, Checkpoints, load_model
from spinenet_jax.training.experiment import Experiment, build_experiment
from spinenet_jax.training.feed import device_batches
from spinenet_jax.training.metrics import MetricsLog, NonFiniteError, StepMonitor
from spinenet_jax.training.pictures import write_pictures
from spinenet_jax.training.preempt import PreemptionWatch
from spinenet_jax.training.state import TrainState, create_state, empty_state
from spinenet_jax.training.step import check_batch_size, make_train_step
from spinenet_jax.training.transfer import other_graph, transfer

MOST_STEPS = 2**31 - 1  # a step is an int32
FEW_STEPS = 200  # from nothing, a detector of this family scores near zero after fewer


class RunResult(NamedTuple):
    """finished: False if the run was asked to stop before its last step."""

    state: TrainState
    finished: bool


def train(config: ConfigDict, workdir_path: str | os.PathLike) -> RunResult:
    """Train as the config says; the same command on the same workdir continues.

    Leaves config.json, environment.json, categories.json, metrics.jsonl, train.log, TensorBoard
    events, checkpoints/, pictures/ and, at the end, results.json and detections.json in the
    workdir.

    Raises:
      UserError: what the user can put right.
      RunError: a broken world; NonFiniteError, which is one, if the loss is lost.
    """
    settings.check(config)
    with workdir.owned(workdir_path) as folder, _log_file(folder):
        for line in settings.remarks(config):
            logging.warning('%s', line)
        agreement.compare_start(config)
        return run(config, folder, build_experiment(config), PreemptionWatch())


def _log_file(folder: epath.Path) -> contextlib.AbstractContextManager[None]:
    """train.log of process 0, train-1.log of process 1; none in a bucket, which cannot append."""
    if '://' in os.fspath(folder):
        return contextlib.nullcontext()
    index = jax.process_index()
    return console.log_file(folder / (f'train-{index}.log' if index else 'train.log'))


class _Plan(NamedTuple):
    """The numbers of steps that follow from a config and the number of images.

    Attributes:
      steps_per_epoch: steps that show every image once.
      stretched_epoch: what the config's epochs are multiplied by; more than `steps_per_epoch` where
        `train.min_steps` asks for more steps than its epochs give.
      total: steps of the run.
      eval_every: steps between evaluations; 0: after the last alone.
      save_every: steps between checkpoints besides; 0: none.
    """

    steps_per_epoch: int
    stretched_epoch: float
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
        """Score one state; after the last step also write results.json and detections.json.

        The line in metrics.jsonl comes last: it says that nothing of this evaluation is missing.
        """
        step = int(state.step)
        logging.info('evaluating step %d', step)
        try:
            result = self._experiment.evaluate(state)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            size, devices = self._config.eval.batch_size, jax.device_count()
            smaller = f'--config.eval.batch_size={max(size // 2, devices)}'
            raise UserError(
                f'the evaluation of step {step}, whose checkpoint is kept, does not fit the memory '
                f'of the device: try {smaller if size > devices else "a smaller data.image_size"}'
            ) from error
        main = self._experiment.task.main_metric
        words = ', '.join(f'{name} {value:.3f}' for name, value in result.metrics.items())
        logging.info('evaluation at step %d: %s (%.0f s)', step, words, result.seconds)
        self._checkpoints.wait()  # what is called the best must be there
        value = result.metrics.get(main)  # missing where the split has no annotations
        if value is not None and self._checkpoints.note_evaluation(step, main, value):
            logging.info('step %d is the best so far: %s %.4f', step, main, value)
        if jax.process_index() == 0:
            source = self._experiment.eval_source
            if source is not None:
                task, examples = self._experiment.task, result.examples
                self._log.write_pictures(
                    step, write_pictures(self._folder, step, task, source, examples)
                )
            if last:
                self._write_results(step, result)
        line = {f'eval/{name}': value for name, value in result.metrics.items()}
        self._log.write(step, line | {'eval/images': result.images})

    def missing(self, step: int, plan: _Plan) -> bool:
        """Whether the evaluation of a step that a run starts at must be made up for."""
        if step == 0 or not plan.evaluates(step):
            return False
        done = self._log.has(step, 'eval/') and (step != plan.total or self._has_results(step))
        return distributed.from_first('missing', not done)

    def _has_results(self, step: int) -> bool:
        """Whether the files of the last evaluation can be read, as far as it has them."""
        if not self._log.has(step, f'eval/{self._experiment.task.main_metric}'):
            return True
        problem = report.problem(self._folder)
        if problem:
            logging.warning('%s: the last evaluation is made up for', problem)
        return not problem

    def _write_results(self, step: int, result: EvaluationResult) -> None:
        """results.json and detections.json, with the times of this process."""
        facts = {
            'step': step,
            'split': getattr(self._experiment.eval_source, 'name', ''),
            'wall_seconds': round(time.monotonic() - self._began, 1),
            'compile_seconds': round(self.compile_seconds, 1),
        }
        report.write_files(self._folder, result, facts)
        logging.info('%s', report.table(result, self._experiment.task.main_metric))
        logging.info('results are in %s', self._folder / 'results.json')


class _Helpers(NamedTuple):
    """What the steps report to."""

    checkpoints: Checkpoints
    monitor: StepMonitor
    scorer: _Scorer
    preemption: PreemptionWatch

    def evaluate(self, state: TrainState, last: bool) -> None:
        """Score a state that is being saved; who interrupts meanwhile waits for that alone."""
        with self.preemption.saved(self.finish_saving):
            self.scorer.evaluate(averaging.swapped(state), last)

    def finish_saving(self) -> str:
        """Waits until the last checkpoint is committed, and says which that is."""
        self.checkpoints.wait()
        step = self.checkpoints.latest_step
        return 'nothing was saved yet' if step is None else f'step {step} is saved'


def run(
    config: ConfigDict,
    folder: str | os.PathLike,
    experiment: Experiment,
    preemption: PreemptionWatch,
) -> RunResult:
    """The loop itself, on parts made elsewhere and in a workdir that is ours; see `train`.

    A checkpoint is saved before the evaluation of its step, so that a run killed while evaluating
    loses nothing; on restart that evaluation is made up for.
    """
    folder = workdir.create(folder)
    agreement.check_shared(folder)
    agreement.compare_start(config)  # with what the data decided
    sources = [source for source in (experiment.train_source, experiment.eval_source) if source]
    agreement.compare_data(experiment.image_count, sources, experiment.categories)
    workdir.record_config(folder, config)
    workdir.record_environment(folder)
    workdir.record_categories(folder, experiment.categories)
    plan = _plan(config, experiment.image_count)
    schedule = optim.learning_rate_schedule(
        config.optim, config.train.batch_size, plan.stretched_epoch, plan.total
    )
    optimizer = optim.make_optimizer(config.optim, schedule)
    with contextlib.ExitStack() as stack:
        stack.callback(_warn_unreadable, experiment)
        checkpoints = Checkpoints(folder, config.train.keep_checkpoints)
        stack.enter_context(preemption)
        stack.callback(checkpoints.close)
        distributed.note_folder(os.fspath(checkpoints.folder), lambda: checkpoints.latest_step)
        logging.info('building the model and compiling its step, which may take a minute or more')
        state = _first_state(config, checkpoints, experiment, optimizer)
        agreement.compare_state(state)
        start = int(state.step)
        log = MetricsLog(folder, start)
        stack.callback(log.close)
        checkpoints.settle_best(_evaluations(log, experiment.task.main_metric))
        _log_start(config, experiment, plan, state)
        monitor = StepMonitor(
            log,
            start_step=start,
            total_steps=plan.total,
            steps_per_epoch=plan.steps_per_epoch,
            batch_size=config.train.batch_size,
            log_every=config.train.log_every_steps,
        )
        stack.callback(monitor.close)
        scorer = _Scorer(config, folder, experiment, checkpoints, log)
        helpers = _Helpers(checkpoints, monitor, scorer, preemption)
        if scorer.missing(start, plan):
            helpers.evaluate(state, last=start == plan.total)
        if start >= plan.total:
            logging.info(
                'step %d is saved and the last one is %d: nothing to train', start, plan.total
            )
            return RunResult(state, finished=True)
        step_function = make_train_step(
            *(experiment.model, experiment.task, optimizer, schedule),
            seed=config.seed,
            accumulate_steps=config.optim.accumulate_steps,
        )
        batches = device_batches(experiment.batches(start), experiment.task.rows.train.fields)
        try:
            result = _steps(state, batches, step_function, plan, helpers)
        except NonFiniteError as error:
            checkpoints.wait()
            kept = checkpoints.latest_step
            where = (
                'no checkpoint was saved before' if kept is None else f'checkpoint {kept} is kept'
            )
            raise NonFiniteError(f'{error}; {where}. Try a lower optim.learning_rate') from None
        if not result.finished:  # already leaving: the caller hears of it when all is on disk
            checkpoints.wait()
            return result
        with preemption.saved(helpers.finish_saving):
            checkpoints.wait()
        return result


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
        distributed.note_progress(step)
        helpers.monitor.push(step, metrics)
        stop = helpers.preemption.reached(step)
        if not (stop or plan.saves(step)):
            continue
        helpers.monitor.flush()
        bad = finite.first_bad(replicated)
        if bad:
            raise NonFiniteError(
                f'step {step}: its update left {bad} infinite, NaN or beyond 1e19: it is not saved'
            )
        state = unreplicate(replicated)
        helpers.checkpoints.save(averaging.swapped(state))
        if stop:
            logging.info('asked to stop: %s, leaving', helpers.finish_saving())
            return RunResult(state, finished=False)
        if plan.evaluates(step):
            helpers.evaluate(state, last=step == plan.total)
        helpers.monitor.pause()
    return RunResult(state, finished=True)


def _evaluations(log: MetricsLog, metric: str) -> list[Best]:
    """The evaluations that a run has written down, by the metric that the best is judged by."""
    return [Best(step, metric, value) for step, value in log.values(f'eval/{metric}')]


def _warn_unreadable(experiment: Experiment) -> None:
    """Says at the end which images could not be read."""
    if experiment.unreadable():
        logging.warning('data: %s', experiment.unreadable())


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
    of_epochs = max(1, round(config.train.epochs * steps))
    total = max(of_epochs, config.train.min_steps)
    stretched = steps * (total / of_epochs)
    return _Plan(
        steps_per_epoch=steps,
        stretched_epoch=stretched,
        total=total,
        eval_every=max(every > 0, round(every * stretched)),  # never 0 unless asked for
        save_every=config.train.checkpoint_every_steps,
    )


def _remarks(config: ConfigDict, plan: _Plan) -> list[str]:
    """Lines on runs that are too short for what they are to learn."""
    lines = []
    if plan.total < FEW_STEPS:
        lines.append(
            f'{plan.total} steps may be too few to learn from: set train.min_steps, or raise '
            'train.epochs'
        )
    if plan.total <= config.optim.min_warmup_steps:
        lines.append(
            f'optim.min_warmup_steps={config.optim.min_warmup_steps} is all of the {plan.total} '
            'steps: the learning rate never reaches optim.learning_rate'
        )
    return lines


def _log_start(config: ConfigDict, experiment: Experiment, plan: _Plan, state: TrainState) -> None:
    """What is about to be trained, on what."""
    for line in experiment.reports:
        logging.info('data: %s', line)
    optim.log_scaling(config.optim, config.train.batch_size)
    if plan.stretched_epoch > plan.steps_per_epoch:
        logging.info(
            'train.min_steps=%d: %g epochs instead of %g, and the schedule with them',
            *(plan.total, plan.total / plan.steps_per_epoch, config.train.epochs),
        )
    for line in _remarks(config, plan):
        logging.warning('%s', line)
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
        state = averaging.swapped(checkpoints.restore_latest(empty_state(*parts)))
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
    elsewhere = other_graph(config.model, config.train.init_from)
    if elsewhere:
        logging.warning('%s', elsewhere)
    return averaging.restarted(state.replace(**filled))
