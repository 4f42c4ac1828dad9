"""The task of a config and its model: where `config.task` decides."""

from flax import linen as nn
from ml_collections import ConfigDict

from spinenet_jax.data.build import box_rows, label_rows, mask_rows
from spinenet_jax.errors import UserError
from spinenet_jax.lowering.policy import PLAIN, Policy
from spinenet_jax.models.build import build_model
from spinenet_jax.ops import region_losses
from spinenet_jax.ops.nms import Rules
from spinenet_jax.ops.proposals import ProposalRules
from spinenet_jax.tasks.classification import ClassificationTask
from spinenet_jax.tasks.detection import DetectionTask
from spinenet_jax.tasks.instance_segmentation import (
    POSITIVE_FRACTION,
    InstanceSegmentationTask,
)
from spinenet_jax.tasks.task import Task

NORMALISATIONS = {'tf1': region_losses.TF1, 'tf2': region_losses.TF2}


def build_task(config: ConfigDict) -> Task:
    """The task that `config.task` names.

    `model.num_classes` may still be 0, to be taken from the data, as long as only `rows` are used.

    Raises:
      UserError: there is no task of that name, or its settings are out of range.
    """
    if config.task == 'classification':
        return _classification(config)
    if config.task == 'detection':
        return _detection(config)
    if config.task == 'instance_segmentation':
        return _instance_segmentation(config)
    raise UserError(
        f"config.task={config.task!r}: choose one of 'detection', 'instance_segmentation', "
        "'classification'"
    )


def build_task_model(
    config: ConfigDict, *, axis_name: str | None, policy: Policy = PLAIN, remat: bool = False
) -> nn.Module:
    """The model that `config.task` and `config.model` ask for; see `models.build.build_model`."""
    return build_model(
        config.model,
        axis_name=axis_name,
        task=config.task,
        policy=policy,
        remat=remat,
    )


def model_in_training(config: ConfigDict, model: nn.Module) -> nn.Module:
    """`model` such that its `__call__` does the work of a training step's forward pass.

    That differs for two-stage detectors, whose heads look at fewer regions in training.
    """
    if config.task != 'instance_segmentation':
        return model
    regions = config.train.regions
    return model.clone(proposals=regions, detections=int(regions * POSITIVE_FRACTION))


def _classification(config: ConfigDict) -> ClassificationTask:
    smoothing = config.train.label_smoothing
    if not 0 <= smoothing < 1:
        raise UserError(f'train.label_smoothing={smoothing}: want at least 0 and less than 1')
    return ClassificationTask(
        rows=label_rows(config.data),
        num_classes=config.model.num_classes,
        label_smoothing=smoothing,
    )


def _detection(config: ConfigDict) -> DetectionTask:
    return DetectionTask(
        rows=box_rows(config.data),
        num_classes=config.model.num_classes,
        anchor_size=config.model.anchor_size,
        levels=(config.model.min_level, config.model.max_level),
        rules=_rules(config),
    )


def _instance_segmentation(config: ConfigDict) -> InstanceSegmentationTask:
    most = config.eval.max_proposals
    return InstanceSegmentationTask(
        rows=mask_rows(config.data),
        anchor_size=config.model.anchor_size,
        levels=(config.model.min_level, config.model.max_level),
        rules=_rules(config),
        train_proposals=ProposalRules(2 * config.train.max_proposals, config.train.max_proposals),
        eval_proposals=ProposalRules(most, most, inclusive=config.eval.decode == 'tf1'),
        regions=config.train.regions,
        cascade=config.model.cascade,
        normalisation=NORMALISATIONS[config.train.loss_counts],
    )


def _rules(config: ConfigDict) -> Rules:
    """Which candidates become detections."""
    return Rules(
        score=config.eval.score_threshold,
        iou=config.eval.nms_iou,
        candidates=config.eval.max_candidates,
        detections=config.eval.max_detections,
        first_class=1,  # 0 is background
        soft_sigma=config.eval.soft_nms_sigma,
    )
