"""From a config to a task: the only file of `tasks` that reads config."""

from ml_collections import ConfigDict

from spinenet_jax.errors import UserError
from spinenet_jax.ops.nms import Rules
from spinenet_jax.tasks.detection import DetectionTask


def build_task(config: ConfigDict) -> DetectionTask:
    """The task that `config.task` names.

    Raises:
      UserError: there is no task of that name.
    """
    if config.task != 'detection':
        raise UserError(f"config.task={config.task!r}: choose one of 'detection'")
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
