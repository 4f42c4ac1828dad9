"""The Ray engine on a real local Ray of two workers; needs requirements-search.txt."""

import os
import signal
import time

import pytest

ray = pytest.importorskip('ray', reason='pip install -r requirements-search.txt')

from spinenet_jax.search.ray_engine import RayEngine  # noqa: E402
from tests.search.test_process import gone, job, written  # noqa: E402

pytestmark = pytest.mark.ray


@pytest.fixture(scope='module')
def engine():
    engine = RayEngine(workers=2, resources={'num_cpus': 1})
    yield engine
    ray.shutdown()


def outcomes(engine, count, timeout=60.0):
    ended, deadline = [], time.monotonic() + timeout
    while len(ended) < count and time.monotonic() < deadline:
        ended += engine.wait(timeout=1.0).outcomes
    assert len(ended) == count
    return {outcome.number: outcome for outcome in ended}


def test_results_and_failures(engine, tmp_path):
    for number in range(4):
        engine.submit(job(tmp_path, 'moody', number))
    engine.submit(job(tmp_path, 'count', 4))
    ended = outcomes(engine, 5)
    assert (ended[4].status, ended[4].reward, ended[4].metrics) == ('done', 0.4, {'seed': 17.0})
    assert [ended[n].status for n in range(4)] == ['failed'] * 4
    assert ended[0].reason == 'MemoryError: out of memory: no 12 GiB'
    assert ended[2].reason == 'ended by SIGABRT'
    assert (tmp_path / '4' / 'runs.txt').read_text().startswith('4 17 ')


def test_time_limit(engine, tmp_path):
    engine.submit(job(tmp_path, 'with_child', time_limit=3.0))
    ended = outcomes(engine, 1)
    assert (ended[4].status, ended[4].reason) == ('timeout', 'time limit of 3 s')
    assert gone(written(tmp_path / '4' / 'child'))


def test_a_killed_candidate_process_is_lost(engine, tmp_path):
    engine.submit(job(tmp_path, 'slow', config={'sleep': 1000}))
    os.kill(int(written(tmp_path / '4' / 'started')), signal.SIGKILL)
    assert outcomes(engine, 1)[4].reason == 'ended by SIGKILL'


def test_a_killed_ray_worker_is_lost_and_takes_its_candidate_along(engine, tmp_path):
    engine.submit(job(tmp_path, 'slow', config={'sleep': 1000}))
    pid = written(tmp_path / '4' / 'started')
    with open(f'/proc/{pid}/stat') as file:
        worker = int(file.read().rpartition(')')[2].split()[1])  # the parent
    os.kill(worker, signal.SIGKILL)
    ended = outcomes(engine, 1)[4]
    assert ended.status == 'lost'
    assert ended.worker.endswith(f':{pid}')
    assert gone(pid)


def test_a_hung_worker_is_given_up(engine, tmp_path, monkeypatch):
    """The worker itself is stopped, so it cannot keep its own time limit, nor hear of its end."""
    monkeypatch.setattr('spinenet_jax.search.ray_engine.LATE', 1.0)
    engine.submit(job(tmp_path, 'slow', time_limit=2.0, config={'sleep': 1000}))
    pid = written(tmp_path / '4' / 'started')
    with open(f'/proc/{pid}/stat') as file:
        worker = int(file.read().rpartition(')')[2].split()[1])
    os.kill(worker, signal.SIGSTOP)
    ended = outcomes(engine, 1)[4]
    assert (ended.status, ended.reason) == ('lost', 'silent 1 s after its time limit')
    os.kill(worker, signal.SIGCONT)
    assert gone(pid)


def test_cancelling_kills(engine, tmp_path):
    engine.submit(job(tmp_path, 'slow', config={'sleep': 1000}))
    pid = written(tmp_path / '4' / 'started')
    assert engine.wait(timeout=2.0).alive == 1
    engine.cancel(4)
    assert gone(pid)
    assert engine.wait(timeout=0.1) == ([], 0)
