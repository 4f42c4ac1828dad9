"""Exports to TensorFlow's formats, run by TensorFlow and LiteRT; skipped where they are absent."""

import json

import numpy as np
import pytest

from spinenet_jax.export import folder
from spinenet_jax.export.detector import Request

pytestmark = pytest.mark.export

IMAGES = np.random.default_rng(1).integers(0, 256, (10, 50, 70, 3), np.uint8)


def test_saved_model_of_any_number_and_size(trained, tmp_path):
    pytest.importorskip('tensorflow')
    agreement = folder.export(trained, 'savedmodel', Request(0, None), tmp_path / 'a', IMAGES)
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


def test_raw_tflite(trained, tmp_path):
    pytest.importorskip('tensorflow')
    pytest.importorskip('ai_edge_litert')
    agreement = folder.export(trained, 'tflite', Request(0, None, raw=True), tmp_path / 'a')
    assert agreement.compared == 1 and max(agreement.largest.values()) < 1e-3
