"""Checkpoints that are damaged, old, deleted meanwhile or not finite, and which one is the best."""

import json
import os
import shutil

import jax
import numpy as np
import pytest
from absl import logging
from tiny import CLASSES

from spinenet_jax.errors import UserError
from spinenet_jax.files import absolute
from spinenet_jax.parallel import replicate
from spinenet_jax.training import checkpoint, finite
from spinenet_jax.training.checkpoint import Best, Checkpoints, load_model
from spinenet_jax.training.state import TrainState


def state_at(step, value=None):
    """A state whose numbers tell its step; one array is large enough for a file of its own."""
    value = float(step if value is None else value)
    params = {
        'conv': {'kernel': np.random.default_rng(step).normal(size=(64, 64)).astype(np.float32)},
        'head': {'bias': np.full(CLASSES, value, np.float32)},
    }
    return TrainState(
        step=np.int32(step),
        params=params,
        batch_stats={'norm': {'mean': np.full(4, value, np.float32)}},
        opt_state=({'trace': jax.tree.map(np.zeros_like, params)}, np.int32(step)),
    )


def save(folder, *steps, keep=10):
    checkpoints = Checkpoints(folder, keep)
    for step in steps:
        checkpoints.save(state_at(step))
    checkpoints.close()


@pytest.fixture(scope='module')
def three(tmp_path_factory):
    """A workdir with checkpoints 1, 2 and 3, of which 2 is the best."""
    folder = tmp_path_factory.mktemp('three')
    save(folder, 1, 2, 3)
    (folder / 'best.json').write_text(json.dumps({'step': 2, 'metric': 'AP', 'value': 0.5}))
    return folder


@pytest.fixture
def workdir(three, tmp_path):
    """A copy of it."""
    shutil.copytree(three, tmp_path / 'run')
    return tmp_path / 'run'


@pytest.fixture
def warnings(monkeypatch):
    """What is warned of, as one text."""
    lines = []
    monkeypatch.setattr(logging, 'warning', lambda text, *values: lines.append(text % values))
    return lines


def restore(folder, like=None):
    checkpoints = Checkpoints(folder, 10)
    state = checkpoints.restore_latest(like or state_at(0))
    checkpoints.close()
    return state


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def largest_file(folder):
    files = [p for p in folder.rglob('*') if p.is_file()]
    return max(files, key=lambda p: p.stat().st_size)


def truncate(folder):
    """The largest data file of the model ends in the middle."""
    os.truncate(largest_file(folder / 'model'), 100)


def flip(folder):
    """One bit in the middle of the largest data file of the model."""
    path = largest_file(folder / 'model')
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def lose_metadata(folder):
    (folder / 'model' / '_METADATA').unlink()


def cut_metadata(folder):
    os.truncate(folder / 'model' / '_METADATA', 50)


def lose_model(folder):
    shutil.rmtree(folder / 'model')


def lose_data(folder):
    shutil.rmtree(folder / 'model' / 'd')


def lose_digest(folder):
    shutil.rmtree(folder / 'digest')


def cut_digest(folder):
    os.truncate(folder / 'digest' / 'digest.json', 20)


def take_other_values(folder):
    """Sound files that hold the numbers of another step: only the digest can tell."""
    shutil.rmtree(folder / 'model')
    shutil.copytree(folder.parent / '1' / 'model', folder / 'model')


def lose_optimizer(folder):
    shutil.rmtree(folder / 'optimizer')


def empty(folder):
    shutil.rmtree(folder)
    folder.mkdir()


DAMAGES = [
    truncate, flip, lose_metadata, cut_metadata, lose_model, lose_data, lose_digest, cut_digest,
    take_other_values, empty,
]  # fmt: skip


def test_a_state_comes_back_bit_for_bit(three):
    assert_equal(restore(three), state_at(3))
    assert_equal(load_model(three, '1')[0]['params'], state_at(1).params)


@pytest.mark.parametrize('damage', [*DAMAGES, lose_optimizer])
def test_training_goes_on_from_the_newest_sound_one(workdir, damage, warnings):
    """The damaged one is named and set aside, so that its step can be saved again."""
    damage(workdir / 'checkpoints' / '3')
    assert_equal(restore(workdir), state_at(2))
    assert any('checkpoint 3 is damaged' in line for line in warnings)
    assert (workdir / 'damaged' / '3').is_dir()
    save(workdir, 3)
    assert_equal(restore(workdir), state_at(3))


@pytest.mark.parametrize('damage', DAMAGES)
def test_evaluation_says_which_is_damaged(workdir, damage, warnings, monkeypatch):
    monkeypatch.setattr(checkpoint, 'READ_AGAIN_SECONDS', 0.0)
    damage(workdir / 'checkpoints' / '3')
    assert load_model(workdir, 'latest')[1] == 2
    assert any('checkpoint 3 is damaged' in line for line in warnings)
    with pytest.raises(UserError, match='checkpoint 3 is damaged'):
        load_model(workdir, '3')
    assert load_model(workdir, 'best')[1] == 2
    damage(workdir / 'checkpoints' / '2')
    with pytest.raises(UserError, match=r'checkpoint 2 is damaged .* --checkpoint=latest takes'):
        load_model(workdir, 'best')


def test_nothing_sound_is_one_line(workdir, monkeypatch):
    monkeypatch.setattr(checkpoint, 'READ_AGAIN_SECONDS', 0.0)
    for step in '123':
        lose_metadata(workdir / 'checkpoints' / step)
    with pytest.raises(UserError, match=r'no checkpoint can be read: 3 .*; 2 .*; 1 '):
        load_model(workdir, 'latest')
    with pytest.raises(UserError, match=r'no checkpoint can be read: checkpoint 3 is damaged'):
        restore(workdir)
    assert len(os.listdir(workdir / 'checkpoints')) == 3, 'nothing is moved that leaves nothing'


def test_checkpoints_from_before_digests_are_read(workdir):
    folder = workdir / 'checkpoints' / '3'
    lose_digest(folder)
    metadata = json.loads((folder / '_CHECKPOINT_METADATA').read_text())
    del metadata['item_handlers']['digest']
    (folder / '_CHECKPOINT_METADATA').write_text(json.dumps(metadata))
    assert_equal(restore(workdir), state_at(3))
    assert load_model(workdir, 'latest')[1] == 3


def test_another_model_is_no_damage(three):
    like = state_at(0)
    like.params['head']['bias'] = np.zeros(CLASSES + 1, np.float32)
    with pytest.raises(UserError, match=r'does not fit this configuration \(params/head/bias is'):
        restore(three, like)
    like = state_at(0).replace(opt_state=())
    with pytest.raises(UserError, match=r'opt_state/0/trace/conv/kernel is .* and missing here'):
        restore(three, like)
    assert not (three / 'damaged').exists()


def test_a_checkpoint_deleted_while_it_is_read_is_no_damage(workdir, monkeypatch, warnings):
    """Training deletes the oldest when it has committed a newer one."""
    read = checkpoint.read_sound
    monkeypatch.setattr(checkpoint, 'READ_AGAIN_SECONDS', 0.0)

    def deleting(path, items):
        if path.name == '3':
            save(workdir, 4)
            shutil.rmtree(path)
        return read(path, items)

    monkeypatch.setattr(checkpoint, 'read_sound', deleting)
    assert load_model(workdir, 'latest')[1] == 4
    assert any('deleted while it was read' in line for line in warnings)
    shutil.copytree(workdir / 'checkpoints' / '1', workdir / 'checkpoints' / '3')
    with pytest.raises(UserError, match=r'checkpoint 3 was deleted .* there are best, latest, 1'):
        load_model(workdir, '3')


def test_reading_leaves_a_workdir_as_it_is(workdir):
    """Also what a run is just writing."""
    (workdir / 'checkpoints' / '4.orbax-checkpoint-tmp').mkdir()
    (workdir / 'checkpoints' / 'notes').mkdir()
    (workdir / 'checkpoints' / '5').write_text('a file')
    before = sorted(p.relative_to(workdir) for p in workdir.rglob('*'))
    assert load_model(workdir, 'latest')[1] == 3
    assert sorted(p.relative_to(workdir) for p in workdir.rglob('*')) == before


def test_only_what_orbax_counts_as_committed_counts(workdir, monkeypatch):
    """On a bucket a folder appears before it is complete; a file says when it is."""
    from orbax.checkpoint.path import atomicity, step

    def names():
        return step._StandardNameFormat(temporary_path_cls=atomicity.CommitFileTemporaryPath)

    monkeypatch.setattr(step, 'standard_name_format', names)
    (workdir / 'checkpoints' / '3' / 'commit_success.txt').unlink()
    assert checkpoint.committed_steps(absolute(workdir / 'checkpoints')) == [1, 2]
    assert load_model(workdir, 'latest')[1] == 2


def test_best_is_the_latest_as_long_as_nothing_was_evaluated(workdir, warnings):
    (workdir / 'best.json').unlink()
    assert load_model(workdir, 'best')[1] == 3
    assert any('nothing was evaluated yet' in line for line in warnings)


def test_best_that_is_not_there_is_never_replaced_in_silence(workdir):
    shutil.rmtree(workdir / 'checkpoints' / '2')
    with pytest.raises(UserError, match=r'names checkpoint 2, which is not there; .* 1, 3'):
        load_model(workdir, 'best')


@pytest.mark.parametrize(
    'content',
    [b'', b'{', b'\xff', b'[]', b'{"step": 2}', b'{"step": "2", "metric": "AP", "value": 1}',
     b'{"step": 2, "metric": "AP", "value": NaN}', b'{"step": true, "metric": "a", "value": 1}'],
)  # fmt: skip
def test_damaged_best_is_named_and_made_anew(workdir, content, warnings):
    (workdir / 'best.json').write_bytes(content)
    with pytest.raises(UserError, match=r'best\.json is damaged'):
        load_model(workdir, 'best')
    checkpoints = Checkpoints(workdir, 1)
    checkpoints.settle_best([Best(1, 'AP', 0.7), Best(2, 'AP', 0.2), Best(9, 'AP', 0.9)])
    assert checkpoints.best == Best(1, 'AP', 0.7), 'the best of those that are there'
    assert any('is made anew' in line for line in warnings)
    checkpoints.save(state_at(4))
    checkpoints.close()
    assert load_model(workdir, 'best')[1] == 1


def test_best_of_a_checkpoint_that_is_gone_is_found_again(workdir):
    shutil.rmtree(workdir / 'checkpoints' / '2')
    checkpoints = Checkpoints(workdir, 1)
    checkpoints.settle_best([])
    checkpoints.close()
    assert not (workdir / 'best.json').exists()


def test_the_best_outlives_all_later_ones(tmp_path):
    checkpoints = Checkpoints(tmp_path, 1)
    for step in range(1, 6):
        checkpoints.save(state_at(step))
        checkpoints.wait()
        checkpoints.note_evaluation(step, 'AP', 0.9 if step == 2 else 0.1)
        assert not checkpoints.note_evaluation(step, 'AP', float('nan'))
    checkpoints.close()
    assert checkpoint.committed_steps(absolute(tmp_path / 'checkpoints')) == [2, 5]
    again = Checkpoints(tmp_path, 1)
    again.settle_best([])
    again.save(state_at(6))
    again.close()
    assert checkpoint.committed_steps(absolute(tmp_path / 'checkpoints')) == [2, 6]


@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf, 1e30])
def test_what_must_not_be_saved_is_named(bad):
    sound = {'a': np.ones((3, 3), np.float32), 'b': {'c': np.int32(7), 'd': np.float32(1e18)}}
    assert finite.first_bad(replicate(sound)) is None
    sound['b']['d'] = np.array([0, bad], np.float32)
    assert finite.first_bad(replicate(sound)) == 'b/d'
