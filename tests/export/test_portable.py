"""The portable detector against `ops.detections.detect`."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spinenet_jax.data.batch import Rows
from spinenet_jax.data.pipeline import Augmentation, WholeImage
from spinenet_jax.errors import UserError
from spinenet_jax.export import portable
from spinenet_jax.export.detector import check_exportable
from spinenet_jax.ops import nms
from spinenet_jax.ops.anchors import pyramid_anchors
from spinenet_jax.ops.detections import detect
from spinenet_jax.tasks.detection import DetectionTask

SIZE = (64, 64)
ANCHORS = pyramid_anchors(SIZE, 3.0, (3, 5))


def outputs(seed, classes=4, images=2, spread=2.0, steps=0):
    """Random logits and codes; with `steps`, logits take so few values that many are equal."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(-2, spread, (images, len(ANCHORS), classes))
    if steps:
        logits = np.round(logits * steps) / steps
    codes = rng.normal(0, 0.5, (images, len(ANCHORS), 4))
    return jnp.asarray(logits, jnp.float32), jnp.asarray(codes, jnp.float32)


def same(a, b):
    """Equal but for the rounding that two compiled programs may differ by."""
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-5), a, b)


@pytest.mark.parametrize('steps', [0, 2])
@pytest.mark.parametrize('few', [20, 1000])  # 20: too few, all candidates are looked at
def test_equals_the_detector(steps, few):
    rules = nms.Rules(score=0.05, iou=0.5, candidates=200, detections=30, first_class=1)
    logits, codes = outputs(few + steps, steps=steps)
    expected = detect(logits, codes, ANCHORS, SIZE, rules, few)
    found = jax.jit(portable.detect, static_argnums=(3, 4, 5))(
        logits, codes, ANCHORS, SIZE, rules, few
    )
    assert expected.valid.any()
    same(found, expected)


@pytest.mark.parametrize('few', [20, 1000])
def test_image_by_image_equals_the_detector(few):
    rules = nms.Rules(score=0.05, iou=0.5, candidates=200, detections=30, first_class=1)
    logits, codes = outputs(5)
    logits = logits.at[0].set(-20.0)  # certain at once, beside one that is not
    found = jax.jit(portable.detect_one_by_one, static_argnums=(3, 4, 5))(
        logits, codes, ANCHORS, SIZE, rules, few
    )
    same(found, detect(logits, codes, ANCHORS, SIZE, rules, few))
    assert found.valid[1].all() and not found.valid[0].any()


def test_an_image_without_detections_beside_a_crowded_one():
    rules = nms.Rules(score=0.5, iou=0.3, candidates=100, detections=10)
    logits, codes = outputs(3)
    logits = logits.at[0].set(-20.0)
    found = portable.detect(logits, codes, ANCHORS, SIZE, rules, 40)
    same(found, detect(logits, codes, ANCHORS, SIZE, rules, 40))
    assert not found.valid[0].any() and found.valid[1].all()


def test_best_is_top_k_and_carries_no_operation_that_loaders_lack():
    values = jnp.asarray([[1.0, 3.0, 3.0, -jnp.inf, 2.0], [0.0, 0.0, 0.0, 0.0, 0.0]])
    same(portable.best(values, 3), tuple(jax.lax.top_k(values, 3)))
    rules = nms.Rules(detections=5)
    text = (
        jax.jit(portable.detect, static_argnums=(3, 4))
        .lower(*outputs(0), ANCHORS, SIZE, rules)
        .as_text()
    )
    assert 'top_k' not in text and 'scatter' not in text


def test_soft_suppression_is_refused():
    rows = Rows(Augmentation((64, 64), 1.0, 1.0, False, 4), WholeImage((64, 64)))
    task = DetectionTask(rows, 3, 3.0, (3, 7), nms.Rules(soft_sigma=0.5))
    with pytest.raises(UserError, match='soft_nms_sigma=0'):
        check_exportable(SimpleNamespace(task=task))
