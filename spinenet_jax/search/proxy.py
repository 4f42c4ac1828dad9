"""The proxy task: a short training run of a graph, scored on images held out for it.

The default evaluator of a search. A candidate's folder is the workdir of an ordinary run of
train.py, which eval.py opens: its config.json has the graph as text. The scenes of digits are made,
and split, where they are missing.
"""

import json
import re
import signal
import subprocess
import sys
from typing import Any

from etils import epath

from spinenet_jax.data.digits import ensure_digits
from spinenet_jax.data.hold_out import ensure_held_out
from spinenet_jax.models.graph import to_text
from spinenet_jax.search.candidate import Candidate, die_with_parent
from spinenet_jax.search.process import child_environment

_ERROR = re.compile(r'error: |[\w.]*(Error|Exception)\b')
DIGITS_HELD_OUT = 300  # scenes of the digits data set's training split
METRICS = ('AP', 'top1')  # the reward is the first of these that the results have


class TrainingError(RuntimeError):
    """Training ended without results; the message says how, in one line."""


def evaluate(candidate: Candidate) -> dict[str, Any]:
    """Train, and return {'reward', and what results.json holds}.

    Raises:
      TrainingError: a loss that is not finite, no memory, or whatever else ended the run.
    """
    folder = epath.Path(candidate.folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = dict(candidate.config)
    config['seed'] = candidate.seed
    config['model'] = config['model'] | {'graph': to_text(candidate.graph)}
    if config['data']['source'] == 'digits':
        ensure_held_out(ensure_digits(config['data']['root']), 'train', DIGITS_HELD_OUT)
    (folder / 'config.json').write_text(json.dumps(config, indent=2, sort_keys=True) + '\n')
    _train(candidate.folder)
    results = json.loads((folder / 'results.json').read_text())
    reward = next(results[name] for name in METRICS if name in results)
    return {'reward': reward, **results}


def _train(folder: str) -> None:
    """A run with the settings in the folder; continues where an earlier attempt was lost."""
    command = [sys.executable, '-m', 'spinenet_jax.search.training', f'--workdir={folder}']
    done = subprocess.Popen(
        command,
        env=child_environment(),
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors='replace',
        preexec_fn=die_with_parent,  # safe: this process has one thread and no JAX
    )
    reason = ''
    for line in done.stderr:
        sys.stderr.write(line)
        if _ERROR.match(line):  # the last one is what ended it; JAX and others add advice below
            reason = line.strip()
    code = done.wait()
    if code < 0:
        raise TrainingError(f'training was ended by {signal.Signals(-code).name}')
    if code > 0:
        raise TrainingError(f'exit status {code} of training: {reason}')
    if not (epath.Path(folder) / 'results.json').exists():
        raise TrainingError('training stopped before its last step')  # SIGTERM, which is no failure
