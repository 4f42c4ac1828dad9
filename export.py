"""Writes a trained detector as a file that runs without this package.

    python export.py --workdir=runs/digits --format=stablehlo --output=exported

The file takes uint8 images and gives boxes in pixels of those images, scores and classes; scaling,
normalisation and suppression are inside. It is run and compared with the model before the folder
appears. docs/export.md says what each format needs, how to run it, and what it cannot do.
"""

import re

from absl import flags

from spinenet_jax import launch

FORMATS = ('stablehlo', 'savedmodel', 'onnx', 'tflite')
_FORMAT = flags.DEFINE_enum('format', 'stablehlo', FORMATS, 'What to write.')
_OUTPUT = flags.DEFINE_string('output', 'exported', 'Folder to make.')
_CHECKPOINT = flags.DEFINE_string('checkpoint', 'best', 'best, latest, or a step.')
_RAW = flags.DEFINE_bool('raw', False, 'The network alone: normalised floats to raw outputs.')
_BATCH = flags.DEFINE_integer(
    'batch_size', 0, 'Images a call; 0: any number (onnx, tflite: one).', lower_bound=0
)
_SIZE = flags.DEFINE_string(
    'image_size', '', "HxW of the images; '': any (onnx, tflite: the network's input)."
)
_PLATFORMS = flags.DEFINE_list(
    'platforms', 'cpu,cuda,tpu', 'Where it shall run: cpu, cuda, rocm, tpu; stablehlo, savedmodel.'
)


def main() -> None:
    """Loads the model and exports it."""
    from spinenet_jax import inference
    from spinenet_jax.errors import UserError
    from spinenet_jax.export import folder
    from spinenet_jax.export.detector import Request

    size = re.fullmatch(r'([1-9]\d{0,4})x([1-9]\d{0,4})', _SIZE.value)
    if _SIZE.value and size is None:
        raise UserError(f'--image_size={_SIZE.value}: must read like 480x640, height first')
    unknown = set(_PLATFORMS.value) - {'cpu', 'cuda', 'rocm', 'tpu'}
    if unknown or not _PLATFORMS.value:
        raise UserError(f'--platforms={",".join(_PLATFORMS.value)}: choose of cpu, cuda, rocm, tpu')
    launch.start_jax()
    trained = inference.load_trained(flags.FLAGS.config, flags.FLAGS.workdir, _CHECKPOINT.value)
    request = Request(
        batch=_BATCH.value,
        size=(int(size[1]), int(size[2])) if size else None,
        raw=_RAW.value,
        platforms=tuple(_PLATFORMS.value),
    )
    agreement = folder.export(trained, _FORMAT.value, request, _OUTPUT.value)
    what = 'images' if _RAW.value else 'detections'
    differences = ', '.join(f'{name} {value:.1e}' for name, value in agreement.largest.items())
    print(
        f'{_OUTPUT.value}: checkpoint {trained.step} as {_FORMAT.value}; run and compared on '
        f'{agreement.compared} {what}, largest differences: {differences}'
    )


if __name__ == '__main__':
    launch.define_flags(config_required=False)
    launch.check_folder('output')
    flags.adopt_module_key_flags(launch)
    launch.run(main, config_of_workdir=True, out_of_memory=launch.OUT_OF_MEMORY_INFERENCE)
