"""Exports to ONNX, run by onnxruntime; skipped where they are absent."""

import jax
import numpy as np
import pytest

from spinenet_jax.export import folder, onnx
from spinenet_jax.export.comparison import compare_detections
from spinenet_jax.export.detector import Request, build_function
from spinenet_jax.lowering.policy import PLAIN

pytestmark = pytest.mark.export

IMAGES = np.random.default_rng(1).integers(0, 256, (10, 50, 70, 3), np.uint8)


def test_ten_images_one_after_the_other(trained, tmp_path):
    pytest.importorskip('jax2onnx')
    request = Request(1, (50, 70))
    agreement = folder.export(trained, 'onnx', request, tmp_path / 'a', IMAGES[:1])
    assert agreement.compared > 5 and agreement.largest['scores'] < 1e-4
    assert {p.name for p in (tmp_path / 'a').iterdir()} == {'model.onnx', 'metadata.json'}
    run, model = onnx.load(tmp_path / 'a'), jax.jit(build_function(trained, PLAIN, request))
    for image in IMAGES[1:, None]:
        expected = jax.tree.map(np.asarray, model(image))
        agreement = compare_detections(expected, run(image), 0.05, 1e-4, 0.05)
        assert agreement.missing == 0 and agreement.compared > 0


def test_the_network_alone(trained, tmp_path):
    pytest.importorskip('jax2onnx')
    agreement = folder.export(trained, 'onnx', Request(2, None, raw=True), tmp_path / 'a')
    assert agreement.compared == 2 and max(agreement.largest.values()) < 1e-3
