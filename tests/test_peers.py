"""benchmarks/peers.py: turns, figures and what is said of a peer that cannot run."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import peer_table, peer_worker, peers
from spinenet_jax.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
SPEC = {
    'on': 'cpu',
    'image_size': 640,
    'train_size': 320,
    'train_batch': 4,
    'batches': (),
    'matmul': 1000,
    'measures': peers.MEASURES,
}
TOY = """
import sys
import peer_worker
def build(spec):
    print('chatter of a library')
    def broken():
        raise MemoryError('too large')
    quick = lambda: None
    measures = {'network': quick, 'train': broken, 'matmul': quick}
    return peer_worker.Peer({'model': spec.on}, measures)
peer_worker.serve(build)
"""


def about(**facts):
    return {'facts': {'model': 'm', 'dtype': 'float32', 'candidates': 0, 'versions': {}, **facts}}


def test_interpreters_are_those_given_or_in_the_folder():
    found = peers.pythons(['garden=/g/python'], '/envs')
    assert found['ours'] == Path(sys.executable)
    assert found['garden'] == Path('/g/python')
    assert found['kerashub'] == Path('/envs/kerashub/bin/python')
    with pytest.raises(UserError, match='--pythons=nobody=x: give peer=path'):
        peers.pythons(['nobody=x'], '/envs')


def test_a_missing_environment_is_one_line_that_says_how_to_make_it():
    said = peers.start('kerashub', Path('/nowhere/python'), SPEC)
    assert 'tools/maintenance/make_peer_env.sh kerashub' in said and '\n' not in said


def test_ratios_and_shares_by_hand():
    answers = {
        'network': {
            'ours': {'seconds': [1.0, 0.5, 2.0]},
            'garden': {'seconds': [3.0, 2.0, 4.0]},
        },
        'network_batched': {'garden': {'seconds': [0.5]}},
        'train': {'ours': {'seconds': [2.0], 'peak_bytes': 2**30}},
        'matmul': {'ours': {'seconds': [0.002]}, 'garden': {'seconds': [0.001]}},
    }
    said = {'ours': about(multiply_adds=10**11), 'garden': about()}
    rows = {(row['measure'], row['peer']): row for row in peer_table.rows(answers, said, SPEC)}
    garden, ours = rows['network', 'garden'], rows['network', 'ours']
    assert garden['median_s'] == 3.0 and garden['min_s'] == 2.0
    assert garden['ours_is_times_faster'] == 3.0
    assert 'ours_is_times_faster' not in ours
    assert rows['network_batched', 'garden']['ours_is_times_faster'] == 0.5
    # The best product is 2e9 operations in a millisecond, 2e12 a second.
    assert rows['matmul', 'garden']['tflops'] == 2.0
    assert ours['share_of_matrix_peak'] == pytest.approx(2e11 / 2e12, abs=1e-3)
    # A quarter of the pixels, 4 images, three passes, two seconds.
    train = rows['train', 'ours']
    assert train['share_of_matrix_peak'] == pytest.approx(6e11 / 4 * 4 / 2 / 2e12, abs=1e-3)
    assert train['peak_gib'] == 1.0 and train['images_per_s'] == 2.0
    text = peer_table.show(list(rows.values()))
    assert len(text.splitlines()) == 1 + len(rows)


def test_calibrated_outputs_are_crowded():
    rng = np.random.default_rng(0)
    logits, codes = rng.normal(3, 0.01, 100_000), rng.normal(0, 7, 100_000)
    scale, bias, code_scale = peer_worker.calibration(logits, codes)
    scores = 1 / (1 + np.exp(-(logits * scale + bias)))
    assert np.mean(scores > peer_worker.SCORE_THRESHOLD) == pytest.approx(0.02, abs=0.002)
    assert np.std(codes * code_scale) == pytest.approx(0.3, rel=1e-3)


def test_a_calibrated_mask_rcnn_is_as_crowded():
    rng = np.random.default_rng(0)
    outputs = rng.normal(0, 0.01, (2000, 91)), *(rng.normal(0, 7, 10_000) for _ in range(3))
    scales = peer_worker.region_calibration(*outputs)
    logits = np.exp(outputs[0] * scales[0])
    scores = logits / logits.sum(1, keepdims=True)
    assert np.mean(scores > peer_worker.SCORE_THRESHOLD) == pytest.approx(0.02, abs=0.005)
    deviations = [np.std(x * scale) for x, scale in zip(outputs[1:], scales[1:], strict=True)]
    np.testing.assert_allclose(deviations, [3.0, 1.0, 0.3], rtol=1e-3)


def test_a_worker_answers_and_reports_what_failed(tmp_path):
    (tmp_path / 'toy.py').write_text(TOY)
    done = subprocess.run(
        [sys.executable, tmp_path / 'toy.py', json.dumps(SPEC)],
        input='["network", 3]\n["matmul", 1]\n',
        env={'PYTHONPATH': str(ROOT / 'benchmarks')},
        capture_output=True,
        text=True,
        timeout=60,
    )
    ready, network, matmul = map(json.loads, done.stdout.splitlines())
    assert ready['facts'] == {'model': 'cpu'}
    assert ready['ready'] == ['network', 'matmul']
    assert ready['failed'] == {'train': 'MemoryError: too large'}
    assert len(network['seconds']) == 3 and len(matmul['seconds']) == 1
    assert 'chatter' in done.stderr


def test_only_measures_that_are_wanted_are_warmed_up(tmp_path):
    (tmp_path / 'toy.py').write_text(TOY)
    done = subprocess.run(
        [sys.executable, tmp_path / 'toy.py', json.dumps(SPEC | {'measures': ['network']})],
        input='',
        env={'PYTHONPATH': str(ROOT / 'benchmarks')},
        capture_output=True,
        text=True,
        timeout=60,
    )
    said = json.loads(done.stdout)
    assert said['ready'] == ['network'] and said['failed'] == {}


def test_turns_rotate_and_keep_all_seconds(monkeypatch):
    order, asked = [], []

    def ask(worker, measure, repeats):
        order.append(worker.name)
        asked.append(measure)
        return {'seconds': [float(len(order))] * repeats, 'peak_bytes': None}

    monkeypatch.setattr(peers, 'ask', ask)
    workers = [
        peers.Worker('a', None, {'ready': ['network']}),
        peers.Worker('b', None, {'ready': ['network', 'matmul']}),
    ]
    answers = dict(peers.round_robin(workers, rounds=2, repeats=2))
    assert order == ['b', 'b', 'a', 'b', 'b', 'a']
    assert asked[:2] == ['matmul', 'matmul']
    assert answers['network']['a']['seconds'] == [3.0, 3.0, 6.0, 6.0]
    assert list(answers['matmul']) == ['b']
