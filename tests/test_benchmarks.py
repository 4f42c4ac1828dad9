"""What can be said of the benchmarks without running them: fits, pages, logs, synthetic data."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import coco_evaluation, machine, startup, startup_probe
from tools.maintenance import growth_page, tpu_table

ROOT = Path(__file__).resolve().parents[1]
LOGS = ROOT / 'benchmarks/logs'


def row(part, x, seconds):
    return json.dumps(
        {'part': part, 'x': x, 'seconds': seconds, 'machine': 'm', 'cores': 2, 'jax': '1'}
    )


def test_slope_of_a_power():
    power, factor = growth_page.slope([(x, 3.0 * x**2) for x in (1, 2, 5, 10)])
    assert power == pytest.approx(2) and factor == pytest.approx(3)


def test_last_measurement_of_a_point_counts():
    lines = [row('step_batch', 2, 9.0), row('step_batch', 1, 0.5), row('step_batch', 2, 1.0)]
    assert growth_page.read_points(lines) == {'step_batch': [(1, 0.5), (2, 1.0)]}
    assert '1: 500 ms | 2: 1 s | 1.00 | 1.00 |' in growth_page.page(lines)


@pytest.mark.parametrize(
    ('power', 'last', 'words'),
    [
        (1.0, 1.05, 'Proportional, as it should be.'),
        (1.0, 1.3, 'Proportional, as it should be, but steeper at the upper end.'),
        (0.7, 1.0, 'Less than proportional.'),
        (1.2, 1.0, 'More than proportional.'),
    ],
)
def test_verdict(power, last, words):
    assert growth_page.verdict(power, last) == words


def test_growth_plot_is_drawn(tmp_path):
    pytest.importorskip('matplotlib')
    lines = [row(part, x, x / 10) for part in growth_page.PARTS for x in (1, 2, 4)]
    growth_page.draw(lines, tmp_path / 'plot.svg')
    assert (tmp_path / 'plot.svg').read_text().count('slope 1.00') >= len(growth_page.PARTS)


def test_recomputation_is_stated_in_operations():
    record = tpu_table.read(tpu_table.LOG)[0]
    record |= {'remat': True, 'flops': 4e12, 'network_flops': 3e12}
    assert '(recomputes: +33% operations)' in tpu_table.row(record)[0]
    full = record | {'fits': False, 'memory': {'peak': 20 * 2**30}}
    assert '(recomputes)' in tpu_table.row(full)[0]
    assert '**does not fit, 20.0**' in tpu_table.row(full)


@pytest.mark.parametrize('log', sorted(LOGS.glob('*.jsonl')), ids=lambda path: path.name)
def test_logs_are_json_lines(log):
    assert all(isinstance(json.loads(line), dict) for line in log.read_text().splitlines())


def test_ground_truth_resembles_coco():
    truth = coco_evaluation.synthetic_ground_truth(300)
    annotations = truth['annotations']
    assert 6.5 < len(annotations) / 300 < 8.1
    assert 0.3 < sum(a['area'] < 32**2 for a in annotations) / len(annotations) < 0.5
    for a in annotations:
        x, y, w, h = a['bbox']
        assert x >= 0 and y >= 0 and x + w <= 640.01 and y + h <= 480.01
    assert coco_evaluation.synthetic_ground_truth(300) == truth


@pytest.mark.parametrize('backend', ['faster', 'pycocotools'])
def test_synthetic_detections_are_scored(backend):
    if backend == 'faster':
        pytest.importorskip('faster_coco_eval')
    facts, metrics = coco_evaluation.measure(20, backend)
    assert facts['detections'] == 20 * coco_evaluation.DETECTIONS_AN_IMAGE
    assert 0.2 < metrics['AP'] < 0.8


@pytest.mark.parametrize('record', [False, True])
def test_a_result_reaches_the_log_only_when_asked(record, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(machine, 'LOGS', tmp_path)
    machine.report('speed', {'seconds': 1.5}, record)
    printed = json.loads(capsys.readouterr().out)
    assert printed['benchmark'] == 'speed' and printed['seconds'] == 1.5
    written = [path.read_text() for path in tmp_path.iterdir()]
    assert written == ([json.dumps(printed) + '\n'] if record else [])


def test_a_child_counts_as_family():
    wait = 'import sys; print(flush=True); sys.stdin.read()'
    child = subprocess.Popen(
        [sys.executable, '-c', wait], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        child.stdout.readline()
        family = machine.family()
        assert {os.getpid(), child.pid} <= {process.pid for process in family}
        assert machine.cpu_seconds(family) > 0 and machine.memory_mb(family) > 1
    finally:
        child.communicate()


def test_laps_add_up_and_the_last_line_is_read():
    laps = startup_probe.Laps(began=0.0)
    laps.done('a')
    laps.done('b')
    assert sum(laps.seconds.values()) == pytest.approx(laps.last)
    assert startup.parse('noise\n{"a": 1.234, "b": 2}\n') == {'a': 1.23, 'b': 2}
