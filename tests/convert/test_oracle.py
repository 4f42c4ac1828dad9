"""Compares fresh weights at full width with the Model Garden itself: goldens cannot go stale."""

import json
import os
import sys
from unittest import mock

import jax
import numpy as np
import pytest
from flax import linen as nn
from ml_collections import ConfigDict
from pycocotools import mask as coco_mask

from spinenet_jax.evaluation.masks import paste
from spinenet_jax.models.build import build_model
from spinenet_jax.ops import boxes as box_ops
from spinenet_jax.ops.nms import Rules
from spinenet_jax.ops.proposals import Proposals
from spinenet_jax.ops.region_outputs import BOX_WEIGHTS
from spinenet_jax.tasks.build import build_task, build_task_model
from spinenet_jax.tasks.detection import DetectionTask
from spinenet_jax.tasks.instance_segmentation import InstanceSegmentationTask
from spinenet_jax.training.checkpoint import load_model
from tests.convert import golden, suppression
from tests.convert.scripts import CONVERT, FORWARD, MASKS, run
from tools.maintenance import oracle_cases as cases

pytestmark = pytest.mark.tf
TOLERANCE = 2e-5  # of a map's largest value; 40 seeds gave 3e-6 to 7.5e-6
# Of a mask's probability; boxes 3e-3 pixels apart gave 1.01e-4, the most in 12 seeds.
PROBABILITY = 5e-4


def fresh_seed():
    """A new seed at every run, or SPINENET_ORACLE_SEED to look into one that failed."""
    seed = int(os.environ.get('SPINENET_ORACLE_SEED', int.from_bytes(os.urandom(3), 'little')))
    print(f'seed {seed}')
    return seed


def detections(module, variables, images, model):
    """The task, our maps of normalised images, and our 100 detections."""
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
    return task, maps, {key: np.asarray(value) for key, value in found.items()}


def rows(boxes, scores, classes):
    """f[n,6] of class, score and box, best first."""
    return np.concatenate([np.stack([classes, scores], 1), boxes], axis=1).astype(np.float64)


def check_detections(task, model, theirs, ours):
    """Theirs and ours are what suppression leaves of the scores above the threshold."""
    rules = task.rules
    names = ('logits', 'codes')
    logits, codes = (
        np.concatenate([theirs[f'{x}{n}'].reshape(-1, k) for n in golden.LEVELS])
        for x, k in zip(names, (model['num_classes'], 4), strict=True)
    )
    logits = logits[:, 1:]  # the background's column
    counts = [int(ours['valid'].sum()), int(theirs['num_detections'][0])]
    assert min(counts) > 50
    found, limits = [], []
    for given, prefix, count in zip((ours, theirs), ('', 'detection_'), counts, strict=True):
        found.append([given[prefix + x][0, :count] for x in ('boxes', 'scores', 'classes')])
        limits.append(found[-1][1][-1] if count == rules.detections else rules.score)
    scores = np.array(jax.nn.sigmoid(logits))
    anchors, classes = np.nonzero(scores > min(limits) - suppression.SCORE)
    assert np.bincount(classes).max() <= rules.candidates
    boxes = box_ops.decode(codes[anchors], np.asarray(task.anchors)[anchors])
    candidates = suppression.Candidates(
        boxes=np.asarray(box_ops.clip(boxes, task.image_size)),
        scores=scores[anchors, classes],
        groups=classes + 1,
        optional=np.zeros(len(anchors), bool),
    )
    for (boxes, scores, classes), limit in zip(found, limits, strict=True):
        above = candidates.above(limit)
        places = suppression.check(boxes, scores, above, rules.iou)
        np.testing.assert_array_equal(classes, above.groups[places])


@pytest.mark.parametrize(
    ('name', 'side'),
    [('49S', 640), ('49', 640), ('190', 256), ('mb49', 384)],
)
def test_a_tf2_checkpoint_converted_gives_the_model_gardens_outputs(oracle, name, side, tmp_path):
    """Random weights saved by the Garden, converted by the script: features, logits, detections."""
    seed = fresh_seed()
    run(oracle, FORWARD, name, str(side), str(seed), str(tmp_path))
    print(run(sys.executable, CONVERT, f'--source={tmp_path}/saved', f'--workdir={tmp_path}/run'))
    variables, _ = load_model(tmp_path / 'run')
    config = json.loads((tmp_path / 'run' / 'config.json').read_text())
    model = cases.model(**cases.FULL[name])
    written = {key: config['model'][key] for key in model}
    assert written == model, f'{name} was taken for something else'
    module = build_model(golden.model_config(model), task='detection', axis_name=None)
    with np.load(tmp_path / 'outputs.npz') as stored:
        theirs = dict(stored)
    images = cases.normalised(cases.images('full', 1, (side, side), seed))
    task, maps, found = detections(module, variables, images, model)
    golden.check(maps, {key: theirs[key] for key in maps}, TOLERANCE)
    check_detections(task, model, theirs, found)


def check_proposals(task, scores, codes, theirs, ours):
    """Theirs and ours are what suppression leaves of the best candidates of every level."""
    rules, anchors = task.eval_proposals, task._pyramid_anchors
    counts = [x.size for x in scores]
    logits = np.concatenate([x.reshape(-1) for x in scores])
    boxes = box_ops.decode(np.concatenate([x.reshape(-1, 4) for x in codes]), anchors)
    candidates = suppression.Candidates(
        boxes=np.asarray(box_ops.clip(boxes, task.image_size)),
        scores=np.asarray(jax.nn.sigmoid(logits)),
        groups=np.repeat(golden.LEVELS, counts),
        optional=np.zeros(len(logits), bool),
    )
    for level, count in zip(golden.LEVELS, counts, strict=True):
        here = candidates.groups == level
        if count > rules.candidates:
            best = np.sort(candidates.scores[here])[-rules.candidates :]
            candidates = candidates.above(best[0], here)
    assert min(theirs[1].size, ours.scores[0].size) == rules.proposals
    for boxes, scores in (theirs, (ours.boxes[0], ours.scores[0])):
        suppression.check(boxes, scores, candidates.above(scores[-1]), rules.iou)


def check_instances(task, logits, codes, proposals, theirs, ours):
    """The 100 detections, and the masks of those that rounding did not decide."""
    rules, size = task.rules, task.image_size
    boxes = box_ops.decode(codes.reshape(len(proposals), -1, 4), proposals[:, None], BOX_WEIGHTS)
    scores = np.array(jax.nn.softmax(logits))[:, 1:]
    shape = scores.shape
    candidates = suppression.Candidates(
        boxes=np.asarray(box_ops.clip(boxes, size))[:, 1:].reshape(-1, 4),
        scores=scores.reshape(-1),
        groups=np.broadcast_to(np.arange(1, shape[1] + 1), shape).reshape(-1),
        optional=np.zeros(scores.size, bool),
    ).above(rules.score)
    assert theirs['count'][0] == ours['valid'].sum() == rules.detections
    found = []
    for prefix, given in (('detection_', theirs), ('', ours)):
        boxes, scores, classes = (given[prefix + x][0] for x in ('boxes', 'scores', 'classes'))
        above = candidates.above(scores[-1])
        places = suppression.check(boxes, scores, above, rules.iou)
        np.testing.assert_array_equal(classes, above.groups[places])
        found.append(rows(boxes, scores, classes))

    apart = np.abs(found[0][:, None] - found[1]) / (
        0.5,
        suppression.SCORE,
        *[suppression.PIXELS] * 4,
    )
    others, mine = np.nonzero(apart.max(-1) < 1)
    print(f'{len(set(mine))} of {rules.detections} detections are the same')
    assert len(set(mine)) > 0.5 * rules.detections  # most, or there would be few masks to compare
    masks = ours['masks'][0, mine]
    np.testing.assert_allclose(masks, theirs['masks'][0, others], rtol=0, atol=PROBABILITY)
    pasted = np.unpackbits(theirs['pasted'][others], axis=-1).astype(bool)
    less, more = (
        coco_mask.decode(paste(masks + shift, theirs['detection_boxes'][0, others], size))
        for shift in (-PROBABILITY, PROBABILITY)
    )
    assert pasted.any((1, 2)).mean() > 0.5  # a random mask may be empty
    assert np.all(np.moveaxis(less, -1, 0) <= pasted) and np.all(pasted <= np.moveaxis(more, -1, 0))


def test_a_tf2_mask_rcnn_converted_gives_the_model_gardens_outputs(oracle, tmp_path):
    """Random weights saved by the Garden, converted by the script: every stage up to the masks.

    A stage gets what the Garden's stage before it gave, so that what rounding decides in one does
    not change what is compared in the next.
    """
    seed, side = fresh_seed(), 512
    run(oracle, MASKS, str(side), str(seed), str(tmp_path))
    flags = (f'--source={tmp_path}/saved', f'--workdir={tmp_path}/run', '--activation=swish')
    print(run(sys.executable, CONVERT, *flags))
    variables, _ = load_model(tmp_path / 'run')
    config = ConfigDict(json.loads((tmp_path / 'run' / 'config.json').read_text()))
    assert config.task == 'instance_segmentation' and config.eval.decode == 'plain'
    written = {key: config.model[key] for key in cases.FULL_MASK_RCNN}
    assert written == cases.FULL_MASK_RCNN
    config.data.image_size = (side, side)
    config.model.dtype = 'float32'  # the published protocols train in bfloat16
    module, task = build_task_model(config, axis_name=None), build_task(config)
    with np.load(tmp_path / 'outputs.npz') as stored:
        theirs = dict(stored)

    @jax.jit
    def stages(variables, images, given):
        def all_of(model, images):
            pyramid = model.features(images, train=False)
            outputs = model.propose(pyramid, train=False)
            maps = {f'feature{level}': x.whole() for level, x in pyramid.items()}
            for name, levels in zip(('rpn_scores', 'rpn_codes'), outputs, strict=True):
                maps |= {f'{name}{n}': x for n, x in zip(golden.LEVELS, levels, strict=True)}
            proposals = task._proposals(*outputs, task.eval_proposals)
            heads = model.classify(pyramid, given.boxes, train=False)
            maps |= dict(zip(('logits', 'codes'), heads, strict=True))
            with mock.patch.object(InstanceSegmentationTask, '_proposals', lambda *_: given):
                return maps, proposals, task.detect(model, images)

        return nn.apply(all_of, module)(variables, images)

    images = cases.normalised(cases.images('full', 1, (side, side), seed))
    boxes, scores = theirs['proposals'], theirs['proposal_scores']
    given = Proposals(boxes, scores, scores > 0)
    maps, proposals, found = jax.tree.map(np.asarray, stages(variables, images, given))
    golden.check(maps, {key: theirs[key] for key in maps}, TOLERANCE)
    rpn = ([theirs[f'rpn_{kind}{n}'] for n in golden.LEVELS] for kind in ('scores', 'codes'))
    check_proposals(task, *rpn, (boxes[0], scores[0]), proposals)
    check_instances(task, theirs['logits'][0], theirs['codes'][0], boxes[0], theirs, found)


def test_the_goldens_are_what_the_oracle_makes_today(oracle, tmp_path):
    """The cheap stages, made again."""
    stages = ('anchors', 'matching', 'losses', 'detection', 'decoding', 'preprocessing')
    run(oracle, 'tools/maintenance/make_goldens.py', f'--output={tmp_path}', *stages)
    for stage in stages:
        with np.load(tmp_path / f'{stage}.npz') as made:
            stored = golden.load(stage)
            assert set(made.files) == set(stored)
            for key in made.files:
                np.testing.assert_allclose(made[key], stored[key], rtol=1e-6, err_msg=key)
