"""A TF1 checkpoint of the original TPU repository, converted, gives the original's outputs.

tests/goldens/tf1_retinanet holds a narrow RetinaNet with random weights as that repository's
training saves it, `model.json`, how it was built, and `golden.npz`, what the original code computed
from it in float32 at inference: features, head outputs and final detections of two images.
"""

import json
import math

import numpy as np
import pytest

from spinenet_jax.convert import recognition, tf_checkpoint, weights
from spinenet_jax.convert.tensor_bundle import Bundle
from spinenet_jax.models.build import build_model
from spinenet_jax.ops import nms
from spinenet_jax.ops.anchors import pyramid_anchors
from spinenet_jax.tasks.detection import DetectionTask
from tests.convert import golden

TOLERANCE = 1e-5
FOLDER = golden.FOLDER / 'tf1_retinanet'
RATIOS = [2, 0, 1]  # TF1 orders the shapes of anchors 1, 2, 1/2; we 1/2, 1, 2


@pytest.fixture(scope='module')
def model():
    return json.loads((FOLDER / 'model.json').read_text())


@pytest.fixture(scope='module')
def stored():
    with np.load(FOLDER / 'golden.npz') as file:
        return dict(file)


@pytest.fixture(scope='module')
def converted(tmp_path_factory):
    """(what was recognised, {our path: array})."""
    bundle = Bundle(tf_checkpoint.locate(str(FOLDER), tmp_path_factory.mktemp('unused')))
    bundle.verify()
    variables = tf_checkpoint.list_variables(bundle)
    found = recognition.recognise(variables, lambda n: bundle.entries[n].shape, 'golden')
    match = weights.match(variables, found.architecture)
    assert (match.missing, match.unmatched) == ([], [])
    assert int(bundle.read(variables.step)) == 162050
    return found, weights.read(bundle, match.names, found.flavour)


@pytest.fixture(scope='module')
def outputs(converted, model, stored):
    """What our model gives for the stored images, in `golden.run`'s names."""
    found, arrays = converted
    config = golden.model_config(found.settings | {'activation': model['activation']})
    module = build_model(config, task='detection', axis_name=None)
    return golden.run(module, golden.nest(arrays), stored['images'])


def test_every_variable_has_its_place(converted):
    found, arrays = converted
    assert len(arrays) == 742
    assert found.task == 'detection'
    assert found.settings == {
        'width': 0.063,  # truncates to the channels of the original's 0.0625
        'resample_alpha': 0.5,
        'block_repeats': 1,
        'endpoint_channels': 8,
        'head_convs': 2,
        'head_channels': 8,
        'num_classes': 3,
        'padding': 'symmetric',
        'pooling': 'single',
        'bn_epsilon': 1e-4,
        'bn_momentum': 0.997,
    }


def test_outputs_equal_the_originals(outputs, stored, model):
    theirs = {}
    for level in golden.LEVELS:
        theirs[f'feature{level}'] = stored[f'features/{level}']
        theirs[f'logits{level}'] = stored[f'class_logits/{level}']
        theirs[f'codes{level}'] = stored[f'box_outputs/{level}']
        for name, width in (('logits', model['num_classes']), ('codes', 4)):
            x = theirs[f'{name}{level}']
            x = x.reshape(*x.shape[:-1], 3, 3, width)[..., RATIOS, :]
            theirs[f'{name}{level}'] = x.reshape(*x.shape[:-3], -1)
    golden.check(outputs, theirs, TOLERANCE)


def flat(outputs, name, image, width):
    """An output of all anchors of one image, f32[A,width]."""
    maps = [outputs[f'{name}{level}'][image].reshape(-1, width) for level in golden.LEVELS]
    return np.concatenate(maps)


def rules(model):
    return nms.Rules(
        score=model['score_threshold'],
        iou=model['nms_iou_threshold'],
        candidates=model['pre_nms_num_boxes'],
        detections=model['max_total_size'],
        first_class=1,
    )


def tf1_boxes(codes, anchors, size):
    """Boxes as the original decodes them: a side is one more than the difference of its edges."""
    anchor_side = anchors[:, 2:] - anchors[:, :2] + 1
    centre = codes[:, :2] * anchor_side + anchors[:, :2] + anchor_side / 2
    side = np.exp(np.minimum(codes[:, 2:], math.log(1000 / 16))) * anchor_side
    boxes = np.concatenate([centre - side / 2, centre + side / 2 - 1], axis=1)
    return np.clip(boxes, 0, np.tile(np.array(size) - 1, 2))


def detected(stored, image):
    """The original's detections: (boxes, scores, classes)."""
    count = stored['num_detections'][image]
    names = ('detection_boxes', 'detection_scores', 'detection_classes')
    return tuple(stored[name][image, :count] for name in names)


@pytest.mark.parametrize('image', [0, 1])
def test_detections_equal_the_originals(outputs, stored, model, image):
    """Scores, suppression, order and classes, with boxes decoded as the original does."""
    anchors = pyramid_anchors(model['image_size'], model['anchor_size'])
    boxes = tf1_boxes(flat(outputs, 'codes', image, 4), anchors, model['image_size'])
    logits = flat(outputs, 'logits', image, model['num_classes'])[:, 1:]
    scores = 1 / (1 + np.exp(-logits.T))
    classes = np.arange(1, model['num_classes']).repeat(len(anchors))
    all_boxes = np.tile(boxes, (model['num_classes'] - 1, 1)).astype(np.float32)
    found = nms.greedy(all_boxes, scores.reshape(-1), classes, rules(model))

    their_boxes, their_scores, their_classes = detected(stored, image)
    count = len(their_scores)
    assert int(found.valid.sum()) == count > 15
    np.testing.assert_array_equal(found.classes[:count], their_classes)
    np.testing.assert_allclose(found.scores[:count], their_scores, atol=1e-5)
    np.testing.assert_allclose(found.boxes[:count], their_boxes, atol=1e-2)


@pytest.mark.parametrize('image', [0, 1])
def test_our_own_detections_are_the_originals_but_for_its_extra_pixel(
    outputs, stored, model, image
):
    """The same scores and classes; an edge moves by up to |dy| + |exp(dh) - 1| / 2, or a pixel."""
    size, anchor_size = tuple(model['image_size']), model['anchor_size']
    task = DetectionTask(golden.rows(size), model['num_classes'], anchor_size, (3, 7), rules(model))
    maps = tuple(
        [outputs[f'{name}{level}'][image : image + 1] for level in golden.LEVELS]
        for name in ('logits', 'codes')
    )
    found = {key: np.asarray(value)[0] for key, value in task.predictions(maps, {}).items()}
    boxes, scores, classes = detected(stored, image)
    codes = flat(outputs, 'codes', image, 4)
    bound = 1 + np.max(np.abs(codes[:, :2]) + np.abs(np.exp(codes[:, 2:]) - 1) / 2)
    moved = []
    for mine, score, label, valid in zip(*found.values(), strict=True):
        same = (np.abs(scores - score) < 1e-5) & (classes == label)
        if valid and same.any():
            moved.append(np.abs(boxes[same] - mine).max(axis=1).min())
    print(f'{len(moved)} of {len(boxes)} boxes, moved by up to {max(moved):.2f} of {bound:.2f}')
    assert len(moved) == len(boxes) == found['valid'].sum()
    assert 0.5 < max(moved) <= bound
