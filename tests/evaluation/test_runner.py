"""One pass over a data source: nothing depends on batches, devices or padding."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import small

from spinenet_jax.evaluation.detection import to_original_pixels
from spinenet_jax.training.step import make_eval_step

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope='module')
def result():
    return small.run(4)


def test_boxes_come_back_in_original_pixels_with_the_right_images(result):
    assert [d['image_id'] for d in result.detections] == [3, 13, 23, 33, 43, 53, 63]
    for found, (height, width), brightness in zip(
        result.detections, small.SIZES, small.BRIGHTNESS, strict=True
    ):
        # The resized image is rounded to whole pixels; back in the original, half a pixel or less.
        assert found['bbox'] == pytest.approx([0, 0, width / 2, height / 2], abs=0.01)
        assert found['score'] == pytest.approx(brightness / 255 / 2, abs=2e-3)
        assert found['category_id'] == 5
    assert (result.images, result.skipped) == (7, 0)


def test_score_is_what_the_hand_says(result):
    # Sorted by score: right, wrong (image 6, IoU 1/4), right x 5. Of seven objects, recall 1/7
    # comes at precision 1; recall 2/7 to 6/7 at 2/3, 3/4, 4/5, 5/6, 6/7, which interpolation
    # raises to 6/7; the rest is never reached. Of the 101 recalls 0, 0.01, ... 1, 15 are at most
    # 1/7 (0 to 0.14) and 86 at most 6/7 (0 to 0.85).
    assert result.metrics['AP'] == pytest.approx((15 * 1 + 71 * 6 / 7) / 101)
    assert result.metrics['AR100'] == pytest.approx(6 / 7)
    assert result.per_class == pytest.approx({'quarter': result.metrics['AP']})


@pytest.mark.parametrize('batch_size', [1, 8, 64])
def test_batch_size_and_padding_change_nothing(result, batch_size):
    other = small.run(batch_size)
    assert other.metrics == result.metrics
    assert other.detections == result.detections


def start(devices, *arguments):
    """Runs small.py in a process of its own."""
    flags = f'--xla_force_host_platform_device_count={devices}'
    environment = {**os.environ, 'XLA_FLAGS': flags, 'PYTHONPATH': str(ROOT)}
    command = [sys.executable, small.__file__, *map(str, arguments)]
    return subprocess.Popen(
        command,
        env=environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return json.loads(output.splitlines()[-1])


def test_one_device_gives_the_same_as_four(result):
    other = finish(start(1, 3))
    assert other['metrics'] == result.metrics
    assert other['detections'] == result.detections


def test_each_of_two_processes_gets_all(result):
    with socket.socket() as free:
        free.bind(('localhost', 0))
        port = free.getsockname()[1]
    for other in map(finish, [start(2, 4, port, 2, 0), start(2, 4, port, 2, 1)]):
        assert other['metrics'] == result.metrics
        assert other['detections'] == result.detections


def test_the_step_compiles_once_for_many_evaluations(result):
    traces = []

    class Counting(small.QuarterTask):
        def forward(self, model, batch, *, train):
            traces.append(1)
            return super().forward(model, batch, train=train)

    step = make_eval_step(small.Brightness(), Counting())
    first, second = small.run(4, eval_step=step), small.run(4, eval_step=step)
    assert len(traces) == 1
    assert first.detections == second.detections == result.detections


def test_unreadable_image_counts_as_missed(result):
    other = small.run(4, small.SmallSource(broken=[6]))
    assert (other.images, other.skipped) == (6, 1)
    assert len(other.detections) == 6
    # Without the wrong detection, precision is 1 up to recall 6/7.
    assert other.metrics['AP'] == pytest.approx(86 / 101)


def test_split_without_annotations_gives_detections_only(result):
    other = small.run(4, small.SmallSource(annotated=False))
    assert other.metrics == {}
    assert other.detections == result.detections


def test_boxes_are_clipped_to_the_original_image():
    boxes = np.array([[[-4, 10, 100, 30]]], np.float32)
    # 2x in y, 0.5x in x: (-2, 20, 50, 60), cut to 40 x 50.
    out = to_original_pixels(boxes, np.array([[2, 0.5]]), np.array([[40, 50]]))
    assert out.tolist() == [[[0, 20, 40, 50]]]
    assert out.dtype == np.float32


def test_rows_of_examples_are_kept(result):
    other = small.run(4, small.SmallSource(broken=[2]), examples=[0, 2, 5])
    assert sorted(other.examples) == [0, 5]
    row = other.examples[5]
    assert row['original_size'].tolist() == list(small.SIZES[5])
    assert row['boxes'].shape == (2, 4) and row['valid'].tolist() == [True, False]
    assert result.examples == {}
