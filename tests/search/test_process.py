"""Candidates in processes of their own: results, failures, limits, and nothing left behind."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from spinenet_jax.errors import UserError
from spinenet_jax.models.graph import GRAPHS, to_text
from spinenet_jax.search.candidate import Job, evaluate_candidate, load_evaluator
from spinenet_jax.search.engine import ProcessEngine
from spinenet_jax.search.process import Attempt

ROOT = Path(__file__).resolve().parents[2]


def job(folder, evaluator, number=4, time_limit=60.0, config=None):
    return Job(
        number=number,
        graph=to_text(GRAPHS['spinenet49']),
        folder=str(folder / str(number)),
        seed=17,
        evaluator=f'tests.search.evaluators:{evaluator}',
        config=config or {},
        time_limit=time_limit,
        environment={},
    )


def gone(pid):
    """Whether a process ends within a few seconds; a zombie has."""
    for _ in range(100):
        try:
            state = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0]
        except OSError:
            return True
        if state == 'Z':
            return True
        time.sleep(0.05)
    return False


def written(path):
    """The content of a file that another process is about to write."""
    for _ in range(200):
        if path.exists() and path.read_text():
            return path.read_text()
        time.sleep(0.05)
    raise AssertionError(f'{path} was not written')


def test_result_and_log(tmp_path):
    outcome = Attempt(job(tmp_path, 'count')).wait()
    assert (outcome.number, outcome.status, outcome.reward) == (4, 'done', 0.4)
    assert outcome.metrics == {'seed': 17.0}  # what is not a number is left out
    assert outcome.seconds > 0
    pid = outcome.worker.rpartition(':')[2]
    assert (tmp_path / '4' / 'runs.txt').read_text() == f'4 17 {pid}\n'
    log = (tmp_path / '4' / 'log.txt').read_text()
    assert 'on stdout' in log
    assert 'on stderr' in log


@pytest.mark.parametrize(
    ('number', 'reason'),
    [
        (0, 'MemoryError: out of memory: no 12 GiB'),
        (1, 'the reward is nan'),
        (2, 'ended by SIGABRT'),
        (3, 'exit status 3 without a result'),
    ],
)
def test_a_candidate_that_fails_by_itself(tmp_path, number, reason):
    outcome = Attempt(job(tmp_path, 'moody', number)).wait()
    assert (outcome.status, outcome.reward, outcome.reason) == ('failed', 0.0, reason)


def test_time_limit_kills_whatever_was_started(tmp_path):
    outcome = Attempt(job(tmp_path, 'with_child', time_limit=3.0)).wait()
    assert (outcome.status, outcome.reason) == ('timeout', 'time limit of 3 s')
    assert gone(written(tmp_path / '4' / 'child'))


def test_a_killed_process_is_lost_and_leaves_nothing(tmp_path):
    attempt = Attempt(job(tmp_path, 'with_child'))
    child = written(tmp_path / '4' / 'child')
    os.kill(attempt.pid, 9)
    outcome = attempt.wait()
    assert (outcome.status, outcome.reason) == ('lost', 'ended by SIGKILL')
    assert gone(child)


@pytest.mark.skipif(sys.platform != 'linux', reason='the kernel kills them on Linux only')
def test_candidates_die_with_their_engine(tmp_path):
    program = (
        'import sys\n'
        f'sys.path[:0] = [{str(ROOT)!r}]\n'
        'from pathlib import Path\n'
        'from tests.search.test_process import job\n'
        'from spinenet_jax.search.process import Attempt\n'
        f'Attempt(job(Path({str(tmp_path)!r}), "slow", config={{"sleep": 1000}})).wait()\n'
    )
    engine = subprocess.Popen([sys.executable, '-c', program], cwd=ROOT)
    pid = written(tmp_path / '4' / 'started')
    engine.kill()
    engine.wait()
    assert gone(pid)


def test_engine_reports_each_job_once(tmp_path):
    engine = ProcessEngine()
    for number in range(4):
        engine.submit(job(tmp_path, 'count', number))
    outcomes = []
    while len(outcomes) < 4:
        report = engine.wait(timeout=30.0)
        outcomes += report.outcomes
        assert report.alive == 4 - len(outcomes)
    assert sorted(outcome.number for outcome in outcomes) == [0, 1, 2, 3]
    began = time.monotonic()
    assert engine.wait(timeout=0.2).outcomes == []
    assert 0.2 <= time.monotonic() - began < 5


def test_cancelling_kills(tmp_path):
    engine = ProcessEngine()
    engine.submit(job(tmp_path, 'with_child'))
    child = written(tmp_path / '4' / 'child')
    engine.cancel(4)
    assert gone(child)
    assert engine.wait(timeout=0.1) == ([], 0)


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('tests.search.evaluators', 'want package.module:function'),
        ('tests.search.nothing:count', 'cannot import tests.search.nothing'),
        ('tests.search.evaluators:nothing', 'has no function nothing'),
        ('tests.search.evaluators:NO_FUNCTION', 'has no function NO_FUNCTION'),
    ],
)
def test_an_evaluator_that_is_not_there(name, message):
    with pytest.raises(UserError, match=message):
        load_evaluator(name)
    with_evaluator = {'evaluator': name}
    assert message in evaluate_candidate(with_evaluator)['failed']
