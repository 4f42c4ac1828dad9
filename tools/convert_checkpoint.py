"""Turns published TensorFlow weights into a workdir of ours, and ours into the Model Garden's.

    python tools/convert_checkpoint.py --source=spinenet49_retinanet.tar.gz --workdir=runs/49-tf
    python eval.py --workdir=runs/49-tf --config.data.root=/data/coco
    python train.py --config=... --workdir=runs/mine --config.train.init_from=runs/49-tf

--source is a checkpoint's prefix, its directory or the .tar.gz of it; TF1 (tensorflow/tpu) and TF2
(Model Garden) are told apart by their contents, and so are the model's sizes. What a checkpoint
does not say is the activation (swish in the Garden and in all best published models, relu in the
350-epoch ones): give --config=configs/retinanet.py:49-B, or --activation.

    python tools/convert_checkpoint.py --to=tf2 --source=runs/49 --workdir=out/49-tf2

writes a TF2 checkpoint for the Model Garden's RetinaNet; this needs the environment that
tools/make_oracle_env.sh builds, named by SPINENET_ORACLE_PYTHON.
"""

import pathlib
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from absl import flags
from ml_collections import config_flags

from spinenet_jax import launch

_SOURCE = flags.DEFINE_string('source', None, 'Checkpoint to convert.', required=True)
_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder to write.', required=True)
_CONFIG = config_flags.DEFINE_config_file('config', None, 'What the checkpoint does not say.')
_TO = flags.DEFINE_enum('to', 'jax', ['jax', 'tf2'], 'What to write.')
_ACTIVATION = flags.DEFINE_enum('activation', None, ['relu', 'swish'], "Instead of --config's.")
_EPSILON = flags.DEFINE_float('bn_epsilon', None, "Instead of what the model's kind implies.")
_MISSING = flags.DEFINE_bool('allow_missing', False, 'Write even where variables are missing.')
_NAMES_SHOWN = 10


def main() -> None:
    """Converts in the direction that --to says."""
    if _TO.value == 'tf2':
        from spinenet_jax.convert import export

        print(export.to_tf2(_SOURCE.value, _WORKDIR.value))
        return
    with tempfile.TemporaryDirectory() as scratch:
        convert(pathlib.Path(scratch))


def convert(scratch: pathlib.Path) -> None:
    """Reads --source and writes --workdir, with a report of what did not match."""
    from spinenet_jax import settings
    from spinenet_jax.convert import tf_checkpoint, weights, workdir
    from spinenet_jax.convert.tensor_bundle import Bundle
    from spinenet_jax.errors import UserError

    source = _SOURCE.value
    bundle = Bundle(tf_checkpoint.locate(source, scratch))
    variables = tf_checkpoint.list_variables(bundle)
    found = weights.recognise(
        variables, lambda name: bundle.entries[variables.keys[name]].shape, source
    )
    config = workdir.make_config(found, _CONFIG.value)
    if _ACTIVATION.value:
        config.model.activation = _ACTIVATION.value
    if _EPSILON.value:
        config.model.bn_epsilon = _EPSILON.value
    settings.check(config)
    converted = weights.convert(bundle, variables, found.architecture)
    workdir.check_shapes(config, found, converted.arrays, source)

    kind = f'{variables.flavour.upper()} SpineNet{"-" if found.name else ""}{found.name}'
    print(f'{source}: {kind}, {found.task}, {len(converted.arrays)} variables of ours')
    if variables.averaged:
        print(f'{variables.averaged} of them are moving averages')
    _list('missing in the checkpoint', converted.missing)
    _list('in the checkpoint but unknown here', converted.unmatched)
    if converted.missing and not _MISSING.value:
        raise UserError(
            f'{source}: {len(converted.missing)} variables are missing (first '
            f'{converted.missing[0]}), nothing written; --allow_missing writes the rest'
        )
    step = int(bundle.read(variables.step)) if variables.step else 0
    path = workdir.write(_WORKDIR.value, config, converted.arrays, step)
    if not (_CONFIG.value or _ACTIVATION.value):
        print(f'activation {config.model.activation} is an assumption: see --help')
    if found.task == 'backbone':
        print('a backbone alone: start training from it with --config.train.init_from')
    print(f'wrote {path}')


def _list(what: str, names: list[str]) -> None:
    """The report of one kind of mismatch."""
    if names:
        more = f', and {len(names) - _NAMES_SHOWN} more' if len(names) > _NAMES_SHOWN else ''
        print(f'{len(names)} {what}: {", ".join(names[:_NAMES_SHOWN])}{more}')


if __name__ == '__main__':
    launch.run(main)
