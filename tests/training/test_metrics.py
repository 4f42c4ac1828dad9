"""metrics.jsonl and TensorBoard events: damaged lines, a resumed run, a disk that is full."""

import errno
import json
import os

import pytest
from tensorboardX.record_writer import RecordWriter

from spinenet_jax.errors import UserError
from spinenet_jax.training import metrics
from spinenet_jax.training.metrics import MetricsLog

GOOD = {'step': 1, 'wall_time': 0, 'loss': 2.0, 'eval/AP': 0.5}
DAMAGED = [
    b'{"step": 2, "wal',
    b'{"loss": 1}',
    b'{"step": "3"}',
    b'{"step": 1.5}',
    b'{"step": true}',
    b'[1]',
    b'null',
    b'\xff\xfe',
    b'\x00\x00',
    b'[' * 100_000,
]


def test_damaged_lines_are_dropped_and_the_others_kept(tmp_path):
    path = tmp_path / 'metrics.jsonl'
    lines = [json.dumps(GOOD).encode(), *DAMAGED, b'{"step": 9, "loss": 1}']
    path.write_bytes(b'\n'.join(lines))
    log = MetricsLog(tmp_path, start_step=5)
    log.write(6, {'loss': float('nan'), 'eval/AP': 0.25})
    log.close()
    written = [json.loads(line) for line in path.read_text().splitlines()]
    assert written[0] == GOOD
    assert [line['step'] for line in written] == [1, 6] and written[1]['loss'] is None
    again = MetricsLog(tmp_path, start_step=6)
    again.close()
    assert list(again.values('eval/AP')) == [(1, 0.5), (6, 0.25)]
    assert list(again.values('loss')) == [(1, 2.0)]
    assert again.has(6, 'eval/') and not again.has(5, 'eval/')


def test_values_that_are_no_numbers_are_left_out(tmp_path):
    lines = [{'step': 1, 'a': value} for value in ('x', None, True, [1], 3)]
    (tmp_path / 'metrics.jsonl').write_text(''.join(json.dumps(x) + '\n' for x in lines))
    log = MetricsLog(tmp_path, start_step=1)
    log.close()
    assert list(log.values('a')) == [(1, 3.0)]


def test_a_bucket_that_fails_ends_the_events_and_not_the_run(tmp_path, monkeypatch, caplog):
    log = MetricsLog(tmp_path, start_step=0)
    monkeypatch.setattr(metrics, 'is_remote', lambda path: True)

    def refuse(*_):
        raise type('Forbidden', (Exception,), {})('403')

    monkeypatch.setattr(log._board, 'write', refuse)
    for step in (1, 2):
        log.write(step, {'loss': 1.0})
    log.close()
    assert len((tmp_path / 'metrics.jsonl').read_text().splitlines()) == 2
    assert caplog.text.count('no more TensorBoard events: 403') == 1


def test_folder_in_its_place_is_one_line(tmp_path):
    (tmp_path / 'metrics.jsonl').mkdir()
    with pytest.raises(UserError, match=r'metrics\.jsonl is a folder'):
        MetricsLog(tmp_path, start_step=0)


def test_events_are_readable_and_written_in_this_thread(tmp_path, monkeypatch):
    log = MetricsLog(tmp_path, start_step=0)
    log.write(1, {'loss': 2.0})
    (events,) = tmp_path.glob('events.out.tfevents.*')
    assert b'loss' in events.read_bytes(), 'flushed'

    def full(self, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(RecordWriter, 'write', full)
    with pytest.raises(OSError) as caught:
        for step in range(2, 100):
            log.write(step, {'loss': 2.0})
    assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(tmp_path)
    log.close()
