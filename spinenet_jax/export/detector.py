"""A trained model as one function: from images to detections, or its raw outputs.

What the exported files compute. Scaling an image to the network's input, normalisation and
suppression are inside, so that whoever runs the file needs nothing of this package.
"""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

from spinenet_jax.errors import UserError
from spinenet_jax.inference import Trained
from spinenet_jax.lowering.policy import CPU, PLAIN, Policy
from spinenet_jax.ops import boxes as box_ops
from spinenet_jax.ops import nms
from spinenet_jax.ops.detections import detect
from spinenet_jax.tasks.build import build_task_model
from spinenet_jax.tasks.detection import DetectionTask

Outputs = Mapping[str, jax.Array]
Size = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Request:
    """What to export.

    Attributes:
      batch: images a call; 0 for any number.
      size: (height, width) of the images, pixels; None for any.
      raw: the network alone, without scaling, normalisation and suppression.
      platforms: where the file shall run; StableHLO and SavedModel only.
      weights: how they are stored, 'float32', 'float16' or 'int8'; LiteRT only but for float32.
    """

    batch: int
    size: Size | None
    raw: bool = False
    platforms: tuple[str, ...] = ('cpu', 'cuda', 'tpu')
    weights: str = 'float32'


def policy_for(request: Request) -> Policy:
    """Plain XLA, which runs everywhere, or the formulations for a CPU where it runs nowhere else.

    The latter depend on how many images there are.
    """
    return CPU if request.platforms == ('cpu',) and request.batch else PLAIN


def fit(images: jax.Array, output_size: Size) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Images as large as fit into the network's input, as evaluation places them.

    Bilinear with half-pixel centres and no antialiasing: within 1 of 255 of
    `data.transforms.place_image`. Not rounded, as that would turn the rounding errors of another
    runtime into steps of 1. Images that have the size already are not changed.

    Args:
      images: u8[B,h,w,3]; B, h and w may be symbolic.
      output_size: (H, W).

    Returns:
      f32[B,H,W,3], padded at the bottom and right; f32[2], (height, width) of what is no padding;
      f32[2], new size / old size.
    """
    sizes = images.shape[1:3]
    output = jnp.asarray(output_size, jnp.float32)
    if sizes == tuple(output_size):
        return images.astype(jnp.float32), output, jnp.ones(2)
    old = jnp.stack([jnp.asarray(side, jnp.float32) for side in sizes])
    # The arithmetic of data.transforms.place, in float32.
    new = jnp.maximum(jnp.round(old * jnp.min(output / old)), 1.0)
    values = images.astype(jnp.float32)
    for axis, side in enumerate(output_size):
        last = old[axis] - 1
        at = (jnp.arange(side) + 0.5) * (old[axis] / new[axis]) - 0.5
        at = jnp.clip(at, 0.0, last)  # beyond the edge its own pixel counts
        low = jnp.floor(at)
        share = (at - low).reshape((-1, 1, 1) if axis == 0 else (-1, 1))
        before, after = (
            jnp.take(values, index.astype(jnp.int32), axis=axis + 1, mode='clip')
            for index in (low, jnp.minimum(low + 1, last))
        )
        values = before * (1 - share) + after * share
    return values, new, new / old


def build_function(
    trained: Trained,
    policy: Policy,
    request: Request,
    find: Callable[..., nms.Detections] = detect,
) -> Callable[[jax.Array], Outputs]:
    """The model with its weights inside, as a function of images.

    Args:
      trained: see `inference.Trained`.
      policy: how to compute convolutions; see `lowering.policy`.
      request: what it takes and returns.
      find: `detect`, or one of `portable`, whose operations other formats can carry.

    Returns:
      A function of u8[B,h,w,3] RGB. It gives boxes f32[B,D,4] (ymin, xmin, ymax, xmax) in pixels
      of those images, scores f32[B,D], classes i32[B,D] and valid bool[B,D], best first. With
      `raw` it takes f32[B,H,W,3], normalised, and gives logits f32[B,A,K] and codes f32[B,A,4].
    """
    if request.raw:
        return partial(_raw, trained, _model(trained, policy))
    return partial(_detect, trained, _model(trained, policy), find)


def build_candidates(trained: Trained, policy: Policy) -> Callable[[jax.Array], Outputs]:
    """The model up to where suppression begins.

    Returns:
      A function of u8[B,h,w,3]. It gives logits f32[B,A,K] without background, boxes f32[B,A,4] in
      pixels of the network's input, and scale f32[2], which leads to pixels of the images.
    """
    task, model = trained.task, _model(trained, policy)

    def candidates(images: jax.Array) -> Outputs:
        logits, codes, scale = _from_images(trained, model, images)
        boxes = box_ops.clip(box_ops.decode(codes, task.anchors), task.image_size)
        return {'logits': logits[..., task.rules.first_class :], 'boxes': boxes, 'scale': scale}

    return candidates


def check_exportable(trained: Trained) -> None:
    """Refuses what is no RetinaNet, and Soft-NMS, which the formats do not have in common.

    Raises:
      UserError: of one line.
    """
    if not isinstance(trained.task, DetectionTask):
        raise UserError(
            f"only detectors (task='detection') can be exported; this run has learned "
            f'{trained.config.task}'
        )
    if trained.task.rules.soft_sigma > 0:
        raise UserError(
            'Soft-NMS cannot be exported: add --config.eval.soft_nms_sigma=0 for greedy suppression'
        )


def _model(trained: Trained, policy: Policy) -> nn.Module:
    return build_task_model(trained.config, axis_name=None, policy=policy)


def _variables(trained: Trained) -> Mapping[str, object]:
    return {'params': trained.params, 'batch_stats': trained.batch_stats}


def _raw(trained: Trained, model: nn.Module, images: jax.Array) -> Outputs:
    outputs = model.apply(_variables(trained), images, train=False)
    logits, codes = trained.task.joined(outputs)
    return {'logits': logits, 'codes': codes}


def _from_images(
    trained: Trained, model: nn.Module, images: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Logits, codes, and the scale of the network's input, from u8[B,h,w,3]."""
    task = trained.task
    placed, content, scale = fit(images, task.image_size)
    content = jnp.broadcast_to(content.astype(jnp.int32), (images.shape[0], 2))
    batch = {'image': placed, 'content_size': content}
    outputs = nn.apply(task.forward, model)(_variables(trained), batch, train=False)
    return (*task.joined(outputs), scale)


def _detect(
    trained: Trained,
    model: nn.Module,
    find: Callable[..., nms.Detections],
    images: jax.Array,
) -> Outputs:
    task = trained.task
    logits, codes, scale = _from_images(trained, model, images)
    found = find(logits, codes, task.anchors, task.image_size, task.rules)
    limits = jnp.stack([jnp.asarray(side, jnp.float32) for side in images.shape[1:3]])
    boxes = jnp.clip(found.boxes / jnp.tile(scale, 2), 0.0, jnp.tile(limits, 2))
    return found._replace(boxes=boxes)._asdict()
