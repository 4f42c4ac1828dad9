"""The ledger: what is on disk after a kill, one writer, damaged files."""

import json
import subprocess
import sys

import pytest

from spinenet_jax.errors import UserError
from spinenet_jax.search import ledger as ledger_module
from spinenet_jax.search.ledger import FILE, Ledger

EVENTS = [{'event': 'ask', 'number': n, 'text': 'ä "quoted"\n'} for n in range(5)]


def write(folder, events=EVENTS):
    ledger = Ledger(folder)
    for event in events:
        ledger.append(event)
    ledger.close()


def test_events_come_back_in_order(tmp_path):
    write(tmp_path / 'new' / 'folder')
    again = Ledger(tmp_path / 'new' / 'folder')
    assert again.events == EVENTS
    assert again.cut == ''
    assert len((tmp_path / 'new' / 'folder' / FILE).read_text().splitlines()) == 5


def test_any_torn_last_line_is_cut_off(tmp_path):
    write(tmp_path)
    whole = (tmp_path / FILE).read_bytes()
    last = len(whole.splitlines(keepends=True)[-1])
    for missing in range(1, last):
        (tmp_path / FILE).write_bytes(whole[:-missing])
        ledger = Ledger(tmp_path)
        assert ledger.events == EVENTS[:4]
        assert len(ledger.cut) > 0
        ledger.append(EVENTS[4])
        ledger.close()
        assert (tmp_path / FILE).read_bytes() == whole


def test_a_damaged_line_in_the_middle_is_refused(tmp_path):
    write(tmp_path)
    lines = (tmp_path / FILE).read_text().splitlines(keepends=True)
    (tmp_path / FILE).write_text(''.join([lines[0], '{"event": "ask"\n', *lines[2:]]))
    with pytest.raises(UserError, match=r'ledger\.jsonl, line 2: damaged'):
        Ledger(tmp_path)


def test_one_process_writes(tmp_path):
    ledger = Ledger(tmp_path)
    with pytest.raises(UserError, match='another search writes this workdir'):
        Ledger(tmp_path)
    ledger.close()
    Ledger(tmp_path).close()


def test_a_line_is_on_disk_when_append_returns(tmp_path):
    program = (
        'import os, signal\n'
        'from spinenet_jax.search.ledger import Ledger\n'
        f'ledger = Ledger({str(tmp_path)!r})\n'
        'ledger.append({"event": "ask", "number": 7})\n'
        'os.kill(os.getpid(), signal.SIGKILL)\n'
    )
    subprocess.run([sys.executable, '-c', program], timeout=60)
    assert Ledger(tmp_path).events == [{'event': 'ask', 'number': 7}]


def test_what_json_cannot_hold_is_a_programming_error(tmp_path):
    ledger = Ledger(tmp_path)
    with pytest.raises(ValueError, match='not JSON compliant'):
        ledger.append({'reward': float('nan')})
    assert ledger.events == []


def test_a_bucket_has_no_folder_before_its_first_file(tmp_path, monkeypatch):
    path = type(ledger_module.epath.Path(tmp_path))
    monkeypatch.setattr(path, 'mkdir', lambda *_, **__: None)
    assert list(ledger_module._Segments(ledger_module.epath.Path(tmp_path / 'new')).read()) == []


def test_object_stores_get_segments(tmp_path, monkeypatch):
    """They cannot append: a segment is replaced as a whole, and only the last one."""
    monkeypatch.setattr(ledger_module, 'SEGMENT_LINES', 2)
    folder = ledger_module.epath.Path(tmp_path / 'ledger')
    storage = ledger_module._Segments(folder)
    for event in EVENTS:
        storage.append(json.dumps(event))
    assert sorted(path.name for path in folder.iterdir()) == [f'00000{n}.jsonl' for n in range(3)]
    again = ledger_module._Segments(folder)
    assert [json.loads(line) for line in again.read()] == EVENTS
    again.append('{}')
    again.append('{}')
    lines = list(ledger_module._Segments(folder).read())
    assert [json.loads(line) for line in lines] == [*EVENTS, {}, {}]
