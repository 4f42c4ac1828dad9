"""Measures how time grows with the size of the problem.

    python benchmarks/growth.py --parts step_pixels [--record]
    python tools/maintenance/growth_page.py  # the plot and the page from the log

Parts, each a few minutes at most on two cores:
  step_pixels   training step, 2 images of 128 to 512 pixels a side
  step_batch    training step, 1 to 8 images of 256 pixels a side
  post_classes  post-processing of one image at 640, 2 to 366 class channels
  post_anchors  post-processing with 91 class channels, image side 256 to 1280
  evaluation    COCO scores of 500 to 5,000 images with 100 detections each

The step is that of train.py on the model of configs/digits.py: SpineNet-49 at a quarter of its
width, float32. Post-processing sees outputs as crowded as benchmarks/inference.py's. Each point is
printed as a JSON line and, with --record, appended to benchmarks/logs/growth.jsonl: `part`, `x`
(pixels an image, images, class channels, anchors, images), `seconds` (median). The last line of a
point counts.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

PARTS = ('step_pixels', 'step_batch', 'post_classes', 'post_anchors', 'evaluation')
REPEATS = 7  # calls timed, after one that is not


def step_seconds(side, images):
    """One training step."""
    from benchmarks.synthetic import training_step
    from benchmarks.timing import median_seconds
    from configs import digits

    config = digits.get_config()
    config.data.image_size, config.train.batch_size = (side, side), images
    step, state, batch = training_step(config)

    def call():
        nonlocal state
        state, metrics = step(state, batch)
        return state, metrics

    return median_seconds(call, repeats=REPEATS)


def post_seconds(side, classes):
    """Post-processing of one image, and its number of anchors."""
    import jax

    from benchmarks.synthetic import crowded_outputs
    from benchmarks.timing import median_seconds
    from configs import retinanet
    from spinenet_jax.tasks.build import build_task

    config = retinanet.get_config('49-B')
    config.data.image_size, config.model.num_classes = (side, side), classes
    task = build_task(config)
    post = jax.jit(lambda outputs: task.predictions(outputs, {}))
    seconds = median_seconds(post, crowded_outputs(task, 1), repeats=REPEATS)
    return seconds, len(task.anchors)


def evaluation_seconds(images):
    """Collecting and scoring with what scores by default."""
    from benchmarks.coco_evaluation import measure

    result, _ = measure(images, 'auto')
    return result['collect_s'] + result['score_s']


def points(part):
    """(x, seconds) of a part, the smallest first."""
    if part == 'step_pixels':
        for side in (128, 192, 320, 512):
            yield side**2, step_seconds(side, 2)
    elif part == 'step_batch':
        for images in (1, 2, 4, 8):
            yield images, step_seconds(256, images)
    elif part == 'post_classes':
        for classes in (2, 11, 31, 91, 181, 366):
            yield classes, post_seconds(640, classes)[0]
    elif part == 'post_anchors':
        for side in (256, 384, 640, 896, 1280):
            seconds, anchors = post_seconds(side, 91)
            yield anchors, seconds
    elif part == 'evaluation':
        for images in (500, 1000, 2000, 5000):
            yield images, evaluation_seconds(images)


def main():
    """One line for each point."""
    from benchmarks import machine

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--parts', nargs='+', choices=PARTS, default=PARTS)
    parser.add_argument('--record', action='store_true', help="append to the repository's log")
    given = parser.parse_args()
    for part in given.parts:
        for x, seconds in points(part):
            facts = machine.compute() | {'part': part, 'x': x, 'seconds': round(seconds, 5)}
            machine.report('growth', facts, given.record)


if __name__ == '__main__':
    main()
