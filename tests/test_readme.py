"""What README.md says exists, and its commands are commands that the scripts understand."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from configs import common
from tools.maintenance import check_generated_pages, update_readme_tables

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / 'README.md').read_text()
DOCUMENTS = ('README.md', 'CONTRIBUTING.md')


def commands(text=README):
    """Command lines in the code blocks of a page that run a script of this repository."""
    found = []
    text = re.sub(r'^```python\n.*?^```\n', '', text, flags=re.MULTILINE | re.DOTALL)
    fenced = re.findall(r'^```\n(.*?)^```', text, re.MULTILINE | re.DOTALL)
    indented = re.findall(r'^    (python (?:.*\\\n)*.*)$', text, re.MULTILINE)
    for block in [*fenced, *indented]:
        for line in block.replace('\\\n', ' ').splitlines():
            for command in line.split('#')[0].split('&&'):
                words = shlex.split(command)
                if words[:1] == ['python'] and words[1].endswith('.py'):
                    found.append(words)
    return found


def documented_commands():
    """Those of README and of the pages in docs, each script with the same flags once."""
    pages = [README, *(path.read_text() for path in sorted((ROOT / 'docs').glob('*.md')))]
    every = [words for page in pages for words in commands(page)]
    return list({(w[1], *(f.split('=')[0] for f in w[2:])): w for w in reversed(every)}.values())


@pytest.mark.parametrize('name', DOCUMENTS)
def test_links_and_names_of_files_exist(name):
    text = (ROOT / name).read_text()
    links = re.findall(r'\]\((?!http)([^)#]+)', text)
    mentioned = re.findall(r'`((?:\w+/)+|[\w/]+\.(?:py|md|txt|toml))`', text)
    elsewhere = {'checkpoints/', 'annotations/', 'train2017/', 'val2017/', 'utils.py'}
    elsewhere.add('benchmarks/logs/')  # made by the first benchmark
    for path in {*links, *mentioned} - elsewhere:
        places = (ROOT / path, ROOT / 'spinenet_jax' / path)
        assert any(place.exists() for place in places), f'{name} names {path}'


def test_readme_has_the_commands_it_is_about():
    assert [c[1] for c in commands()][:1] == ['train.py']
    assert {c[1] for c in commands()} >= {'train.py', 'eval.py', 'predict.py'}
    assert 'pip install -r requirements-dev.txt && python -m pytest' in README


@pytest.mark.parametrize('words', documented_commands(), ids=lambda words: ' '.join(words[1:3]))
def test_flags_of_commands_are_understood(words, tmp_path):
    """The flags are parsed by the script itself, which is stopped before it does anything."""
    (tmp_path / 'config.json').write_text(common.get_config().to_json())
    words = [word.replace('finetune.py:runs/49-tf1', f'finetune.py:{tmp_path}') for word in words]
    words = [word.replace('gs://', f'{tmp_path}/') for word in words]  # needs gcsfs
    program = (
        'import argparse, runpy, sys\n'
        'from spinenet_jax import launch\n'
        'parse_args = argparse.ArgumentParser.parse_args\n'
        'def parse_only(parser):\n'
        '    parse_args(parser)\n'
        '    sys.exit(print("parsed: 1"))\n'
        'argparse.ArgumentParser.parse_args = parse_only\n'
        f'sys.argv = {words[1:]!r}\n'
        'parse = lambda *_, **__: print("parsed:", len(launch._parse(sys.argv)))\n'
        'launch.run = parse\n'
        f'runpy.run_path({words[1]!r}, run_name="__main__")\n'
    )
    done = subprocess.run(
        [sys.executable, '-c', program], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip() == 'parsed: 1', done.stderr


def test_generated_parts_come_from_their_logs(tmp_path):
    (tmp_path / 'log.jsonl').write_text('{"a": 1.23456, "b": "x"}\n{"b": "y"}\n')
    (tmp_path / 'log.txt').write_text('hello\n')
    text = (
        'before\n<!-- begin table log.jsonl: b, a -->\nold\n<!-- end -->\n'
        '<!-- begin text log.txt -->\n<!-- end -->\n'
        '<!-- begin text missing.txt -->\n<!-- end -->\nafter\n'
    )
    filled = update_readme_tables.fill(text, tmp_path)
    assert '| b | a |\n| --- | --- |\n| x | 1.235 |\n| y |  |\n' in filled
    assert '```\nhello\n```\n' in filled
    assert 'missing.txt -->\n*not run*\n' in filled
    assert filled.startswith('before\n') and filled.endswith('after\n')
    assert update_readme_tables.fill(filled, tmp_path) == filled


def test_pages_that_differ_from_their_source_are_named(tmp_path):
    (tmp_path / 'right.md').write_text('text')
    (tmp_path / 'wrong.md').write_text('text of last year')
    pages = tuple(
        check_generated_pages.Page(tmp_path / name, f'tools/{name}.py', lambda: 'text')
        for name in ('right.md', 'wrong.md', 'missing.md')
    )
    assert check_generated_pages.stale(pages) == [
        'wrong.md is out of date: python tools/wrong.md.py',
        'missing.md is out of date: python tools/missing.md.py',
    ]


def test_the_python_example_of_the_readme_is_true(monkeypatch):
    """It is run with a predictor that takes nothing but the calls that the real one has."""
    from unittest.mock import create_autospec

    import numpy as np

    import spinenet_jax
    from spinenet_jax import predictor
    from spinenet_jax.tasks.records import Detections

    (example,) = re.findall(r'^```python\n(.*?)^```', README, re.MULTILINE | re.DOTALL)
    model = create_autospec(predictor.Predictor, instance=True)
    nothing = Detections(np.zeros((0, 4)), np.zeros(0), np.zeros(0, int))
    model.predict.return_value = predictor.Result(nothing, [], (4, 4))
    load = create_autospec(predictor.load, return_value=model)
    monkeypatch.setattr(predictor, 'load', load)
    exec(example, {'print': lambda *_: None})
    assert load.called and model.draw.called and model.features.called
    assert spinenet_jax.load is load
