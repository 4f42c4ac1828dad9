"""The embedded data set from nothing to a classifier, as a user does it, in fewer epochs."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import cv2
import pytest

from spinenet_jax.data.decode import read_image
from spinenet_jax.data.digit_scans import DigitScans

ROOT = Path(__file__).resolve().parents[1]


def script(name, *words):
    environment = {**os.environ, 'XLA_FLAGS': '', 'JAX_PLATFORMS': 'cpu'}
    command = [sys.executable, f'{name}.py', *words]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def processor_seconds():
    """What the scripts that have ended took of all cores together."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


@pytest.mark.slow
def test_scans_are_learned(tmp_path):
    workdir = tmp_path / 'run'
    began = processor_seconds()
    script(
        *('train', '--config=configs/classification.py:digits-49S', f'--workdir={workdir}'),
        '--config.train.epochs=7',
    )
    seconds = processor_seconds() - began
    trained = json.loads((workdir / 'results.json').read_text())
    assert trained['top1'] >= 0.90 and trained['images'] == 364
    assert seconds < 7 / 12 * 2 * 600  # twelve epochs in ten minutes of two cores
    assert not (workdir / 'detections.json').exists()

    table = script('eval', f'--workdir={workdir}', '--checkpoint=latest')
    assert f'{100 * trained["top1"]:.2f}' in table
    scored = json.loads((workdir / 'results.json').read_text())
    assert (scored['top1'], scored['top5']) == (trained['top1'], trained['top5'])

    source = DigitScans('val')
    for index in range(20):
        pixels = read_image(source[index]['image'])
        cv2.imwrite(str(tmp_path / f'{index:02d}.png'), pixels)
    words = [f'--workdir={workdir}', f'--images={tmp_path}/*.png', f'--output={tmp_path}/found']
    lines = [line for line in script('predict', *words).splitlines() if '.png: ' in line]
    best = [line.split('.png: ')[1].split(', ') for line in lines]
    assert len(best) == 20 and all(len(classes) == 5 for classes in best)
    right = [c[0].split()[0] == str(source[i]['label'] - 1) for i, c in enumerate(best)]
    assert sum(right) >= 17
    records = json.loads((tmp_path / 'found/predictions.json').read_text())
    assert records['images'][3]['classes'][0]['name'] == best[3][0].split()[0]
