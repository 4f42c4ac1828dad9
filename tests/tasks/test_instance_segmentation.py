"""The instance segmentation task: what its settings decide, and its losses on tiny outputs.

Numbers of a whole training step are held to the TF1 original's in tests/convert/.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import digits
from spinenet_jax.ops import region_losses
from spinenet_jax.ops.sampling import AnchorSample, Regions
from spinenet_jax.tasks.build import build_task
from spinenet_jax.tasks.instance_segmentation import Stage, Trained


def task_of(**changes):
    config = digits.get_config('masks')
    for name, value in changes.items():
        section, key = name.split('_', 1)
        config[section][key] = value
    return build_task(config)


def test_settings_reach_the_task():
    task = task_of(
        train_max_proposals=30,
        eval_max_proposals=20,
        train_regions=8,
        eval_decode='tf1',
        train_loss_counts='tf2',
        model_cascade=True,
    )
    assert task.train_proposals[:2] == (60, 30) and not task.train_proposals.inclusive
    assert task.eval_proposals[:2] == (20, 20) and task.eval_proposals.inclusive
    assert (task.regions, task.cascade, task.normalisation) == (8, True, region_losses.TF2)
    plain = task_of()
    assert not plain.eval_proposals.inclusive and plain.normalisation == region_losses.TF1
    assert plain.rules.first_class == 1 and plain.image_size == (128, 128)


def trained(stages):
    """One image; an anchor and a region of an object, a region of background, one mask."""
    boxes = np.float32([[[0, 0, 16, 16], [4, 4, 8, 8]]])
    regions = Regions(
        boxes=boxes,
        matched=np.zeros((1, 2), np.int32),
        labels=np.int32([[1, 0]]),
        positive=np.array([[True, False]]),
        valid=np.ones((1, 2), bool),
    )
    codes = np.zeros((1, 1, 1, 4), np.float32)
    anchors = AnchorSample(*(np.ones((1, 1), bool),) * 3, np.ones((1, 1, 4), np.float32))
    stage = Stage(np.zeros((1, 2, 3), np.float32), np.zeros((1, 2, 4), np.float32), regions)
    mask_regions = jax.tree.map(lambda x: x[:, :1], regions)
    masks = np.zeros((1, 1, 28, 28), np.float32)
    return Trained([codes[..., :1]], [codes], anchors, (stage,) * stages, masks, mask_regions)


TRUTH = {
    'boxes': np.float32([[[0, 0, 16, 16], [np.nan] * 4]]),
    'labels': np.int32([[1, 99]]),
    'valid': np.array([[True, False]]),
    'masks': np.full((1, 2, 112, 112), 255, np.uint8),
    'has_mask': np.array([[True, False]]),
}


@pytest.mark.parametrize('cascade', [False, True])
def test_losses_by_hand(cascade):
    """Logits of 0: entropies are log 2, log 3 among three classes; boxes are right.

    The anchor's codes are off by 1: 1/9 - 1/162 each, by Huber's loss of delta 1/9.
    """
    task = task_of(model_cascade=cascade)
    outputs = trained(3 if cascade else 1)
    numerators = task.numerators(outputs, TRUTH)
    normalisers = task.normalisers(outputs, TRUTH)
    losses = task.losses(numerators, normalisers)
    want = {
        'rpn_score_loss': np.log(2) / 256,
        'rpn_box_loss': 1 / 9 - 1 / 162,
        'class_loss': np.log(3),
        'box_loss': 0.0,
        'mask_loss': np.log(2),
    }
    for name, value in want.items():
        np.testing.assert_allclose(losses[name], value, rtol=1e-5, atol=1e-7, err_msg=name)
    np.testing.assert_allclose(losses['loss'], sum(want.values()), rtol=1e-5)


def test_halves_of_a_batch_add_up():
    """Two devices with an image each report what one with both would, but for rounding of sums."""
    task = task_of()
    one = trained(1)
    both = jax.tree.map(lambda x: jnp.concatenate([x, x]), one)
    truth = {name: np.concatenate([x, x]) for name, x in TRUTH.items()}
    shares = [task.numerators(one, TRUTH), task.normalisers(one, TRUTH)]
    sums = [{name: 2 * value for name, value in part.items()} for part in shares]
    summed = task.losses(*sums)
    whole = task.losses(task.numerators(both, truth), task.normalisers(both, truth))
    for name, value in whole.items():
        np.testing.assert_allclose(summed[name], value, rtol=5e-5, err_msg=name)
