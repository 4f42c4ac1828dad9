"""Fresh weights at full width through the Model Garden itself, so that goldens cannot go stale.

Needs the environment of tools/make_oracle_env.sh: SPINENET_ORACLE_PYTHON names its python, else it
is built (about 2 GB) in SPINENET_ORACLE_CACHE, by default ~/.cache/spinenet_jax/oracle.
"""

import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from configs import common
from spinenet_jax.convert import workdir
from spinenet_jax.models.build import build_model
from spinenet_jax.ops.nms import Rules
from spinenet_jax.tasks.detection import DetectionTask
from spinenet_jax.training.checkpoint import load_model
from tests.convert import golden
from tools import oracle_cases as cases

pytestmark = pytest.mark.tf
ROOT = pathlib.Path(__file__).resolve().parents[2]
TOLERANCE = 1e-5
CACHE = '~/.cache/spinenet_jax/oracle'


@pytest.fixture(scope='session')
def oracle():
    """The oracle's python."""
    if named := os.environ.get('SPINENET_ORACLE_PYTHON'):
        return named
    folder = pathlib.Path(os.environ.get('SPINENET_ORACLE_CACHE', CACHE)).expanduser()
    subprocess.run([ROOT / 'tools' / 'make_oracle_env.sh', folder], check=True)
    return str(folder / 'bin' / 'python')


def run(*command, **environment):
    """Run a command in the project's folder; its output is the failure's message."""
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, **environment}
    )
    assert done.returncode == 0, f'{command}: {done.stdout[-1500:]} {done.stderr[-1500:]}'
    return done.stdout


def detections(module, variables, images, model):
    """Our 100 detections of normalised images, and our maps."""
    task = DetectionTask(
        images.shape[1:3],
        model['num_classes'],
        model['anchor_size'],
        (3, 7),
        Rules(first_class=1),
    )
    maps = golden.run(module, variables, images)
    outputs = tuple(
        [maps[f'{kind}{level}'] for level in golden.LEVELS] for kind in ('logits', 'codes')
    )
    found = jax.jit(lambda outputs: task.predictions(outputs, {}))(outputs)
    return maps, {key: np.asarray(value) for key, value in found.items()}


def check_detections(ours, theirs):
    """Equal detections in equal order; only scores that are all but equal may change places."""
    count = int(theirs['num_detections'][0])
    assert int(ours['valid'][0].sum()) == count > 50
    scores = theirs['detection_scores'][0, :count]
    np.testing.assert_allclose(ours['scores'][0, :count], scores, atol=1e-5)
    apart = np.abs(ours['boxes'][0, :count] - theirs['detection_boxes'][0, :count]).max(axis=1)
    same = ours['classes'][0, :count] == theirs['detection_classes'][0, :count]
    same &= apart < 0.05  # pixels
    gaps = np.minimum(np.abs(np.diff(scores, prepend=2)), np.abs(np.diff(scores, append=-1)))
    wrong = np.flatnonzero(~same & (gaps > 1e-5))
    print(
        f'{count} detections, {same.sum()} in the same place, boxes within {apart[same].max():.1e}'
    )
    assert not wrong.size, f'detections {wrong} differ'


@pytest.mark.parametrize(('name', 'side'), [('49S', 640), ('49', 640), ('190', 256)])
def test_a_tf2_checkpoint_converted_gives_the_model_gardens_outputs(oracle, name, side, tmp_path):
    """Random weights saved by the Garden, converted by the script: features, logits, detections."""
    seed = int.from_bytes(os.urandom(3), 'little')
    print(f'seed {seed}')
    run(oracle, 'tools/oracle_forward.py', name, str(side), str(seed), str(tmp_path))
    convert = str(ROOT / 'tools' / 'convert_checkpoint.py')
    print(run(sys.executable, convert, f'--source={tmp_path}/saved', f'--workdir={tmp_path}/run'))
    variables, _ = load_model(tmp_path / 'run')
    config = json.loads((tmp_path / 'run' / 'config.json').read_text())
    model = cases.model(**cases.FULL[name])
    written = {key: config['model'][key] for key in model}
    assert written == model, f'{name} was taken for something else'
    module = build_model(golden.model_config(model), axis_name=None)
    with np.load(tmp_path / 'outputs.npz') as stored:
        theirs = dict(stored)
    images = cases.normalised(cases.images('full', 1, (side, side), seed))
    maps, found = detections(module, variables, images, model)
    golden.check(maps, {key: theirs[key] for key in maps}, TOLERANCE)
    check_detections(found, theirs)


def test_our_weights_go_to_the_model_garden(oracle, tmp_path):
    """A workdir of ours, written as TF2, read by the Garden: equal outputs; back: equal bytes."""
    model, size = cases.model(activation='swish', width=0.1, head_convs=1), (128, 256)
    module = build_model(golden.model_config(model), axis_name=None)
    variables = golden.random_variables(module, size)
    arrays = flatten_dict(variables, sep='/')
    config = common.get_config()
    config.model.update(model)
    config.data.image_size = size
    workdir.write(tmp_path / 'run', config, arrays, 5)
    script = str(ROOT / 'tools' / 'convert_checkpoint.py')
    flags = (f'--source={tmp_path}/run', f'--workdir={tmp_path}/tf2', '--to=tf2')
    print(run(sys.executable, script, *flags, SPINENET_ORACLE_PYTHON=oracle))

    (tmp_path / 'model.json').write_text(json.dumps({**model, 'image_size': size}))
    run(oracle, 'tools/oracle_forward.py', str(tmp_path / 'model.json'), '0', '0', str(tmp_path))
    with np.load(tmp_path / 'outputs.npz') as stored:
        theirs = dict(stored)
    images = cases.normalised(cases.images('full', 1, size))
    ours = golden.run(module, variables, images)
    golden.check(ours, {key: theirs[key] for key in ours}, TOLERANCE)

    run(sys.executable, script, f'--source={tmp_path}/tf2', f'--workdir={tmp_path}/back')
    back = flatten_dict(load_model(tmp_path / 'back')[0], sep='/')
    assert back.keys() == arrays.keys()
    for path, value in arrays.items():
        np.testing.assert_array_equal(back[path], value, err_msg=path)


def test_the_goldens_are_what_the_oracle_makes_today(oracle, tmp_path):
    """The cheap stages, made again."""
    stages = ('anchors', 'matching', 'losses', 'detection', 'preprocessing')
    run(oracle, 'tools/make_goldens.py', f'--output={tmp_path}', *stages)
    for stage in stages:
        with np.load(tmp_path / f'{stage}.npz') as made:
            stored = golden.load(stage)
            assert set(made.files) == set(stored)
            for key in made.files:
                np.testing.assert_allclose(made[key], stored[key], rtol=1e-6, err_msg=key)
