"""A checkpoint in the layout of the Garden's beta, converted, gives TensorFlow's outputs.

That is the layout of the checkpoints which the Model Garden's README offers. The golden, made by
tools/maintenance/make_goldens.py, is a checkpoint as TensorFlow writes it.
"""

import numpy as np
import pytest

from spinenet_jax.convert import recognition, tf_checkpoint, weights
from spinenet_jax.convert.tensor_bundle import Bundle
from spinenet_jax.errors import UserError
from spinenet_jax.models.build import build_model
from tests.convert import golden
from tools.maintenance import oracle_cases as cases

TOLERANCE = 1e-5


@pytest.fixture(scope='module')
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp('beta')
    for name, content in golden.part(golden.load('tf2_beta'), 'file').items():
        (folder / name).write_bytes(content.tobytes())
    return Bundle(tf_checkpoint.locate(str(folder), folder))


def test_the_layout_is_the_betas(bundle):
    bundle.verify()  # TensorFlow's own checksums, that of the object graph included
    names = set(bundle.full_names().values())
    assert {'conv2d_81/kernel', 'sync_batch_normalization_81/gamma'} <= names
    assert not {'conv2d_82/kernel', 'batch_normalization/gamma'} & names


def test_converted_outputs_equal_the_gardens(bundle):
    variables = tf_checkpoint.list_variables(bundle)
    found = recognition.recognise(
        variables, lambda name: bundle.entries[variables.keys[name]].shape, 'golden'
    )
    assert not found.architecture.counts_p2
    match = weights.match(variables, found.architecture)
    assert (match.missing, match.unmatched) == ([], [])
    assert int(bundle.read(variables.step)) == 231000
    known = {key: cases.BETA[key] for key in ('head_convs', 'num_classes', 'endpoint_channels')}
    assert {key: found.settings[key] for key in known} == known

    arrays = weights.read(bundle, match.names, found.flavour)
    module = build_model(
        golden.model_config({**cases.BETA, **found.settings}), task='detection', axis_name=None
    )
    images = cases.normalised(cases.images('tf2_beta', 1, cases.BETA_SIZE))
    ours = golden.run(module, golden.nest(arrays), images)
    stored = golden.load('tf2_beta')
    golden.check(ours, {key: stored[key] for key in ours}, TOLERANCE)


def damaged(content, how, place):
    """Bytes with something wrong at `place`."""
    return {
        'bit': content[:place] + bytes([content[place] ^ 16]) + content[place + 1 :],
        'zeros': content[:place] + bytes(64) + content[place + 64 :],
        'cut': content[:place],
        'extra': content[:place] + b'extra' + content[place:],
    }[how]


@pytest.mark.parametrize('how', ['bit', 'zeros', 'cut', 'extra'])
def test_no_damage_is_read_in_silence(tmp_path, how):
    """Ten places in each file; every refusal is one line, and nothing else is raised."""
    files = golden.part(golden.load('tf2_beta'), 'file')
    for name, content in files.items():
        (tmp_path / name).write_bytes(content.tobytes())
    for name, content in files.items():
        for place in np.linspace(0, len(content) - 70, 10, dtype=int):
            (tmp_path / name).write_bytes(damaged(content.tobytes(), how, place))
            with pytest.raises(UserError) as error:
                Bundle(tf_checkpoint.locate(str(tmp_path), tmp_path)).verify()
            assert '\n' not in str(error.value)
        (tmp_path / name).write_bytes(content.tobytes())
    Bundle(tf_checkpoint.locate(str(tmp_path), tmp_path)).verify()
