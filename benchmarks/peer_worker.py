"""One peer's side of peers.py: build, warm up, then time what is asked.

Every peer's environment runs it, so it needs little more than Python. Requests and answers are JSON
lines on standard input and output; what libraries print goes to standard error.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

# One class score in fifty above the threshold, as crowded as benchmarks/inference.py's outputs.
LOGIT_MEAN, LOGIT_DEVIATION, CODE_DEVIATION = -5.0, 1.0, 0.3
SCORE_THRESHOLD, IOU_THRESHOLD, DETECTIONS = 0.05, 0.5, 100
CLASSES, BOXES = 91, 10
REGIONS, MASK_SIZE = 1000, 112  # of Mask R-CNN: proposals of an image, side of a mask in a batch
LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 1e-3, 0.9, 4e-5
# What the models that ours and the Garden's share are called, by the spec's model.
NAMES = {'retinanet': 'RetinaNet SpineNet-49', 'mobile': 'RetinaNet SpineNet-Mobile 49'}


class Spec(NamedTuple):
    """What is measured, the same for all peers.

    Attributes:
      on: 'cpu' or 'gpu'.
      image_size: side of the images that are detected on, pixels.
      train_size, train_batch: side and number of the images of a training step.
      batches: batch sizes of the throughput measures, none on CPU.
      matmul: side of the square matrices whose product shows the machine's peak.
      model: 'retinanet', 'mobile' or 'mask_rcnn'.
    """

    on: str
    image_size: int
    train_size: int
    train_batch: int
    batches: tuple[int, ...]
    matmul: int
    model: str = 'retinanet'


class Peer(NamedTuple):
    """A peer that is built.

    Attributes:
      facts: 'model', 'dtype', 'versions' and whatever else belongs into the log.
      measures: {name: a function that returns when its work is done}.
      peak_bytes: {name of a measure: its peak of device memory}, asked after the measure ran.
    """

    facts: dict[str, Any]
    measures: dict[str, Callable[[], None]]
    peak_bytes: Callable[[str], int | None] = lambda name: None


def calibration(logits: Iterable[float], codes: Iterable[float]) -> tuple[float, float, float]:
    """How a random predictor becomes as crowded as a busy photograph's.

    Args:
      logits, codes: numpy arrays of all outputs, the predictors' biases being zero.

    Returns:
      What to multiply the classifier's kernel by, its bias after that, and what to multiply the
      box predictor's kernel by.
    """
    scale = LOGIT_DEVIATION / float(logits.std())
    return scale, LOGIT_MEAN - scale * float(logits.mean()), CODE_DEVIATION / float(codes.std())


def region_calibration(
    logits: Iterable[float],
    codes: Iterable[float],
    scores: Iterable[float],
    proposal_codes: Iterable[float],
) -> tuple[float, float, float, float]:
    """What to multiply the kernels of a random Mask R-CNN's predictors by, biases being zero.

    Class logits and proposals' scores get deviation 1, so that one in fifty of the softmaxes over
    91 classes is above the threshold; boxes of proposals, and of regions, whose codes are ten times
    as large, move by 0.3 of their sides.

    Args:
      logits, codes: numpy arrays of all outputs of the box head.
      scores, proposal_codes: of the region proposal network.
    """
    wanted = ((logits, 1.0), (codes, 10 * CODE_DEVIATION), (scores, 1.0))
    wanted += ((proposal_codes, CODE_DEVIATION),)
    return tuple(deviation / float(values.std()) for values, deviation in wanted)


def regions(side: int) -> tuple[Any, Any]:
    """(boxes f32[REGIONS,4], classes i32[REGIONS] from 1) for heads to look at."""
    import numpy as np

    rng = np.random.default_rng(2)
    corner = rng.uniform(0, 0.6, (REGIONS, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(0.02, 0.4, corner.shape)], axis=-1)
    return (boxes * side).astype(np.float32), rng.integers(1, CLASSES, REGIONS).astype(np.int32)


def instances(side: int, count: int) -> tuple[Any, Any, Any]:
    """`objects` with masks u8[count,BOXES,MASK_SIZE,MASK_SIZE] in their boxes: ellipses."""
    import numpy as np

    y, x = np.mgrid[:MASK_SIZE, :MASK_SIZE] * (2 / (MASK_SIZE - 1)) - 1
    inside = (y**2 + x**2 < 1) * np.uint8(255)
    return *objects(side, count), np.tile(inside, (count, BOXES, 1, 1))


def images(spec: Spec, count: int, side: int) -> Any:
    """Normalised noise, f32[count,side,side,3]."""
    import numpy as np

    return np.random.default_rng(0).normal(size=(count, side, side, 3)).astype(np.float32)


def square(spec: Spec) -> Any:
    """Noise, f32[matmul,matmul]: on a GPU, ones are multiplied faster than numbers that differ."""
    import numpy as np

    return np.random.default_rng(2).normal(size=(spec.matmul, spec.matmul)).astype(np.float32)


def objects(side: int, count: int) -> tuple[Any, Any]:
    """(boxes f32[count,BOXES,4], labels i32[count,BOXES] from 1) to train on."""
    import numpy as np

    rng = np.random.default_rng(1)
    corner = rng.uniform(0, 0.6, (count, BOXES, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(0.05, 0.4, corner.shape)], axis=-1)
    return (boxes * side).astype(np.float32), rng.integers(1, CLASSES, (count, BOXES))


def timed(function: Callable[[], None], repeats: int) -> list[float]:
    """Seconds of each of `repeats` calls, after one that is not timed."""
    function()
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - began)
    return seconds


def serve(build: Callable[[Spec], Peer]) -> None:
    """Build and warm up, say so, then answer each request until the input ends.

    A measure that fails while warming up is reported with its error and not timed.
    """
    answers = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)

    def answer(value: dict[str, Any]) -> None:
        answers.write(json.dumps(value) + '\n')
        answers.flush()

    request = json.loads(sys.argv[1])
    wanted = request.pop('measures')
    began = time.perf_counter()
    peer = build(Spec(**request))
    failed = {}
    measures = {name: run for name, run in peer.measures.items() if name.startswith(tuple(wanted))}
    for name, run in measures.items():
        try:
            run()
        except Exception as error:  # out of memory, mostly; each framework has its own
            failed[name] = f'{type(error).__name__}: {error}'.splitlines()[0][:200]
    ready = [name for name in measures if name not in failed]
    seconds = round(time.perf_counter() - began, 1)
    answer({'facts': peer.facts, 'ready': ready, 'failed': failed, 'warm_up_s': seconds})
    for line in sys.stdin:
        name, repeats = json.loads(line)
        seconds = timed(measures[name], repeats)
        answer({'seconds': seconds, 'peak_bytes': peer.peak_bytes(name)})
