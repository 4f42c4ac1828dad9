"""A TF1 checkpoint of the original TPU repository, converted, gives the original's outputs.

The data lies beside the project, not in it: ../shared/golden/tf1_retinanet_tiny.
"""

import pathlib

import numpy as np
import pytest

from spinenet_jax.convert import tf_checkpoint, weights
from spinenet_jax.convert.tensor_bundle import Bundle
from spinenet_jax.models.build import build_model
from tests.convert import golden

TOLERANCE = 1e-5
PLACE = 'shared/golden/tf1_retinanet_tiny'
ROOT = pathlib.Path(__file__).resolve().parents[2]
FOLDER = next((p / PLACE for p in ROOT.parents if (p / PLACE).is_dir()), None)

pytestmark = pytest.mark.skipif(
    FOLDER is None,
    reason=f'../{PLACE} is not there: the TF1 conversion was NOT compared with the original',
)


@pytest.fixture(scope='module')
def converted(tmp_path_factory):
    bundle = Bundle(tf_checkpoint.locate(str(FOLDER), tmp_path_factory.mktemp('unused')))
    variables = tf_checkpoint.list_variables(bundle)
    found = weights.recognise(variables, lambda n: bundle.entries[n].shape, 'golden')
    return found, weights.convert(bundle, variables, found.architecture)


def test_every_variable_has_its_place(converted):
    found, arrays = converted
    assert not arrays.missing
    assert not arrays.unmatched
    assert len(arrays.arrays) == 977
    assert found.task == 'detection'
    assert found.settings == {
        'width': 0.125,
        'resample_alpha': 0.5,
        'block_repeats': 2,
        'endpoint_channels': 16,
        'head_convs': 2,
        'head_channels': 16,
        'num_classes': 5,
        'padding': 'symmetric',
        'pooling': 'single',
        'bn_epsilon': 1e-4,
        'bn_momentum': 0.997,
        'anchor_size': 3.0,
    }


def test_outputs_equal_the_originals(converted):
    found, arrays = converted
    stored = np.load(FOLDER / 'golden.npz')
    config = golden.model_config({**found.settings, 'activation': 'swish'})
    module = build_model(config, task='detection', axis_name=None)
    variables = golden.nest(arrays.arrays)
    ours = golden.run(module, variables, stored['images'])
    theirs = {}
    for level in golden.LEVELS:
        theirs[f'feature{level}'] = stored[f'features/{level}']
        theirs[f'logits{level}'] = stored[f'class_logits/{level}']
        theirs[f'codes{level}'] = stored[f'box_outputs/{level}']
        # The original lists the shapes of anchors in another order.
        for name, width in (('logits', found.settings['num_classes']), ('codes', 4)):
            x = theirs[f'{name}{level}']
            x = x.reshape(*x.shape[:-1], 3, 3, width)[..., [2, 0, 1], :]
            theirs[f'{name}{level}'] = x.reshape(*x.shape[:-3], -1)
    golden.check(ours, theirs, TOLERANCE)
