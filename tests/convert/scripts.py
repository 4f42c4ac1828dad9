"""Runs the project's scripts, here or in the oracle's environment."""

import os
import pathlib
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONVERT = 'tools/convert_checkpoint.py'
FORWARD = 'tools/maintenance/oracle_forward.py'
MASKS = 'tools/maintenance/oracle_masks.py'


def run(*command, **environment):
    """Run a command in the project's folder; its output is the failure's message."""
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, **environment}
    )
    assert done.returncode == 0, f'{command}: {done.stdout[-1500:]} {done.stderr[-1500:]}'
    return done.stdout
