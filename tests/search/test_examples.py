"""The search on its real proxy task, and the worked example of docs/search.md."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

TINY = [
    '--config.candidate.model.width=0.0625',
    '--config.candidate.model.endpoint_channels=8',
    '--config.candidate.model.head_channels=8',
    '--config.candidate.data.image_size=(64,64)',
    '--config.candidate.train.epochs=0.03',
]
PATIENT = '--config.search.time_limit_minutes=60'  # a busy machine takes its time


def run(*words, **environment):
    done = subprocess.run(
        [sys.executable, *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=3000,
        # One device, where the other tests have four: what is compiled is what takes the time.
        env=os.environ | {'XLA_FLAGS': '--xla_backend_optimization_level=0'} | environment,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
def test_candidates_are_ordinary_runs_and_the_best_graph_goes_into_training(tmp_path):
    search = ('search.py', '--config=configs/search.py:digits', f'--workdir={tmp_path / "search"}')
    one = ('--config.search.candidates=1', '--config.search.workers=1', PATIENT)
    log = run(*search, *one, *TINY)
    assert '1 of 1 candidates done' in log

    candidate = tmp_path / 'search' / 'candidates' / '000000'
    config = json.loads((candidate / 'config.json').read_text())
    events = map(json.loads, (tmp_path / 'search' / 'ledger.jsonl').read_text().splitlines())
    by_number = {(event['event'], event.get('number')): event for event in events}
    assert config['model']['graph'] == by_number['ask', 0]['graph']
    results = json.loads((candidate / 'results.json').read_text())
    assert by_number['tell', 0]['reward'] == results['AP']
    assert results['images'] == 300
    scored = run('eval.py', f'--workdir={candidate}', f'--output={tmp_path}')
    assert 'train_held_out, checkpoint' in scored
    assert json.loads((tmp_path / 'results.json').read_text())['AP'] == pytest.approx(results['AP'])

    best = tmp_path / 'search' / 'best.json'
    trained = tmp_path / 'trained'
    settings = [word.replace('config.candidate.', 'config.') for word in TINY]
    where = (f'--workdir={trained}', f'--config.model.graph={best}')
    run('train.py', '--config=configs/digits.py', *where, *settings)
    text = json.loads(best.read_text())['graph']
    assert json.loads((trained / 'config.json').read_text())['model']['graph'] == text


@pytest.mark.slow
def test_the_worked_example(tmp_path):
    """The first Python block of the page, saved under the name that its command uses."""
    page = (ROOT / 'docs' / 'search.md').read_text()
    (tmp_path / 'latency.py').write_text(re.search(r'```python\n(.*?)```', page, re.DOTALL)[1])
    evaluator = re.search(r'--evaluator=(latency:\w+)', page)[1]
    workdir = tmp_path / 'search'
    run(
        *('search.py', '--config=configs/search.py:digits', f'--workdir={workdir}', *TINY),
        *(f'--evaluator={evaluator}', '--config.search.candidates=2', '--config.search.workers=1'),
        PATIENT,
        PYTHONPATH=str(tmp_path),
    )
    lines = (workdir / 'ledger.jsonl').read_text().splitlines()
    told = [event for event in map(json.loads, lines) if event['event'] == 'tell']
    assert [event['status'] for event in told] == ['done', 'done']
    assert all(event['reward'] > 0 for event in told)
