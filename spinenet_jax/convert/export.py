"""Writes a run's weights as a TF2 checkpoint that the Model Garden's RetinaNet loads.

The file is written by TensorFlow itself, in an environment of its own (tools/make_oracle_env.sh).
"""

import json
import os
import pathlib
import subprocess
import tempfile

import numpy as np
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from spinenet_jax.errors import UserError
from spinenet_jax.training.checkpoint import absolute, load_model

ORACLE = 'SPINENET_ORACLE_PYTHON'
SCRIPT = pathlib.Path(__file__).resolve().parents[2] / 'tools' / 'oracle_export.py'
# What the Garden's model has no switch for, and its only value.
FIXED = {
    'backbone': 'spinenet',
    'graph': 'spinenet49',
    'min_level': 3,
    'max_level': 7,
    'padding': 'same',
    'pooling': 'chain',
}


def to_tf2(source: str | os.PathLike, target: str | os.PathLike, which: str = 'best') -> str:
    """Convert a workdir; returns a line about what was written.

    Args:
      source: workdir of a detection run.
      target: directory to write `ckpt.index` and its data into.
      which: checkpoint, see `training.checkpoint.load_model`.

    Raises:
      UserError: not a model that the Garden can build, or no environment to write in.
    """
    path = absolute(source) / 'config.json'
    if not path.exists():
        raise UserError(f'{path}: no such file; --source must be the workdir of a run')
    config = ConfigDict(json.loads(path.read_text()))
    _check(config, source)
    variables, step = load_model(source, which)
    arrays = {k: np.asarray(v) for k, v in flatten_dict(variables, sep='/').items()}
    model = config.model.to_dict()
    classes = arrays['params/class_head/predict/bias'].size // 9
    model |= {'image_size': list(config.data.image_size), 'num_classes': classes}
    prefix = pathlib.Path(target).resolve() / 'ckpt'
    prefix.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        weights, settings = pathlib.Path(folder, 'weights.npz'), pathlib.Path(folder, 'model.json')
        np.savez(weights, **arrays)
        settings.write_text(json.dumps(model))
        _run_oracle([str(weights), str(settings), str(prefix)])
    note = f'model_checkpoint_path: "{prefix.name}"\nall_model_checkpoint_paths: "{prefix.name}"\n'
    (prefix.parent / 'checkpoint').write_text(note)
    return (
        f'wrote {prefix} from checkpoint {step}: load it with '
        'tf.train.Checkpoint(**model.checkpoint_items).read(...) into a RetinaNet with '
        f'norm_epsilon={config.model.bn_epsilon:g}, activation={config.model.activation}'
    )


def _check(config: ConfigDict, source: str | os.PathLike) -> None:
    """Only what the Garden's SpineNet computes in the same way."""
    if config.task != 'detection':
        raise UserError(f'{source}: task {config.task}; only detection models go to TF2')
    for key, value in FIXED.items():
        if config.model[key] != value:
            raise UserError(
                f'{source}: model.{key}={config.model[key]!r}, and the Model Garden computes '
                f'{value!r} only: its outputs would differ'
            )


def _run_oracle(arguments: list[str]) -> None:
    """Run oracle_export.py; its last words become the error."""
    python = os.environ.get(ORACLE, '')
    if not python:
        raise UserError(
            f'{ORACLE} is not set: run tools/make_oracle_env.sh DIRECTORY and set it to '
            'DIRECTORY/bin/python'
        )
    environment = {**os.environ, 'TF_USE_LEGACY_KERAS': '1'}
    try:
        done = subprocess.run(
            [python, str(SCRIPT), *arguments], capture_output=True, text=True, env=environment
        )
    except OSError as error:
        raise UserError(f'{ORACLE}={python}: cannot be run ({error.strerror})') from None
    if done.returncode:
        words = done.stderr.strip().splitlines() or ['no message']
        raise UserError(f'the Model Garden could not write the checkpoint: {words[-1]}')
