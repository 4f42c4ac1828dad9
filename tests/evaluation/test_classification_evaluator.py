"""Top-1 and top-5 by hand, and the same whatever the batches, devices and padded rows."""

from types import SimpleNamespace

import cv2
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from ml_collections import ConfigDict

from spinenet_jax.data.batch import Rows
from spinenet_jax.data.crops import CentralCrop, RandomCrop
from spinenet_jax.data.image_folder import ImageFolder
from spinenet_jax.evaluation.classification import ClassificationEvaluator
from spinenet_jax.evaluation.report import table, write_files
from spinenet_jax.evaluation.runner import evaluate
from spinenet_jax.tasks.classification import ClassificationTask
from spinenet_jax.training.step import make_eval_step


class TwoClasses:
    """Six images, labels 1 to 9 of which two have names here."""

    categories = (SimpleNamespace(label=1, name='ant'), SimpleNamespace(label=9, name='bee'))

    def __len__(self):
        return 6


def rows(*pairs):
    label, classes = zip(*pairs, strict=True)
    return {'label': np.array(label), 'classes': np.array(classes)}


def test_counts_by_hand():
    evaluator = ClassificationEvaluator(TwoClasses())
    evaluator.update(rows((1, [1, 2, 3, 4, 5]), (1, [2, 3, 4, 5, 1]), (9, [1, 2, 3, 4, 5])))
    evaluator.update(rows((9, [9, 2, 3, 4, 5])))
    # Two of six were never seen: unreadable, so wrong.
    assert evaluator.result() == {'top1': pytest.approx(2 / 6), 'top5': pytest.approx(3 / 6)}
    assert evaluator.per_class() == {'ant': 0.5, 'bee': 0.5}
    assert evaluator.detections is None


def test_secret_labels_do_not_count():
    evaluator = ClassificationEvaluator(TwoClasses())
    evaluator.update(rows((-1, [1, 2, 3, 4, 5]), (-1, [2, 3, 4, 5, 1])))
    assert evaluator.result() == {} and evaluator.per_class() == {}
    evaluator.update(rows((1, [1, 2, 3, 4, 5])))
    assert evaluator.result() == {'top1': 0.25, 'top5': 0.25}


def test_fewer_than_five_classes():
    evaluator = ClassificationEvaluator(TwoClasses())
    evaluator.update(rows((1, [9, 1]), (9, [9, 1])))
    assert evaluator.result() == {'top1': pytest.approx(1 / 6), 'top5': pytest.approx(2 / 6)}


class Brightness(nn.Module):
    """Logits that grow from class 1 to 7 the brighter the image: one step a class."""

    @nn.compact
    def __call__(self, images, *, train):
        del train
        level = images.mean((1, 2, 3))[:, None] * self.param('weight', nn.initializers.ones, ())
        return -jnp.abs(level - 30.0 * jnp.arange(8)) / 255.0


class RawTask(ClassificationTask):
    """Images as they are."""

    def forward(self, model, batch, *, train):
        return model(batch['image'].astype(jnp.float32), train=train)


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    """Classes a to g; eleven images of which one is damaged and two lie about their class."""
    root = tmp_path_factory.mktemp('folder')
    truth = [1, 2, 3, 4, 5, 6, 7, 2, 3, 1, 7]
    shown = [1, 2, 3, 4, 5, 6, 7, 2, 3, 2, 1]
    for n, (label, seen) in enumerate(zip(truth, shown, strict=True)):
        folder = root / 'val' / 'abcdefg'[label - 1]
        folder.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / f'{n}.png'), np.full((20, 30, 3), 30 * seen, np.uint8))
    (root / 'val/d/3.png').write_bytes(b'')
    return ImageFolder(root, 'val', num_classes=8)


def settings(batch_size):
    data = {'num_threads': 1, 'worker_count': 0, 'max_pixels': 10**6}
    return ConfigDict({'data': data, 'eval': {'batch_size': batch_size}})


@pytest.mark.parametrize('batch_size', [1, 4, 11, 64])
def test_padding_changes_nothing(source, batch_size, tmp_path):
    """8 of 11 right; of the wrong ones, the 1 shown as 2 is among the best five, the 7 is not."""
    state = SimpleNamespace(params={'weight': np.float32(1)}, batch_stats={})
    task = RawTask(Rows(RandomCrop((8, 8)), CentralCrop((8, 8))), 8)
    step = make_eval_step(Brightness(), task)
    result = evaluate(settings(batch_size), task, state, source, step, progress=False)
    assert result.metrics == {'top1': pytest.approx(8 / 11), 'top5': pytest.approx(9 / 11)}
    assert result.per_class == {'a': 0.5, 'b': 1, 'c': 1, 'e': 1, 'f': 1, 'g': 0.5}
    assert (result.images, result.skipped) == (10, 1)
    lines = table(result, 'top1').splitlines()
    assert lines[0].endswith(' s') and '  top1  72.73' in lines and 'class   top1' in lines
    write_files(tmp_path, result, {})
    assert [p.name for p in tmp_path.iterdir()] == ['results.json']
