"""Compares fresh weights at full width with the Model Garden itself: goldens cannot go stale.

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
from flax import linen as nn
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from configs import common
from spinenet_jax.convert import workdir
from spinenet_jax.models.build import build_model
from spinenet_jax.ops import boxes as box_ops
from spinenet_jax.ops.nms import Rules
from spinenet_jax.tasks.build import build_task_model
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
        golden.rows(images.shape[1:3]),
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


def rows(boxes, scores, classes):
    """f[n,6] of class, score and box, best first."""
    return np.concatenate([np.stack([classes, scores], 1), boxes], axis=1).astype(np.float64)


def unexplained(mine, others):
    """Rows of `mine` that `others` lack, but for those a rounding at the IoU threshold explains.

    Whether a box that overlaps a better one of its class by 0.5 stays is decided by the last bits.
    Such a box moves the others down by a row, so that the last ones fall out of the hundred.
    """
    left = []
    for index, row in enumerate(mine):
        alike = (others[:, 0] == row[0]) & (np.abs(others[:, 1] - row[1]) <= 1e-5)
        alike &= np.abs(others[:, 2:] - row[2:]).max(axis=1) < 0.05  # pixels
        better = mine[:index][mine[:index, 0] == row[0]]
        overlaps = np.asarray(box_ops.iou(row[None, 2:], better[:, 2:])) if len(better) else 0.0
        at_threshold = np.any(np.abs(overlaps - 0.5) < 1e-3)
        fell_out = row[1] <= others[-1, 1] + 1e-5
        if not (alike.any() or at_threshold or fell_out):
            left.append(index)
    return left


def check_detections(ours, theirs):
    """The same detections, at most three of them decided by rounding at the IoU threshold."""
    count = int(theirs['num_detections'][0])
    assert int(ours['valid'][0].sum()) == count > 50
    mine = rows(*(ours[key][0, :count] for key in ('boxes', 'scores', 'classes')))
    # The Garden marks what it suppressed by zeros, and so loses a box clipped to the upper left
    # corner's point (docs/differences.md).
    mine = mine[mine[:, 2:].any(axis=1)]
    names = ('detection_boxes', 'detection_scores', 'detection_classes')
    others = rows(*(theirs[name][0, :count] for name in names))
    assert unexplained(mine, others) == unexplained(others, mine) == []
    common_rows = sum(
        bool(np.any((np.abs(others - row) < (0.5, 1e-5, *[0.05] * 4)).all(axis=1))) for row in mine
    )
    print(f'{common_rows} of {count} detections are the same')
    assert common_rows >= count - 3


@pytest.mark.parametrize(
    ('name', 'side'),
    [('49S', 640), ('49', 640), ('190', 256), ('mb49', 384)],
)
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
    module = build_model(golden.model_config(model), task='detection', axis_name=None)
    with np.load(tmp_path / 'outputs.npz') as stored:
        theirs = dict(stored)
    images = cases.normalised(cases.images('full', 1, (side, side), seed))
    maps, found = detections(module, variables, images, model)
    golden.check(maps, {key: theirs[key] for key in maps}, TOLERANCE)
    check_detections(found, theirs)


def test_a_tf2_mask_rcnn_converted_gives_the_model_gardens_outputs(oracle, tmp_path):
    """Random weights saved by the Garden, converted by the script: features and proposals' maps."""
    seed, side = int.from_bytes(os.urandom(3), 'little'), 512
    print(f'seed {seed}')
    run(oracle, 'tools/oracle_masks.py', str(side), str(seed), str(tmp_path))
    convert = str(ROOT / 'tools' / 'convert_checkpoint.py')
    flags = (f'--source={tmp_path}/saved', f'--workdir={tmp_path}/run', '--activation=swish')
    print(run(sys.executable, convert, *flags))
    variables, _ = load_model(tmp_path / 'run')
    config = ConfigDict(json.loads((tmp_path / 'run' / 'config.json').read_text()))
    assert config.task == 'instance_segmentation' and config.eval.decode == 'plain'
    written = {key: config.model[key] for key in cases.FULL_MASK_RCNN}
    assert written == cases.FULL_MASK_RCNN
    config.data.image_size = (side, side)
    config.model.dtype = 'float32'  # the published protocols train in bfloat16
    module = build_task_model(config, axis_name=None)
    with np.load(tmp_path / 'outputs.npz') as stored:
        theirs = dict(stored)

    @jax.jit
    def stages(variables, images):
        def all_of(model, images):
            pyramid = model.features(images, train=False)
            outputs = model.propose(pyramid, train=False)
            maps = {f'feature{level}': x.whole() for level, x in pyramid.items()}
            for name, levels in zip(('rpn_scores', 'rpn_codes'), outputs, strict=True):
                maps |= {f'{name}{n}': x for n, x in zip(golden.LEVELS, levels, strict=True)}
            return maps

        return nn.apply(all_of, module)(variables, images)

    images = cases.normalised(cases.images('full', 1, (side, side), seed))
    maps = jax.tree.map(np.asarray, stages(variables, images))
    golden.check(maps, {key: theirs[key] for key in maps}, TOLERANCE)


def test_our_weights_go_to_the_model_garden(oracle, tmp_path):
    """A workdir of ours, written as TF2, read by the Garden: equal outputs; back: equal bytes."""
    model, size = cases.model(activation='swish', width=0.1, head_convs=1), (128, 256)
    module = build_model(golden.model_config(model), task='detection', axis_name=None)
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


@pytest.mark.parametrize('cascade', [False, True])
def test_our_mask_rcnn_goes_to_the_model_garden_and_back(oracle, cascade, tmp_path):
    """A workdir of ours, written as TF2 by the Garden's model; back: equal bytes."""
    model, size = {**cases.MASK_RCNN, 'cascade': cascade, 'head_channels': 24}, (128, 128)
    module = build_model(golden.model_config(model), task='instance_segmentation', axis_name=None)
    arrays = flatten_dict(golden.random_variables(module, size), sep='/')
    config = common.get_config()
    config.task = 'instance_segmentation'
    config.model.update(model)
    config.data.image_size = size
    workdir.write(tmp_path / 'run', config, arrays, 5)
    script = str(ROOT / 'tools' / 'convert_checkpoint.py')
    flags = (f'--source={tmp_path}/run', f'--workdir={tmp_path}/tf2', '--to=tf2')
    print(run(sys.executable, script, *flags, SPINENET_ORACLE_PYTHON=oracle))
    run(sys.executable, script, f'--source={tmp_path}/tf2', f'--workdir={tmp_path}/back')
    back = flatten_dict(load_model(tmp_path / 'back')[0], sep='/')
    assert back.keys() == arrays.keys()
    for path, value in arrays.items():
        np.testing.assert_array_equal(back[path], value, err_msg=path)


def test_the_goldens_are_what_the_oracle_makes_today(oracle, tmp_path):
    """The cheap stages, made again."""
    stages = ('anchors', 'matching', 'losses', 'detection', 'decoding', 'preprocessing')
    run(oracle, 'tools/make_goldens.py', f'--output={tmp_path}', *stages)
    for stage in stages:
        with np.load(tmp_path / f'{stage}.npz') as made:
            stored = golden.load(stage)
            assert set(made.files) == set(stored)
            for key in made.files:
                np.testing.assert_allclose(made[key], stored[key], rtol=1e-6, err_msg=key)
