"""search.py as a user runs it: killed and continued, stopped, and refused in one line."""

import collections
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from spinenet_jax.models.graph import load, validate
from tests.search.test_process import gone

ROOT = Path(__file__).resolve().parents[2]
EVALUATORS = 'tests.search.evaluators'
SETTINGS = ('controller=evolution', 'population=4', 'tournament=2', 'candidates=8')


def start(workdir, evaluator, *settings, engine='local'):
    command = [sys.executable, 'search.py', '--config=configs/search.py:digits']
    command += [f'--workdir={workdir}', f'--engine={engine}']
    command += [f'--evaluator={evaluator if ":" in evaluator else f"{EVALUATORS}:{evaluator}"}']
    command += [f'--config.search.{setting}' for setting in (*SETTINGS, *settings)]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)


def events(workdir, kind):
    path = workdir / 'ledger.jsonl'
    lines = path.read_bytes().split(b'\n')[:-1] if path.exists() else []
    return [event for event in map(json.loads, lines) if event['event'] == kind]


def wait_for(condition, seconds=300.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def running(workdir):
    """Processes of candidates that have started and are alive."""
    pids = [int(path.read_text() or 0) for path in workdir.glob('candidates/*/started')]
    return [pid for pid in pids if pid and Path(f'/proc/{pid}').exists()]


def check_finished(workdir, search, candidates=8):
    """Eight graphs, each with one result; each result by one evaluation that ran to its end."""
    errors = search.communicate(timeout=300)[1]
    assert search.returncode == 0, errors
    tells = events(workdir, 'tell')
    counts = collections.Counter(event['number'] for event in tells)
    assert set(counts.values()) == {1}
    assert set(counts) == {event['number'] for event in events(workdir, 'ask')}
    evaluated = [event for event in tells if event['status'] == 'done']
    assert len(evaluated) == candidates
    for event in evaluated:
        assert event['reward'] == event['number'] / 10
        runs = workdir / 'candidates' / f'{event["number"]:06d}' / 'runs.txt'
        pids = [line.split()[2] for line in runs.read_text().splitlines()]
        assert event['worker'].rpartition(':')[2] == pids[-1]
    validate(load(str(workdir / 'best.json')))
    assert f'best {max(e["reward"] for e in evaluated):.4f}' in (workdir / 'search.md').read_text()
    return errors


@pytest.mark.slow
@pytest.mark.parametrize('what', ['head', 'worker', 'both'])
def test_killed_and_continued(tmp_path, what):
    kill_and_continue(tmp_path, what, 'local')


@pytest.mark.ray
@pytest.mark.parametrize('what', ['head', 'worker', 'both'])
def test_killed_and_continued_on_ray(tmp_path, what):
    pytest.importorskip('ray')
    kill_and_continue(tmp_path, what, 'ray')


def kill_and_continue(workdir, what, engine):
    search = start(workdir, 'slow', engine=engine)
    wait_for(lambda: len(events(workdir, 'tell')) >= 2 and running(workdir))
    before = events(workdir, 'tell')
    pids = running(workdir)
    if what in ('head', 'both'):
        search.send_signal(signal.SIGKILL)
    if what in ('worker', 'both'):
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
    if what != 'worker':
        search.communicate()
        assert all(gone(pid) for pid in pids)
        search = start(workdir, 'slow', engine=engine)
    errors = check_finished(workdir, search)
    assert events(workdir, 'tell')[: len(before)] == before
    if what == 'worker':
        assert events(workdir, 'retry')
    else:
        assert 'continuing: ' in errors


@pytest.mark.slow
@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_candidates_and_says_how_to_go_on(tmp_path, number):
    search = start(tmp_path, 'with_child')
    child = tmp_path / 'candidates' / '000000' / 'child'
    wait_for(lambda: child.exists() and child.read_text())
    check_stopped(search, number)  # while search.md is being drawn
    assert gone(child.read_text())


@pytest.mark.ray
def test_sigterm_stops_candidates_on_ray(tmp_path):
    pytest.importorskip('ray')
    search = start(tmp_path, 'slow', engine='ray')
    wait_for(lambda: running(tmp_path))
    pids = running(tmp_path)
    check_stopped(search, signal.SIGTERM)
    assert all(gone(pid) for pid in pids)


def check_stopped(search, number):
    search.send_signal(number)
    errors = search.communicate(timeout=60)[1]
    assert search.returncode == 130, errors
    assert errors.splitlines()[-1] == 'stopped: the same command continues'


@pytest.mark.slow
def test_mistakes_are_refused_in_one_line(tmp_path):
    for evaluator, setting, message in (
        ('count', 'space=hourglas', "search.space='hourglas': must be one of r35_sp18"),
        ('no_module:latency', 'seed=0', '--evaluator=no_module:latency: cannot import no_module'),
    ):
        search = start(tmp_path, evaluator, setting)
        assert f'error: {message}' in search.communicate(timeout=300)[1]
        assert search.returncode == 2
        assert not (tmp_path / 'ledger.jsonl').exists()


@pytest.mark.slow
def test_a_workdir_of_another_search_is_refused(tmp_path):
    check_finished(tmp_path, start(tmp_path, 'count'))
    search = start(tmp_path, 'count', 'space=fish')
    expected = "another search: search.space: 'spinenet49' -> 'fish'. Use another --workdir"
    assert expected in search.communicate(timeout=300)[1]
    check_finished(tmp_path, start(tmp_path, 'count', 'candidates=10'), candidates=10)
