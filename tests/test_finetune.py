"""Fine-tuning: settings come from the workdir, and a backbone that we trained beats none."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from configs import common, digits, finetune
from spinenet_jax.data.digits import write_digits
from spinenet_jax.errors import UserError

ROOT = Path(__file__).resolve().parents[1]


SMALL = (
    '--config.data.image_size=(64, 64)',
    '--config.data.source=coco',
    '--config.data.train_split=train',
    '--config.data.eval_split=val',
    '--config.data.flip=False',
    '--config.data.max_boxes=16',
    '--config.train.batch_size=16',
    '--config.train.log_every_steps=1',
    '--config.optim.learning_rate=0.1',
    '--config.optim.learning_rate_batch=16',
    '--config.eval.batch_size=20',
    '--config.eval.pictures=0',
)
NARROW = (
    '--config.model.width=0.125',
    '--config.model.endpoint_channels=16',
    '--config.model.head_channels=16',
    '--config.model.head_convs=1',
)


def train(workdir, config, *flags):
    """Run train.py on one device; returns the loss of each step."""
    environment = {k: v for k, v in os.environ.items() if k != 'XLA_FLAGS'}
    environment['JAX_PLATFORMS'] = 'cpu'
    command = [sys.executable, 'train.py', f'--config={config}', f'--workdir={workdir}']
    command += [*SMALL, *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = map(json.loads, (workdir / 'metrics.jsonl').read_text().splitlines())
    return [line['loss'] for line in lines if 'loss' in line]


def even_or_odd(root, target):
    """The same scenes with two classes in place of ten."""
    (target / 'annotations').mkdir(parents=True)
    for split in ('train', 'val'):
        (target / split).symlink_to(root / split)
        path = f'annotations/instances_{split}.json'
        data = json.loads((root / path).read_text())
        for annotation in data['annotations']:
            annotation['category_id'] = 1 + (annotation['category_id'] - 1) % 2
        data['categories'] = [{'id': 1, 'name': 'even'}, {'id': 2, 'name': 'odd'}]
        (target / path).write_text(json.dumps(data))


def test_settings_come_from_the_workdir(tmp_path):
    (tmp_path / 'config.json').write_text(digits.get_config().to_json())
    config = finetune.get_config(str(tmp_path))
    assert config.model.width == 0.25 and config.model.num_classes == 0
    assert config.data.image_size == (128, 128)  # a tuple again, which a flag can change
    assert config.train.init_from == str(tmp_path)
    plain = common.get_config()
    assert set(config) == set(plain)
    assert all(set(config[key]) == set(plain[key]) for key in ('model', 'data', 'train', 'optim'))


def test_masks_go_on_with_masks(tmp_path):
    (tmp_path / 'config.json').write_text(digits.get_config('masks').to_json())
    config = finetune.get_config(str(tmp_path))
    assert config.task == 'instance_segmentation' and config.model.hidden_channels == 128
    assert (config.train.regions, config.train.max_proposals) == (32, 100)
    assert config.eval.max_proposals == 100


def test_missing_workdir_is_one_line(tmp_path):
    with pytest.raises(UserError, match='workdir of an earlier run is missing'):
        finetune.get_config()
    with pytest.raises(UserError, match='no such file'):
        finetune.get_config(str(tmp_path))


@pytest.mark.slow
def test_pretrained_beats_scratch_at_equal_steps(tmp_path):
    root, source = tmp_path / 'digits', tmp_path / 'source'
    write_digits(root, {'train': 400, 'val': 20})
    train(
        source,
        'configs/digits.py',
        f'--config.data.root={root}',
        '--config.train.epochs=12',
        '--config.train.eval_every_epochs=12',
        *NARROW,
    )
    even_or_odd(root, tmp_path / 'parity')
    losses = {}
    for name, init_from in (('pretrained', source), ('scratch', '')):
        steps = train(
            tmp_path / name,
            f'configs/finetune.py:{source}',
            f'--config.train.init_from={init_from}',
            f'--config.data.root={tmp_path / "parity"}',
            '--config.train.epochs=2',
            '--config.train.min_steps=0',
            '--config.optim.min_warmup_steps=12',
        )
        assert len(steps) == 50
        losses[name] = np.mean(steps[-10:])
    assert losses['pretrained'] < 0.9 * losses['scratch'], losses
