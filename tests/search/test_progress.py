"""What a person sees of a search: the line at its start, and best.json after a kill."""

import pytest
from absl import logging

from spinenet_jax.models.graph import load, to_text
from spinenet_jax.search.progress import Progress
from tests.search.test_run import search


@pytest.fixture
def lines(monkeypatch):
    said = []
    monkeypatch.setattr(logging, 'info', lambda text, *args: said.append(text % args))
    return said


def test_best_is_there_even_if_a_kill_came_before_it(tmp_path, lines):
    best = search(tmp_path, candidates=4, watch=Progress(tmp_path)).best()[0]
    assert not any(line.startswith('continuing') for line in lines)
    (tmp_path / 'best.json').unlink()
    search(tmp_path, candidates=4, watch=Progress(tmp_path))
    assert to_text(load(str(tmp_path / 'best.json'))) == best.graph
    assert 'continuing: 4 of 4 candidates done' in lines[-1]
