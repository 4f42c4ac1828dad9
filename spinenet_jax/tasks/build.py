"""From a config to a task: the only file of `tasks` that reads config."""

from ml_collections import ConfigDict

from spinenet_jax.errors import UserError
from spinenet_jax.ops.nms import Rules
from spinenet_jax.tasks.classification import ClassificationTask
from spinenet_jax.tasks.detection import DetectionTask


def build_task(config: ConfigDict) -> DetectionTask | ClassificationTask:
    """The task that `config.task` names.

    Raises:
      UserError: there is no task of that name, or its settings are out of range.
    """
    if config.task == 'classification':
        return _classification(config)
    if config.task == 'detection':
        return _detection(config)
    raise UserError(f"config.task={config.task!r}: choose one of 'detection', 'classification'")


def _classification(config: ConfigDict) -> ClassificationTask:
    smoothing = config.train.label_smoothing
    if not 0 <= smoothing < 1:
        raise UserError(f'train.label_smoothing={smoothing}: want at least 0 and less than 1')
    return ClassificationTask(
        image_size=tuple(config.data.image_size),
        num_classes=config.model.num_classes,
        label_smoothing=smoothing,
    )


def _detection(config: ConfigDict) -> DetectionTask:
    model, evaluation = config.model, config.eval
    return DetectionTask(
        image_size=tuple(config.data.image_size),
        num_classes=model.num_classes,
        anchor_size=model.anchor_size,
        levels=(model.min_level, model.max_level),
        rules=Rules(
            score=evaluation.score_threshold,
            iou=evaluation.nms_iou,
            candidates=evaluation.max_candidates,
            detections=evaluation.max_detections,
            first_class=1,  # 0 is background
        ),
    )
