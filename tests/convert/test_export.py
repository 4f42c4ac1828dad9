"""Our weights as checkpoints of the Model Garden: what it can build, written and read by it."""

import json
import sys

import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from configs import common, retinanet
from spinenet_jax.convert import export, workdir
from spinenet_jax.errors import UserError
from spinenet_jax.models.build import build_model
from spinenet_jax.training.checkpoint import load_model
from tests.convert import golden
from tests.convert.scripts import CONVERT, FORWARD, run
from tools.maintenance import oracle_cases as cases


@pytest.mark.parametrize(
    ('variant', 'changes', 'words'),
    [
        ('49-B', {'graph': 'r0_sp53'}, "graph='r0_sp53'"),
        ('49-B', {'pooling': 'single'}, "pooling='single'"),
        ('r50-B', {'padding': 'symmetric'}, "padding='symmetric'"),
        ('mb49-M', {'squeeze_gate': 'sigmoid'}, "'sigmoid', and the Model Garden .*'hard_sigmoid'"),
        ('mb49-M', {'squeeze_gate': 'hard_sigmoid', 'block_repeats': 2}, 'block_repeats=2'),
    ],
)
def test_what_the_garden_computes_in_another_way_is_refused(variant, changes, words, tmp_path):
    config = retinanet.get_config(variant)
    config.model.update(changes)
    (tmp_path / 'config.json').write_text(config.to_json())
    with pytest.raises(UserError, match=words):
        export.read_run(tmp_path)


@pytest.mark.parametrize('backbone', [{'graph': 'mobile49'}, {'backbone': 'resnet_fpn'}])
def test_mask_rcnn_goes_to_the_garden_on_a_spinenet_only(backbone, tmp_path):
    config = common.get_config()
    config.task = 'instance_segmentation'
    config.model.update(backbone)
    (tmp_path / 'config.json').write_text(config.to_json())
    with pytest.raises(UserError, match=r'model\.(graph|backbone)'):
        export.read_run(tmp_path)


def there_and_back(oracle, model, size, folder, task='detection'):
    """Random weights, written by the script as TF2 and converted back: equal bytes.

    Returns:
      The model and its variables.
    """
    module = build_model(golden.model_config(model), task=task, axis_name=None)
    variables = golden.random_variables(module, size)
    arrays = flatten_dict(variables, sep='/')
    config = common.get_config()
    config.task = task
    config.model.update(model)
    config.data.image_size = size
    workdir.write(folder / 'run', config, arrays, 5)
    flags = (f'--source={folder}/run', f'--workdir={folder}/tf2', '--to=tf2')
    print(run(sys.executable, CONVERT, *flags, SPINENET_ORACLE_PYTHON=oracle))
    run(sys.executable, CONVERT, f'--source={folder}/tf2', f'--workdir={folder}/back')
    back = flatten_dict(load_model(folder / 'back')[0], sep='/')
    assert back.keys() == arrays.keys()
    for path, value in arrays.items():
        np.testing.assert_array_equal(back[path], value, err_msg=path)
    return module, variables


@pytest.mark.tf
@pytest.mark.parametrize(
    ('model', 'size'),
    [
        (cases.model(activation='swish', width=0.1, head_convs=1), (128, 256)),
        (cases.MOBILE, (128, 128)),
    ],
    ids=['spinenet', 'mobile'],
)
def test_a_retinanet_goes_to_the_model_garden_and_back(oracle, model, size, tmp_path):
    """The Garden reads it, and computes the same."""
    module, variables = there_and_back(oracle, model, size, tmp_path)
    description = tmp_path / 'model.json'
    description.write_text(json.dumps({**model, 'image_size': size}))
    run(oracle, FORWARD, str(description), '0', '0', str(tmp_path))
    with np.load(tmp_path / 'outputs.npz') as stored:
        theirs = dict(stored)
    images = cases.normalised(cases.images('full', 1, size))
    ours = golden.run(module, variables, images)
    golden.check(ours, {key: theirs[key] for key in ours}, 1e-5)


@pytest.mark.tf
def test_a_resnet_fpn_goes_to_the_model_garden_and_back(oracle, tmp_path):
    there_and_back(oracle, {**cases.RESNET, 'head_convs': 1}, (128, 128), tmp_path)


@pytest.mark.tf
@pytest.mark.parametrize('cascade', [False, True])
def test_a_mask_rcnn_goes_to_the_model_garden_and_back(oracle, cascade, tmp_path):
    model = {**cases.MASK_RCNN, 'cascade': cascade, 'head_channels': 24}
    there_and_back(oracle, model, (128, 128), tmp_path, 'instance_segmentation')
