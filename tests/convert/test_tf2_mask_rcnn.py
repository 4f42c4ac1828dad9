"""Mask R-CNN and its cascade equal the TF2 Model Garden's, stage by stage."""

from functools import partial

import jax
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict

from spinenet_jax.models.build import build_model
from spinenet_jax.ops.mask_targets import crop_masks
from spinenet_jax.ops.nms import Rules
from spinenet_jax.ops.proposals import ProposalRules
from spinenet_jax.ops.region_losses import Normalisation
from spinenet_jax.ops.sampling import AnchorSample, Regions, region_codes, sample_anchors
from spinenet_jax.tasks.instance_segmentation import InstanceSegmentationTask
from spinenet_jax.training.initialisation import compile_quickly
from tests.convert import golden
from tools.maintenance import oracle_cases as cases

MODELS = ('mask_rcnn', 'cascade')
WEIGHT_DECAY = cases.TRAINING_SGD['weight_decay']
FORWARD = 1e-5  # of the largest value of an array
# What the Garden divides the score loss by is the number of its regions.
COUNTS = Normalisation(anchors=cases.REGIONS, slack=0.01)


def module_of(name):
    model = {**cases.MASK_RCNN, 'cascade': name == 'cascade'}
    return build_model(golden.model_config(model), task='instance_segmentation', axis_name=None)


def task_of(name, size):
    most = cases.PROPOSALS['proposals']
    return InstanceSegmentationTask(
        rows=golden.rows(size),
        anchor_size=cases.MASK_RCNN['anchor_size'],
        levels=(3, 7),
        rules=Rules(first_class=1),
        train_proposals=ProposalRules(2 * cases.PROPOSALS['candidates'], most),
        eval_proposals=ProposalRules(cases.PROPOSALS['candidates'], most),
        regions=cases.REGIONS,
        cascade=name == 'cascade',
        normalisation=COUNTS,
    )


def stored_of(name, part):
    return golden.part(golden.load(f'tf2_{name}'), part)


def check_proposals(ours, theirs, scores):
    """The same boxes in the same order, a place that neighbours in score share aside."""
    np.testing.assert_allclose(ours.scores, scores, rtol=0, atol=1e-5)
    valid = scores > 0
    np.testing.assert_array_equal(ours.valid, valid)
    for image in range(len(theirs)):
        apart = np.abs(theirs[image][:, None] - np.asarray(ours.boxes[image])).max(-1)
        assert apart.min(1)[valid[image]].max() < 1e-2


@pytest.mark.parametrize('name', ['mask_rcnn', pytest.param('cascade', marks=pytest.mark.slow)])
def test_inference(name):
    """From normalised pictures to detections and masks, each stage on ours of the one before."""
    module, task = module_of(name), task_of(name, cases.MASK_RCNN_SIZE)
    variables = golden.random_variables(module, cases.MASK_RCNN_SIZE, cases.region_weight)
    images = cases.normalised(cases.images('mask_rcnn', 1, cases.MASK_RCNN_SIZE))
    theirs = stored_of(name, 'detect')

    @compile_quickly
    def run(variables, images):
        def stages(model, images):
            pyramid = model.features(images, train=False)
            scores, codes = model.propose(pyramid, train=False)
            proposals = task._proposals(scores, codes, task.eval_proposals)
            maps = {f'feature{level}': x.whole() for level, x in pyramid.items()}
            for place, level in enumerate(golden.LEVELS):
                maps[f'rpn_scores{level}'] = scores[place]
                maps[f'rpn_codes{level}'] = codes[place]
            return maps, proposals, task.detect(model, images)

        return nn.apply(stages, module)(variables, images)

    maps, proposals, found = run(variables, images)
    maps = {key: np.asarray(value) for key, value in maps.items()}
    golden.check(maps, {key: theirs[key] for key in maps}, FORWARD)
    check_proposals(proposals, theirs['proposals'], theirs['proposal_scores'])

    count = int(theirs['count'][0])
    assert int(found['valid'].sum()) == count > 20
    for key, tolerance in (('classes', 0), ('scores', 1e-5), ('boxes', 1e-2)):
        ours, others = found[key][0, :count], theirs[f'detection_{key}'][0, :count]
        np.testing.assert_allclose(ours, others, rtol=0, atol=tolerance, err_msg=key)
    masks = theirs['masks'][0]
    np.testing.assert_allclose(found['masks'][0, : len(masks)], masks, rtol=0, atol=1e-4)


def drawn_anchors(theirs):
    """The Garden's targets of all anchors."""
    scores, codes = (
        np.concatenate(
            [theirs[f'rpn_{kind}_targets{n}'].reshape(4, -1, width) for n in golden.LEVELS], axis=1
        )
        for kind, width in (('score', 1), ('box', 4))
    )
    scores = scores[..., 0]
    return AnchorSample(scores >= 0, scores == 1, codes.any(-1), codes)


def drawn_regions(theirs, stage=0):
    """The regions that the Garden drew; it counts the objects of background by -1."""
    labels = theirs[f'labels{stage}']
    return Regions(
        boxes=theirs[f'regions{stage}'],
        matched=np.maximum(theirs[f'matched{stage}'], 0),
        labels=labels,
        positive=labels > 0,
        valid=np.ones(labels.shape, bool),
    )


class Trainer:
    """A training step of one model, compiled once; what the Garden drew at random is put in."""

    def __init__(self, name):
        size = cases.MASK_RCNN_TRAINING['size']
        module, self.task = module_of(name), task_of(name, size)
        self.theirs, self.name = stored_of(name, 'train'), name
        self.variables = golden.random_variables(module, size, cases.region_weight)
        batch, anchors = cases.mask_rcnn_batch(), drawn_anchors(self.theirs)
        self.images = cases.normalised(batch['image'])

        def total(params, batch_stats, images, regions):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(InstanceSegmentationTask, '_draw_anchors', lambda *_: anchors)
                patch.setattr(InstanceSegmentationTask, '_draw_regions', lambda *_: regions)
                loss = golden.total_loss(self.task, module, batch, WEIGHT_DECAY)
                return loss(params, batch_stats, images)

        self._gradient = compile_quickly(jax.grad(total, has_aux=True))

    def __call__(self, params, batch_stats, regions):
        """The gradient, and what `golden.total_loss` gives beside the loss."""
        return self._gradient(params, batch_stats, self.images, regions)


@pytest.fixture(scope='module', params=MODELS)
def trainer(request):
    return Trainer(request.param)


@pytest.fixture(scope='module')
def step(trainer):
    """(their arrays, task, gradients of the total loss, what else a training step gives)."""
    start = trainer.variables
    regions = drawn_regions(trainer.theirs)
    return trainer.theirs, trainer.task, *trainer(start['params'], start['batch_stats'], regions)


@pytest.mark.slow
def test_proposals_of_training(step):
    """Twice as many candidates a level as in evaluation."""
    theirs, task, _, (_, _, outputs, _) = step
    ours = task._proposals(outputs.scores, outputs.codes, task.train_proposals)
    check_proposals(ours, theirs['proposals'], theirs['proposal_scores'])


@pytest.mark.slow
def test_regions_and_masks_of_training(step):
    theirs, task, _, (_, _, outputs, _) = step
    batch, labels = cases.mask_rcnn_batch(), theirs['labels0']
    assert (labels > 0).sum() > 5
    for n, stage in enumerate(outputs.stages):
        others = drawn_regions(theirs, n)
        np.testing.assert_array_equal(stage.regions.labels, others.labels)
        np.testing.assert_allclose(stage.regions.boxes, others.boxes, rtol=0, atol=1e-2)
        positive = others.positive
        np.testing.assert_array_equal(
            np.asarray(stage.regions.matched)[positive], others.matched[positive]
        )
        codes = partial(region_codes, weights=task._weights[n])
        targets = jax.vmap(codes)(others, batch['boxes'])
        np.testing.assert_allclose(targets, theirs[f'targets{n}'], rtol=0, atol=1e-4)
        for key, ours in (('logits', stage.logits), ('codes', stage.codes)):
            scale = np.abs(theirs[f'{key}{n}']).max()
            np.testing.assert_allclose(ours, theirs[f'{key}{n}'], rtol=0, atol=1e-4 * scale)
    valid = np.asarray(outputs.mask_regions.valid)
    np.testing.assert_allclose(
        np.asarray(outputs.masks)[valid], theirs['mask_logits'][valid], rtol=0, atol=1e-4
    )
    regions = outputs.mask_regions
    goal = jax.vmap(crop_masks)(batch['masks'], batch['boxes'], regions.matched, regions.boxes)
    np.testing.assert_allclose(
        np.asarray(goal)[valid], theirs['mask_targets'][valid], rtol=0, atol=1e-4
    )


@pytest.mark.slow
def test_anchors_that_belong_to_objects(step):
    """Which are drawn is random; which may be, and their codes, are not."""
    theirs, task, *_ = step
    batch, others = cases.mask_rcnn_batch(), drawn_anchors(theirs)
    anchors = task._pyramid_anchors
    draw = partial(sample_anchors, count=cases.ANCHORS_DRAWN)
    ours = jax.vmap(lambda *image: draw(anchors, *image))(
        batch['boxes'], batch['valid'], np.zeros(others.positive.shape, np.float32)
    )
    np.testing.assert_array_equal(ours.matched, others.matched)
    np.testing.assert_allclose(ours.codes, others.codes, rtol=0, atol=1e-4)
    np.testing.assert_array_equal(ours.sampled.sum(1), others.sampled.sum(1))
    np.testing.assert_array_equal(ours.positive.sum(1), others.positive.sum(1))


@pytest.mark.slow
def test_losses(step):
    theirs, _, _, (losses, decay, _, _) = step
    for ours, name in (
        (losses['rpn_score_loss'], 'rpn_score_loss'),
        (losses['rpn_box_loss'], 'rpn_box_loss'),
        (losses['class_loss'], 'frcnn_cls_loss'),
        (losses['box_loss'], 'frcnn_box_loss'),
        (losses['mask_loss'], 'mask_loss'),
        (losses['loss'], 'model_loss'),
        (losses['loss'] + decay, 'total_loss'),
    ):
        np.testing.assert_allclose(ours, theirs[f'loss/{name}'], rtol=2e-5, err_msg=name)


@pytest.mark.slow
def test_gradients(step):
    theirs, _, gradient, _ = step
    ours = flatten_dict({'params': gradient}, sep='/')
    largest = theirs['gradient_norms'].max()
    for path, norm in zip(theirs['gradient_names'], theirs['gradient_norms'], strict=True):
        mine = np.linalg.norm(ours[path])
        np.testing.assert_allclose(mine, norm, rtol=2e-3, atol=2e-5 * largest, err_msg=path)
    whole = golden.part(theirs, 'gradient')
    assert len(whole) > 20
    for path, packed in whole.items():
        mine = np.asarray(ours[path])
        if path == 'params/mask_head/upsample/kernel':  # TensorFlow: outputs, then inputs
            mine = mine.swapaxes(2, 3)
        others = cases.unpack(packed, mine.shape)
        tolerance = 1e-3 * np.abs(others).max() + 1e-6 * largest
        np.testing.assert_allclose(mine, others, rtol=0, atol=tolerance, err_msg=path)


@pytest.mark.slow
def test_running_statistics(step):
    theirs, _, _, (_, _, _, updated) = step
    ours = flatten_dict({'batch_stats': updated['batch_stats']}, sep='/')
    updates = golden.part(theirs, 'updated')
    assert len(updates) > 10
    for path, value in updates.items():
        np.testing.assert_allclose(ours[path], value, rtol=2e-5, atol=2e-6, err_msg=path)


@pytest.mark.slow
def test_ten_steps(trainer):
    """SGD with momentum and weight decay on one batch, regions drawn anew by the Garden."""
    if trainer.name == 'cascade':
        pytest.skip('its golden has no further steps')
    theirs, sgd = stored_of(trainer.name, 'steps'), cases.TRAINING_SGD
    start = trainer.variables
    optimizer = optax.sgd(sgd['learning_rate'], sgd['momentum'])
    update = jax.jit(optimizer.update)
    params, batch_stats = start['params'], start['batch_stats']
    state = optimizer.init(params)
    rows = []
    for number in range(cases.TRAINING_STEPS):
        drawn = {f'{key}0': theirs[key][number] for key in ('regions', 'labels', 'matched')}
        gradient, (losses, decay, _, updated) = trainer(params, batch_stats, drawn_regions(drawn))
        names = ('rpn_score_loss', 'rpn_box_loss', 'class_loss', 'box_loss', 'mask_loss')
        rows.append([*(float(losses[name]) for name in names), float(losses['loss'] + decay)])
        changes, state = update(gradient, state)
        params, batch_stats = optax.apply_updates(params, changes), updated['batch_stats']
    np.testing.assert_allclose(rows[0], theirs['losses'][0], rtol=2e-5)
    np.testing.assert_allclose(rows, theirs['losses'], rtol=1e-3)
    before, after = (
        flatten_dict({'params': a, 'batch_stats': b}, sep='/')
        for a, b in ((start['params'], start['batch_stats']), (params, batch_stats))
    )
    changes = golden.part(theirs, 'change')
    assert len(changes) > 30
    for path, packed in changes.items():
        mine = np.asarray(after[path]) - before[path]
        if path == 'params/mask_head/upsample/kernel':  # TensorFlow: outputs, then inputs
            mine = mine.swapaxes(2, 3)
        others = cases.unpack(packed, mine.shape)
        rounding = (
            0.5 * cases.TRAINING_STEPS * np.finfo(np.float32).eps * np.abs(before[path]).max()
        )
        tolerance = 1e-3 * np.abs(others).max() + rounding
        np.testing.assert_allclose(mine, others, rtol=0, atol=tolerance, err_msg=path)
