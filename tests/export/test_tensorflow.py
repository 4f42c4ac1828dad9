"""Exports to TensorFlow's formats, run by TensorFlow and LiteRT; skipped where they are absent."""

import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from spinenet_jax.export import folder, tflite
from spinenet_jax.export.detector import Request
from spinenet_jax.ops import nms

pytestmark = pytest.mark.export

IMAGES = np.random.default_rng(1).integers(0, 256, (10, 50, 70, 3), np.uint8)


@pytest.mark.parametrize('request_', [Request(0, None), Request(10, (50, 70), platforms=('cpu',))])
def test_saved_model(trained, tmp_path, request_):
    """Of any number and size of images, and with what suits a CPU."""
    pytest.importorskip('tensorflow')
    agreement = folder.export(trained, 'savedmodel', request_, tmp_path / 'a', IMAGES)
    assert agreement.compared > 50 and agreement.largest['scores'] < 1e-4
    assert {p.name for p in (tmp_path / 'a').iterdir()} == {'saved_model', 'metadata.json'}


@pytest.mark.parametrize('size', [(50, 70), None])
def test_tflite_of_ten_images(trained, tmp_path, size):
    pytest.importorskip('tensorflow')
    pytest.importorskip('ai_edge_litert')
    agreement = folder.export(trained, 'tflite', Request(10, size), tmp_path / 'a', IMAGES)
    assert agreement.compared > 50 and agreement.largest['scores'] < 1e-4
    facts = json.loads((tmp_path / 'a/metadata.json').read_text())
    assert facts['images']['shape'] == [10, *(size or (64, 96)), 3]


def test_an_empty_box_is_found_once():
    """LiteRT's suppression gives a box again that does not overlap itself."""
    tf = pytest.importorskip('tensorflow')
    litert = pytest.importorskip('ai_edge_litert.interpreter')
    task = SimpleNamespace(rules=nms.Rules(score=0.05, detections=5), image_size=(64, 64))
    boxes = np.array([[0, 64, 0, 64], [1, 1, 9, 9], [2, 1, 9, 9], [0, 64, 0, 64]], np.float32)
    logits = np.array([[2.0, -9], [1, -9], [0, 3], [-1, -9]], np.float32)
    given = {'logits': logits, 'boxes': boxes}
    module = tf.Module()
    module.serve = tf.function(
        lambda logits, boxes: tflite._detections(task, logits, boxes),
        autograph=False,
        input_signature=[tf.TensorSpec(x.shape, tf.float32, name) for name, x in given.items()],
    )
    concrete = module.serve.get_concrete_function()
    content = tf.lite.TFLiteConverter.from_concrete_functions([concrete], module).convert()
    found = litert.Interpreter(model_content=content).get_signature_runner()(**given)
    scores = jax.nn.sigmoid(logits.T.reshape(-1))
    expected = nms.greedy(np.tile(boxes, (2, 1)), scores, np.arange(2).repeat(4), task.rules)
    assert expected.valid.sum() == 4
    np.testing.assert_allclose(found['scores'], expected.scores, atol=1e-6)
    np.testing.assert_array_equal(found['boxes'], expected.boxes)
    np.testing.assert_array_equal(found['classes'], expected.classes)


@pytest.mark.parametrize(('weights', 'share'), [('float16', 0.85), ('int8', 0.75)])
def test_smaller_weights(trained, tmp_path, weights, share):
    pytest.importorskip('tensorflow')
    pytest.importorskip('ai_edge_litert')
    sizes = {}
    for name in ('float32', weights):
        request = Request(1, (64, 96), weights=name)
        agreement = folder.export(trained, 'tflite', request, tmp_path / name, IMAGES[:1])
        assert agreement.missing == 0 and agreement.compared > 5
        sizes[name] = (tmp_path / name / 'model.tflite').stat().st_size
    assert sizes[weights] < share * sizes['float32']


def test_raw_tflite(trained, tmp_path):
    pytest.importorskip('tensorflow')
    pytest.importorskip('ai_edge_litert')
    agreement = folder.export(trained, 'tflite', Request(0, None, raw=True), tmp_path / 'a')
    assert agreement.compared == 1 and max(agreement.largest.values()) < 1e-3
