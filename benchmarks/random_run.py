"""Makes a workdir of random weights that find as much as trained ones, and exports of it, to time.

    python benchmarks/random_run.py --config=configs/retinanet.py:49-C --workdir=runs/random \
        --formats=stablehlo,savedmodel,tflite

For full widths that nobody has trained here. Up to 3,000 class scores of an image are above
the threshold; what is detected means nothing. A run that is there is exported as it is, so that
another environment can add its formats, to <workdir>/exported-<format>: one image of the network's
input, for CPUs. They are compared with the model on noise: in a photograph's even surfaces random
weights give equal scores, whose order is a matter of rounding.
"""

import re
import sys
from pathlib import Path

from absl import flags
from ml_collections import config_flags

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from spinenet_jax import launch  # noqa: E402
from spinenet_jax.errors import UserError  # noqa: E402

_CONFIG = config_flags.DEFINE_config_file('config', None, 'configuration of the model')
_WORKDIR = flags.DEFINE_string('workdir', None, 'folder to make')
_FORMATS = flags.DEFINE_list('formats', [], 'what to export, as --format of export.py')
flags.mark_flags_as_required(['config', 'workdir'])
CANDIDATES = 3000  # below the 5,000 at which a LiteRT file cuts


def draw(config, images):
    """{path: array} of random weights, calibrated on u8[n,H,W,3]."""
    import jax
    import numpy as np
    from flax.traverse_util import flatten_dict

    from benchmarks.peer_ours import crowd, drawn
    from spinenet_jax.lowering.policy import policy_of
    from spinenet_jax.ops.images import MEAN, STDDEV
    from spinenet_jax.tasks.build import build_task_model

    model = build_task_model(config, axis_name=None, policy=policy_of(jax.devices()[0]))
    images = [((image[None] / 255.0 - MEAN) / STDDEV).astype(np.float32) for image in images]
    variables = drawn(config, model)
    network = jax.jit(lambda v, x: model.apply(v, x, train=False))
    variables = crowd(variables, network, images[0])
    last = -np.inf  # logit of the last candidate, in the image that has most
    for image in images:
        logits = np.concatenate([np.ravel(level) for level in network(variables, image)[0]])
        last = max(last, np.partition(logits, -CANDIDATES)[-CANDIDATES])
    arrays = {path: np.array(v) for path, v in flatten_dict(variables, sep='/').items()}
    (bias,) = (p for p in arrays if re.fullmatch('params/class_head/predict.*/bias', p))
    threshold = config.eval.score_threshold
    arrays[bias] += np.log(threshold / (1 - threshold)) - last
    return arrays


def main():
    """Writes what is not there yet."""
    import numpy as np

    from spinenet_jax import inference
    from spinenet_jax.convert import workdir
    from spinenet_jax.export import folder
    from spinenet_jax.export.detector import Request

    config, run = _CONFIG.value, Path(_WORKDIR.value)
    if config.task != 'detection':
        raise UserError(f'--config: task {config.task!r}; only detectors are timed so')
    config.model.dtype = 'float32'  # on a CPU, and in most exported files
    size = tuple(config.data.image_size)
    images = np.random.default_rng(0).integers(0, 256, (3, *size, 3), np.uint8)
    if not run.exists():
        print(f'wrote {workdir.write(run, config, draw(config, images), 0)}')
    trained = inference.load_trained(inference.read_config(run), run, 'latest')
    for name in _FORMATS.value:
        request = Request(batch=1, size=size, platforms=('cpu',))
        agreement = folder.export(trained, name, request, run / f'exported-{name}', images)
        print(f'{name}: {agreement}', flush=True)


if __name__ == '__main__':
    launch.run(main)
