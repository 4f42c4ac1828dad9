"""Turns published TensorFlow weights into a workdir of ours, and ours into the Model Garden's.

    python tools/convert_checkpoint.py --source=spinenet49_retinanet.tar.gz --workdir=runs/49-tf
    python eval.py --workdir=runs/49-tf --config.data.root=/data/coco
    python train.py --config=... --workdir=runs/mine --config.train.init_from=runs/49-tf

--source is a checkpoint's prefix, its directory or the .tar.gz of it; TF1 (tensorflow/tpu) and TF2
(Model Garden) are told apart by their contents, and so are the model's sizes. What a checkpoint
does not say is the activation (swish in the Garden's RetinaNet and in all best published models,
relu in the 350-epoch ones, in ResNet-FPN and in Mask R-CNN but for 190) and the size of the anchors
(4 cells for the published RetinaNets 143, 190 and ResNet-FPN, 5 for Mask R-CNN 190, else 3): they
are those of --config=configs/retinanet.py:49-B, or of the published model of the same sizes,
RetinaNets with swish but for ResNet's; --activation decides instead. A TF1 Mask R-CNN gets
eval.decode=tf1, with which published numbers were measured.

    python tools/convert_checkpoint.py --to=tf2 --source=runs/49 --workdir=out/49-tf2

writes a TF2 checkpoint for the Model Garden's RetinaNet or Mask R-CNN; this needs the environment
that tools/maintenance/make_oracle_env.sh builds, named by SPINENET_ORACLE_PYTHON.
"""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import TYPE_CHECKING

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from absl import flags
from ml_collections import ConfigDict, config_flags

from spinenet_jax import launch
from spinenet_jax.errors import UserError
from spinenet_jax.files import is_remote

if TYPE_CHECKING:
    from spinenet_jax.convert.recognition import Recognised

_SOURCE = flags.DEFINE_string('source', None, 'Checkpoint to convert.', required=True)
_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder to write.', required=True)
_CONFIG = config_flags.DEFINE_config_file('config', None, 'What the checkpoint does not say.')
_TO = flags.DEFINE_enum('to', 'jax', ['jax', 'tf2'], 'What to write.')
_ACTIVATION = flags.DEFINE_enum('activation', None, ['relu', 'swish'], "Instead of --config's.")
_EPSILON = flags.DEFINE_float('bn_epsilon', None, "Instead of what the model's kind implies.")
_MISSING = flags.DEFINE_bool('allow_missing', False, 'Write even where variables are missing.')
_NAMES_SHOWN = 10
ROOT = pathlib.Path(__file__).resolve().parents[1]
ORACLE = 'SPINENET_ORACLE_PYTHON'
CLASSIFICATION_SIDE = 224


def main() -> None:
    """Converts in the direction that --to says."""
    with tempfile.TemporaryDirectory() as scratch:
        if _TO.value == 'tf2':
            _check_local(_WORKDIR.value)
            to_tf2(_SOURCE.value, pathlib.Path(_WORKDIR.value).resolve(), pathlib.Path(scratch))
        else:
            from_tensorflow(pathlib.Path(scratch))


def _check_local(folder: str) -> None:
    """TensorFlow's checkpoint is written by a process that knows no buckets."""
    if is_remote(folder):
        raise UserError(f'--workdir={folder}: --to=tf2 writes to a local folder')


def from_tensorflow(scratch: pathlib.Path) -> None:
    """Reads --source and writes --workdir, with a report of what did not match."""
    from spinenet_jax import settings
    from spinenet_jax.convert import recognition, tf_checkpoint, weights, workdir
    from spinenet_jax.convert.tensor_bundle import Bundle

    source = _SOURCE.value
    workdir.check_unused(_WORKDIR.value)
    bundle = Bundle(tf_checkpoint.locate(source, scratch))
    variables = tf_checkpoint.list_variables(bundle)
    found = recognition.recognise(
        variables, lambda name: bundle.entries[variables.keys[name]].shape, source
    )
    config = workdir.fit_config(_CONFIG.value or published_config(found), found, source)
    if _ACTIVATION.value:
        config.model.activation = _ACTIVATION.value
    if _EPSILON.value:
        config.model.bn_epsilon = _EPSILON.value
    settings.check(config)
    match = weights.match(variables, found.architecture)
    shapes = {path: bundle.entries[name].shape for path, name in match.names.items()}
    workdir.check_shapes(config, found, shapes, source)

    depth = found.architecture.resnet_depth
    family = 'SpineNet-Mobile' if found.architecture.graph.is_mobile else 'SpineNet'
    kind = f'ResNet-{depth}-FPN' if depth else '-'.join(filter(None, (family, found.name)))
    kind = f'{found.flavour.upper()} {kind}, {found.task}'
    print(f'{source}: {kind}, {len(match.names)} variables of ours')
    if variables.averaged:
        print(f'{variables.averaged} of them are moving averages')
    _list('missing in the checkpoint', match.missing)
    _list('in the checkpoint but unknown here', match.unmatched)
    if match.missing and not _MISSING.value:
        raise UserError(
            f'{source}: {len(match.missing)} variables are missing (first '
            f'{match.missing[0]}), nothing written; --allow_missing writes the rest'
        )
    bundle.verify()
    arrays = weights.read(bundle, match.names, found.flavour)
    step = int(bundle.read(variables.step)) if variables.step else 0
    path = workdir.write(_WORKDIR.value, config, arrays, step)
    if not (_CONFIG.value or _ACTIVATION.value):
        print(f'activation {config.model.activation} is an assumption: see --help')
    if found.task == 'backbone':
        print('a backbone alone: start training from it with --config.train.init_from')
    print(f'wrote {path}')


def published_config(found: Recognised) -> ConfigDict:
    """The settings of the published model of these sizes; `common`'s where there is none."""
    from configs import common, mask_rcnn, retinanet

    masks = found.task == 'instance_segmentation'
    if found.name and masks:
        one_stage = 'C' if found.name == '190' else 'B'
        variant = 'cascade' if found.settings['cascade'] else one_stage
        return mask_rcnn.get_config(f'{found.name}-{variant}')
    if found.name and found.architecture.graph.is_mobile:
        return retinanet.get_config(f'mb{found.name}-M')
    if found.name and found.architecture.resnet_depth:
        return retinanet.get_config(f'{found.name}-B')
    if found.name and found.task != 'classification':
        return retinanet.get_config(f'{found.name}-C')
    config = common.get_config()
    config.model.update(found.settings)
    relu = masks or found.architecture.resnet_depth
    config.model.activation = 'relu' if relu else 'swish'
    if masks:
        config.task = found.task
    if found.task == 'classification':
        config.task = 'classification'
        config.data.image_size = (CLASSIFICATION_SIDE, CLASSIFICATION_SIDE)
    return config


def _list(what: str, names: list[str]) -> None:
    """The report of one kind of mismatch."""
    if names:
        more = f', and {len(names) - _NAMES_SHOWN} more' if len(names) > _NAMES_SHOWN else ''
        print(f'{len(names)} {what}: {", ".join(names[:_NAMES_SHOWN])}{more}')


def to_tf2(source: str, target: pathlib.Path, scratch: pathlib.Path) -> None:
    """Writes the run in `source` as `target`/ckpt, by way of the oracle's TensorFlow.

    Raises:
      UserError: not a model that the Garden can build, or no environment to write in.
    """
    import numpy as np

    from spinenet_jax.convert import export

    trained = export.read_run(source)
    weights, settings = scratch / 'weights.npz', scratch / 'model.json'
    np.savez(weights, **trained.arrays)
    settings.write_text(json.dumps(trained.model))
    target.mkdir(parents=True, exist_ok=True)
    prefix = target / 'ckpt'
    _run_oracle(str(weights), str(settings), str(prefix))
    note = f'model_checkpoint_path: "{prefix.name}"\nall_model_checkpoint_paths: "{prefix.name}"\n'
    (target / 'checkpoint').write_text(note)
    kind = 'RetinaNet' if trained.model['task'] == 'detection' else 'Mask R-CNN'
    print(
        f'wrote {prefix} from checkpoint {trained.step}: load it with '
        f'tf.train.Checkpoint(**model.checkpoint_items).read(...) into a {kind} with '
        f'norm_epsilon={trained.model["bn_epsilon"]:g}, activation={trained.model["activation"]}'
    )


def _run_oracle(*arguments: str) -> None:
    """Run oracle_export.py; its last words become the error."""
    python = os.environ.get(ORACLE, '')
    if not python:
        raise UserError(
            f'{ORACLE} is not set: run tools/maintenance/make_oracle_env.sh DIRECTORY '
            'and set it to DIRECTORY/bin/python'
        )
    command = [python, str(ROOT / 'tools' / 'maintenance' / 'oracle_export.py'), *arguments]
    environment = {**os.environ, 'TF_USE_LEGACY_KERAS': '1'}
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
    except OSError as error:
        raise UserError(f'{ORACLE}={python}: cannot be run ({error.strerror})') from None
    if done.returncode:
        words = done.stderr.strip().splitlines() or ['no message']
        raise UserError(f'the Model Garden could not write the checkpoint: {words[-1]}')


if __name__ == '__main__':
    launch.run(main)
