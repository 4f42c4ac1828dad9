"""The loop on a tiny model: what it leaves behind, stopping, resuming, repeating, failing."""

import json
import re
import shutil

import jax
import numpy as np
import pytest
from absl import logging
from tiny import StopAfter, accuracy, tiny_config, tiny_experiment

from spinenet_jax import launch
from spinenet_jax.errors import UserError
from spinenet_jax.evaluation import report
from spinenet_jax.training import loop
from spinenet_jax.training.checkpoint import committed_steps, load_model
from spinenet_jax.training.metrics import NonFiniteError


def go(folder, stop=-1, config=None, **experiment):
    config = config or tiny_config()
    return loop.run(config, folder, tiny_experiment(config, **experiment), StopAfter(stop))


def metrics(folder):
    """The lines of metrics.jsonl without what depends on the clock."""
    lines = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
    timed = ('wall_time', 'images_per_second')
    return [{k: v for k, v in line.items() if k not in timed} for line in lines]


def steps_on_disk(folder):
    return sorted(int(p.name) for p in (folder / 'checkpoints').iterdir())


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(scope='module')
def straight(tmp_path_factory):
    """One run that nothing stopped: 20 steps, evaluated at 8, 16 and 20."""
    folder = tmp_path_factory.mktemp('straight')
    return folder, go(folder).state


def test_files_of_a_finished_run(straight):
    folder, state = straight
    assert int(state.step) == 20
    lines = metrics(folder)
    assert [x['step'] for x in lines if 'loss' in x] == list(range(1, 21))
    assert [x['step'] for x in lines if 'eval/AP' in x] == [8, 16, 20]
    results = json.loads((folder / 'results.json').read_text())
    assert results['step'] == 20 and results['AP'] == accuracy(state).metrics['AP']
    assert results['compile_seconds'] > 0
    assert json.loads((folder / 'config.json').read_text())['train']['epochs'] == 5
    environment = json.loads((folder / 'environment.json').read_text())
    assert environment['devices']['count'] == 4 and environment['packages']['jax']
    assert json.loads((folder / 'categories.json').read_text()) == []
    assert list(folder.glob('events.out.tfevents*'))
    assert json.loads((folder / 'detections.json').read_text()) == []


def test_last_checkpoints_and_the_best_are_kept(straight):
    folder, state = straight
    best = json.loads((folder / 'best.json').read_text())
    scores = {x['step']: x['eval/AP'] for x in metrics(folder) if 'eval/AP' in x}
    assert best == {
        'step': max(scores, key=scores.get),
        'metric': 'AP',
        'value': max(scores.values()),
    }
    assert steps_on_disk(folder) == sorted({18, 20, best['step']})
    assert load_model(folder)[1] == best['step']
    weights, step = load_model(folder, 'latest')
    assert step == 20
    assert_equal(weights['params'], state.params)
    assert load_model(folder / 'checkpoints' / '20')[1] == 20
    with pytest.raises(UserError, match=r"no checkpoint '7'; there are best, latest, .*20"):
        load_model(folder, '7')


def test_two_runs_of_one_seed_are_identical(straight, tmp_path):
    folder, state = straight
    assert_equal(go(tmp_path).state, state)
    assert metrics(tmp_path) == metrics(folder)


@pytest.mark.parametrize('stop', [1, 8, 13])
def test_stopped_and_resumed_equals_straight(straight, tmp_path, stop):
    """Stopped at the first step, at a step that is evaluated, between two checkpoints."""
    folder, state = straight
    stopped = go(tmp_path, stop=stop)
    assert not stopped.finished and int(stopped.state.step) == stop
    assert stop in steps_on_disk(tmp_path)
    resumed = go(tmp_path)
    assert resumed.finished
    assert_equal(resumed.state, state)
    assert metrics(tmp_path) == metrics(folder)


def test_killed_without_warning_repeats_from_the_checkpoint(straight, tmp_path):
    """Killed while evaluating step 16: what was logged beyond the checkpoint is not doubled."""
    folder, state = straight
    calls = []

    def killed(state):
        calls.append(int(state.step))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return accuracy(state)

    with pytest.raises(KeyboardInterrupt):
        go(tmp_path, evaluate=killed)
    assert calls == [8, 16]
    with open(tmp_path / 'metrics.jsonl', 'a') as file:
        file.write('{"step": 17, "wall_time": 0, "loss": 1}\n{"step": 18, "wal')
    assert_equal(go(tmp_path).state, state)
    assert metrics(tmp_path) == metrics(folder)


def killed_at(moment, monkeypatch):
    """The run ends at one of the things that an evaluation does one after the other."""

    def kill(*_):
        raise KeyboardInterrupt

    target = {
        'best': (loop.Checkpoints, 'note_evaluation'),
        'results': (report, 'write_files'),
        'mark': (loop.MetricsLog, 'write'),
    }[moment]
    if moment == 'mark':
        write = loop.MetricsLog.write

        def kill(self, step, values):
            if step == 20 and 'eval/AP' in values:
                raise KeyboardInterrupt
            write(self, step, values)

    if moment == 'best':
        note = loop.Checkpoints.note_evaluation

        def kill(self, step, *values):
            if step == 20:
                raise KeyboardInterrupt
            return note(self, step, *values)

    monkeypatch.setattr(*target, kill)


def test_an_evaluation_that_does_not_fit_names_its_own_batch_size(tmp_path):
    """What makes a training step smaller would not help, and the next start evaluates first."""

    def too_large(state):
        raise RuntimeError('RESOURCE_EXHAUSTED: 9 bytes')

    with pytest.raises(UserError, match=r'evaluation of step 8, .* --config.eval.batch_size=16'):
        go(tmp_path, evaluate=too_large)
    assert max(steps_on_disk(tmp_path)) == 8


@pytest.mark.parametrize('moment', ['best', 'results', 'mark'])
def test_the_end_of_an_evaluation_is_made_up_for(straight, tmp_path, monkeypatch, moment):
    """Killed between any two of its files: the line in metrics.jsonl is the last of them."""
    folder, _ = straight
    with monkeypatch.context() as patched:
        killed_at(moment, patched)
        with pytest.raises(KeyboardInterrupt):
            go(tmp_path)
    assert max(x['step'] for x in metrics(tmp_path) if 'eval/AP' in x) == 16
    go(tmp_path)
    assert metrics(tmp_path) == metrics(folder)
    for name in ('best.json', 'detections.json'):
        assert (tmp_path / name).read_text() == (folder / name).read_text()
    assert json.loads((tmp_path / 'results.json').read_text())['step'] == 20


@pytest.mark.parametrize('name', ['results.json', 'detections.json'])
@pytest.mark.parametrize('content', [None, '{"AP": 0.3'])
def test_results_that_are_missing_or_damaged_are_made_anew(straight, tmp_path, name, content):
    shutil.copytree(straight[0], tmp_path / 'run')
    path = tmp_path / 'run' / name
    whole = path.read_text()
    path.unlink() if content is None else path.write_text(content)
    go(tmp_path / 'run')
    again = path.read_text()
    assert again == whole if name == 'detections.json' else json.loads(again)['step'] == 20


def test_a_checkpoint_is_committed_before_it_is_called_the_best(tmp_path, monkeypatch):
    seen = []
    note = loop.Checkpoints.note_evaluation

    def looking(self, step, *values):
        seen.append((step, step in committed_steps(self.folder)))
        return note(self, step, *values)

    monkeypatch.setattr(loop.Checkpoints, 'note_evaluation', looking)
    go(tmp_path)
    assert seen == [(8, True), (16, True), (20, True)]


@pytest.mark.parametrize('step', [18, 20])
def test_a_damaged_checkpoint_changes_nothing_but_the_time(straight, tmp_path, step):
    """The newest, or the one before it; the run ends as if nothing had happened."""
    folder, state = straight
    shutil.copytree(folder, tmp_path / 'run')
    for damaged in {step, 20}:
        (tmp_path / 'run' / 'checkpoints' / str(damaged) / 'optimizer' / '_METADATA').unlink()
    assert_equal(go(tmp_path / 'run').state, state)
    assert metrics(tmp_path / 'run') == metrics(folder)
    best = (folder / 'best.json').read_text()
    assert (tmp_path / 'run' / 'best.json').read_text() == best


SMALL_FILES = ('config.json', 'environment.json', 'categories.json', 'best.json', 'metrics.jsonl')
NONSENSE = {
    'empty': b'',
    'cut': b'{"step": 3, "ep',
    'no object': b'[1, 2]\n7\nnull\n"x"\n',
    'other object': b'{"a": {"b": 1}}\n',
    'not UTF-8': b'\xff\xfe\x00{"step": 1}\n',
    'NUL': bytes(1000),
}


@pytest.mark.parametrize('content', NONSENSE.values(), ids=NONSENSE)
def test_damaged_small_files_of_a_workdir_are_put_right(straight, tmp_path, content):
    """They are noticed before a step is trained, and end no run."""
    folder, state = straight
    shutil.copytree(folder, tmp_path / 'run')
    for name in SMALL_FILES:
        (tmp_path / 'run' / name).write_bytes(content)
    assert_equal(go(tmp_path / 'run').state, state)
    for name in set(SMALL_FILES) - {'metrics.jsonl', 'best.json'}:
        whole = json.loads((folder / name).read_text())
        assert json.loads((tmp_path / 'run' / name).read_text()) == whole
    assert [x['step'] for x in metrics(tmp_path / 'run')] == [20], 'evaluated anew, as it is lost'
    assert json.loads((tmp_path / 'run' / 'best.json').read_text())['step'] == 20


def test_damaged_best_is_found_again_in_the_metrics(straight, tmp_path):
    shutil.copytree(straight[0], tmp_path / 'run')
    whole = (straight[0] / 'best.json').read_text()
    (tmp_path / 'run' / 'best.json').write_text('{')
    go(tmp_path / 'run')
    assert (tmp_path / 'run' / 'best.json').read_text() == whole


@pytest.mark.parametrize('name', SMALL_FILES)
def test_a_folder_in_the_place_of_a_small_file_is_one_line(straight, tmp_path, name):
    shutil.copytree(straight[0], tmp_path / 'run')
    (tmp_path / 'run' / name).unlink()
    (tmp_path / 'run' / name / 'inside').mkdir(parents=True)
    with pytest.raises((UserError, OSError)) as caught:
        go(tmp_path / 'run')
    line, status = launch._line_of(caught.value, '')
    assert name in line and 'folder' in line and '\n' not in line and status in (1, 2)


def test_finished_run_has_nothing_to_do(straight, monkeypatch):
    folder, state = straight
    said = []
    monkeypatch.setattr(logging, 'info', lambda text, *values: said.append(text % values))
    monkeypatch.setattr(loop, 'create_state', None)  # weights are not drawn to be thrown away
    before = metrics(folder)
    again = go(folder)
    assert again.finished and metrics(folder) == before
    assert_equal(again.state, state)
    assert 'step 20 is saved and the last one is 20: nothing to train' in said
    go(folder, config=tiny_config(epochs=4))
    assert 'step 20 is saved and the last one is 16: nothing to train' in said


def test_bad_loss_keeps_the_last_good_checkpoint(tmp_path):
    with pytest.raises(NonFiniteError) as caught:
        go(tmp_path, bad_step=10)
    message = str(caught.value)
    assert re.match(r'step 11: the loss is nan .* checkpoint 9 is kept', message)
    assert '\n' not in message
    weights, step = load_model(tmp_path)
    assert step in (8, 9)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(weights))
    assert max(x['step'] for x in metrics(tmp_path)) == 10


def test_bad_loss_at_a_checkpoint_step_is_not_saved(tmp_path):
    with pytest.raises(NonFiniteError, match=r'^step 3: .* no checkpoint was saved'):
        go(tmp_path, bad_step=2)
    assert steps_on_disk(tmp_path) == []


@pytest.mark.parametrize(
    ('optim', 'epochs'),
    [({'momentum': float('nan')}, 1), ({'learning_rate': 1e38, 'warmup_start_rate': 1e38}, 5)],
)
def test_a_state_that_is_not_finite_is_never_saved(tmp_path, optim, epochs):
    """The loss looks at the weights before the update; what is saved is what comes after it."""
    config = tiny_config(epochs=epochs, checkpoint_every_steps=1, eval_every_epochs=1000)
    config.optim.update(optim)
    with pytest.raises(NonFiniteError, match=r'^step 1: its update left params/.* no checkpoint'):
        go(tmp_path, config=config)
    assert steps_on_disk(tmp_path) == []
    lower = tiny_config(epochs=1)
    assert go(tmp_path, config=lower).finished


def test_other_model_in_the_workdir_is_refused(straight):
    folder, _ = straight
    config = tiny_config()
    config.model.activation = 'swish'
    with pytest.raises(UserError, match=r"of another model: model.activation: 'relu' -> 'swish'"):
        go(folder, config=config)
    longer = tiny_config(epochs=5, log_every_steps=7)
    assert go(folder, config=longer).finished


def test_batch_that_does_not_divide_is_refused(tmp_path):
    with pytest.raises(UserError, match=r'train.batch_size=6 .* 4 devices .* multiple of 4'):
        go(tmp_path, config=tiny_config(batch_size=6))


def test_init_from_takes_weights_and_not_the_step(straight, tmp_path):
    folder, _ = straight
    config = tiny_config(init_from=str(folder), epochs=1)
    config.optim.learning_rate = config.optim.warmup_start_rate = config.optim.weight_decay = 0.0
    state = go(tmp_path, config=config).state
    assert int(state.step) == 4
    assert_equal(state.params, load_model(folder)[0]['params'])


def test_init_from_nowhere_is_one_line(tmp_path):
    with pytest.raises(UserError, match='no checkpoint here'):
        go(tmp_path, config=tiny_config(init_from=str(tmp_path / 'nothing')))


def test_workdir_that_is_a_file(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match=r'--workdir=.*file: cannot be written'):
        loop.train(tiny_config(), tmp_path / 'file')


@pytest.mark.parametrize(('epochs', 'steps'), [(0.5, 2), (0.001, 1)])
def test_a_part_of_an_epoch_is_a_run_of_at_least_one_step(tmp_path, epochs, steps):
    config = tiny_config(epochs=epochs, eval_every_epochs=0.3)
    assert int(go(tmp_path, config=config).state.step) == steps
    assert [x['step'] for x in metrics(tmp_path) if 'eval/AP' in x] == list(range(1, steps + 1))


def test_a_run_of_more_steps_than_can_be_counted_is_refused(tmp_path):
    with pytest.raises(UserError, match=r'train\.epochs=1e\+09 of 4 steps'):
        go(tmp_path, config=tiny_config(epochs=1e9))
