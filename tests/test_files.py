"""Small files: whole or absent, and one line where they are damaged."""

import errno
import json
import os
import time

import pytest

from spinenet_jax import files
from spinenet_jax.errors import UserError


def test_written_file_is_whole_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / 'a.json'
    files.write_json(path, {'a': 1})
    files.write_json(path, {'a': 2}, indent=1)
    assert files.read_json(path) == {'a': 2}
    assert os.listdir(tmp_path) == ['a.json']


def test_a_write_that_fails_keeps_the_old_file_and_names_it(tmp_path, monkeypatch):
    path = tmp_path / 'a.json'
    files.write_json(path, 1)

    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(OSError) as caught:
        files.write_json(path, 2)
    assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(path)
    assert files.read_json(path) == 1
    assert os.listdir(tmp_path) == ['a.json']


def test_appending_names_the_file(tmp_path):
    files.append_text(tmp_path / 'a', 'x')
    files.append_text(tmp_path / 'a', 'y')
    assert (tmp_path / 'a').read_text() == 'xy'
    with pytest.raises(OSError) as caught:
        files.append_text(tmp_path, 'x')
    assert caught.value.filename == str(tmp_path)


@pytest.mark.parametrize(
    ('content', 'words'),
    [
        (b'', 'is damaged'),
        (b'{"step": 1', 'is damaged'),
        (b'\xff\xfe{', r'not UTF-8'),
        (b'[' * 100_000, 'is damaged'),
        (b'{"a": ' + b'1' * 10_000 + b'}', 'is damaged'),
    ],
)
def test_damaged_json_is_one_line(tmp_path, content, words):
    (tmp_path / 'a.json').write_bytes(content)
    with pytest.raises(UserError, match=words) as caught:
        files.read_json(tmp_path / 'a.json')
    assert '\n' not in str(caught.value)


def test_folder_in_the_place_of_a_file(tmp_path):
    assert files.read_json(tmp_path / 'nothing.json') is None
    with pytest.raises(UserError, match='is a folder, where a file is expected'):
        files.read_json(tmp_path)


def test_what_a_killed_writer_left_is_removed_later(tmp_path):
    for name in ('old.json.1.tmp', 'new.json.2.tmp', 'kept.json'):
        (tmp_path / name).write_text(json.dumps(name))
    past = time.time() - 2 * files.ABANDONED_AFTER
    for name in ('old.json.1.tmp', 'kept.json'):
        os.utime(tmp_path / name, (past, past))
    files.remove_abandoned(files.absolute(tmp_path))
    assert sorted(os.listdir(tmp_path)) == ['kept.json', 'new.json.2.tmp']
