"""Writes an exported model as a folder that is complete, and has been run, or is not there.

A format is a module with `FILE`, the name of what it writes; `PACKAGES` that it needs; `write` and
`load`. The folder holds that file and `metadata.json`, which says what goes in and comes out.
"""

import contextlib
import dataclasses
import importlib.metadata
import importlib.util
import os
import shutil
from types import ModuleType

import jax
import numpy as np
from ml_collections import ConfigDict

from spinenet_jax.data.transforms import Draws, place, place_image
from spinenet_jax.errors import RunError, UserError
from spinenet_jax.export import onnx, savedmodel, stablehlo, tflite
from spinenet_jax.export.comparison import Agreement, compare_detections, compare_raw
from spinenet_jax.export.detector import Request, build_function, check_exportable
from spinenet_jax.files import DamagedFileError, absolute, is_remote, read_json, write_json
from spinenet_jax.inference import Trained
from spinenet_jax.lowering.policy import PLAIN
from spinenet_jax.ops.images import MEAN, STDDEV

FORMATS: dict[str, ModuleType] = {
    'stablehlo': stablehlo,
    'savedmodel': savedmodel,
    'onnx': onnx,
    'tflite': tflite,
}
FIXED = ('onnx', 'tflite')  # their files hold the number and the size of the images
MADE_BY = 'spinenet_jax export'
METADATA = 'metadata.json'
# What another runtime's order of additions may change; of raw outputs, logits have no bound.
BOX_TOLERANCE, SCORE_TOLERANCE, RAW_TOLERANCE = 0.05, 1e-4, 1e-2
# Of scores: 8 bits of bfloat16, which another compiler rounds at other places, and weights of less.
BFLOAT16_TOLERANCE = 0.02
WEIGHTS_TOLERANCE = {'float16': 0.02, 'int8': 0.1}


def complete(request: Request, name: str, image_size: tuple[int, int]) -> Request:
    """The request with what its format or a raw network fixes: one image of the input's size.

    Raises:
      UserError: what the format cannot do.
    """
    if request.weights != 'float32' and name != 'tflite':
        raise UserError(f'--weights={request.weights}: only --format=tflite stores them so')
    if request.weights != 'float32' and request.raw:
        raise UserError(
            f'--weights={request.weights}: how far its outputs may be off is known for detections '
            'only: leave out --raw'
        )
    if request.raw and request.size not in (None, image_size):
        height, width = image_size
        raise UserError(
            f'--image_size: the network alone takes {height}x{width}, the size it was trained for'
        )
    if request.raw or (name in FIXED and request.size is None):
        request = dataclasses.replace(request, size=image_size)
    if name in FIXED and not request.batch:
        request = dataclasses.replace(request, batch=1)
    return request


def export(
    trained: Trained,
    name: str,
    request: Request,
    output: str | os.PathLike,
    images: np.ndarray | None = None,
) -> Agreement:
    """Exports a trained model, runs what was written and compares it with the model.

    Args:
      trained: see `inference.Trained`.
      name: one of `FORMATS`.
      request: what to export, see `complete`.
      output: the folder to be made; an earlier export there is replaced.
      images: u8[n,h,w,3] to compare on; photographs and noise by default.

    Returns:
      How well the two agree.

    Raises:
      UserError: a package is missing, the model cannot be exported, or the folder holds something
        else.
      RunError: the file computes something else than the model. Nothing is left of it.
    """
    format_ = FORMATS[name]
    for package in format_.PACKAGES:
        if importlib.util.find_spec(package) is None:
            raise UserError(
                f'--format={name} needs the package {package}: docs/export.md says how to get it'
            )
    check_exportable(trained)
    _check_platform(name, request)
    final = absolute(output)
    _check_output(final)
    if name != 'stablehlo':
        trained = _in_float32(trained)
    request = complete(request, name, trained.task.image_size)
    temporary = final.parent / f'{final.name}.{os.getpid()}.tmp'
    try:
        temporary.mkdir(parents=True)
        format_.write(trained, request, temporary)
        agreement = _check(trained, request, format_, temporary, images)
        write_json(temporary / METADATA, metadata(trained, name, request, agreement), indent=1)
        _replace(temporary, final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return agreement


def _check_platform(name: str, request: Request) -> None:
    """The file is run before it is kept, so it must run here."""
    here = {'gpu': ('cuda', 'rocm')}.get(jax.default_backend(), (jax.default_backend(),))
    if name not in FIXED and not set(here) & set(request.platforms):
        instead = ', or set JAX_PLATFORMS=cpu' if 'cpu' in request.platforms else ''
        raise UserError(
            f'--platforms={",".join(request.platforms)}: the file is run before it is kept, and '
            f'JAX runs on {jax.default_backend()} here: add {here[0]}{instead}'
        )


def metadata(
    trained: Trained, name: str, request: Request, agreement: Agreement
) -> dict[str, object]:
    """What whoever runs the file must know."""
    config, task = trained.config, trained.task
    shape = [request.batch or None, *(request.size or (None, None)), 3]
    facts: dict[str, object] = {
        'made_by': MADE_BY,
        'format': name,
        'file': FORMATS[name].FILE,
        'checkpoint': trained.step,
        'images': {
            'shape': shape,
            'dtype': 'float32' if request.raw else 'uint8',
            'channels': 'RGB',
        },
        'network_input': list(task.image_size),
        'classes': [{'label': c.label, 'id': c.id, 'name': c.name} for c in trained.categories],
        'weights': request.weights,
        'compared': agreement._asdict(),
        'versions': _versions(FORMATS[name].PACKAGES),
    }
    if request.raw:
        facts['images']['normalised'] = {'mean': MEAN.tolist(), 'stddev': STDDEV.tolist()}
        facts['anchors'] = {
            'size': config.model.anchor_size,
            'levels': [config.model.min_level, config.model.max_level],
        }
        facts['outputs'] = {'logits': '[B, A, classes]', 'codes': '[B, A, 4] (dy, dx, dh, dw)'}
    else:
        facts['rules'] = task.rules._asdict()
        facts['outputs'] = {
            'boxes': '[B, D, 4] (ymin, xmin, ymax, xmax), pixels of the image given',
            'scores': '[B, D], best first',
            'classes': '[B, D], labels as in `classes`',
            'valid': '[B, D], which of the D rows hold a detection',
        }
    return facts


def sample_images() -> np.ndarray:
    """u8[3,427,640,3]: photographs and noise, on which nearly any detector finds something."""
    from sklearn.datasets import load_sample_images

    photographs = np.stack(load_sample_images().images)
    noise = np.random.default_rng(0).integers(0, 256, photographs.shape[1:], np.uint8)
    return np.concatenate([photographs, noise[None]])


def _check(
    trained: Trained,
    request: Request,
    format_: ModuleType,
    folder: os.PathLike,
    images: np.ndarray | None,
) -> Agreement:
    """Runs the file and the model on the same images.

    Raises:
      RunError: they differ.
    """
    images = sample_images() if images is None else images
    if request.size:
        placed = (
            place_image(x, place(x.shape[:2], request.size, Draws()), request.size) for x in images
        )
        images = np.stack(list(placed))
    if request.raw:
        images = ((images / 255.0 - MEAN) / STDDEV).astype(np.float32)
    if request.batch:  # the first ones, or some again
        images = np.resize(images, (request.batch, *images.shape[1:]))
    model = jax.jit(build_function(trained, PLAIN, request))
    expected, found = (
        {name: np.asarray(value) for name, value in run(images).items()}
        for run in (model, format_.load(folder))
    )
    if set(expected) != set(found):
        raise RunError(f'the file gives {sorted(found)}, the model {sorted(expected)}')
    if request.raw:
        agreement = compare_raw(expected, found)
        agrees = all(value <= RAW_TOLERANCE for value in agreement.largest.values())  # not NaN
    else:
        is_exact = trained.config.model.dtype == 'float32' and request.weights == 'float32'
        tolerance = SCORE_TOLERANCE if is_exact else BFLOAT16_TOLERANCE
        tolerance = WEIGHTS_TOLERANCE.get(request.weights, tolerance)
        agreement = compare_detections(
            expected,
            found,
            BOX_TOLERANCE if is_exact else np.inf,
            tolerance,
            trained.task.rules.score,
        )
        agrees = agreement.missing == 0
    if not agrees:
        raise RunError(
            f'the exported file differs from the model and was removed: {agreement.missing} of '
            f'{agreement.compared} detections have no counterpart, largest differences '
            f'{agreement.largest}'
        )
    return agreement


def _in_float32(trained: Trained) -> Trained:
    config = ConfigDict(trained.config.to_dict())
    config.model.dtype = 'float32'
    return dataclasses.replace(trained, config=config)


def _versions(packages: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for package in ('jax', 'jaxlib', *packages):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def _check_output(folder: os.PathLike) -> None:
    """UserError unless the folder is absent, empty or an earlier export."""
    if is_remote(folder):
        raise UserError(f'--output={folder}: must be a local folder')
    if not os.path.lexists(folder):
        return
    if not os.path.isdir(folder):
        raise UserError(f'--output={folder}: a file is there')
    if os.listdir(folder) and not _is_export(folder):
        raise UserError(
            f'--output={folder}: holds something else than an export: name a new folder'
        )


def _is_export(folder: os.PathLike) -> bool:
    try:
        facts = read_json(os.path.join(folder, METADATA))
    except DamagedFileError:
        return False
    return isinstance(facts, dict) and facts.get('made_by') == MADE_BY


def _replace(new: os.PathLike, folder: os.PathLike) -> None:
    """Puts a finished folder in its place; an earlier one is out of the way for a moment only."""
    if not os.path.isdir(folder):
        os.rename(new, folder)
        return
    old = f'{folder}.{os.getpid()}.old'
    os.rename(folder, old)
    os.rename(new, folder)
    shutil.rmtree(old, ignore_errors=True)
