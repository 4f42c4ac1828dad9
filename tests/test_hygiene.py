"""Rules of the code base that users depend on: import arrows, config keys, no TensorFlow."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from configs import classification, common, retinanet
from spinenet_jax.models.build import build_model
from spinenet_jax.tasks.build import build_task

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / 'spinenet_jax'
SCRIPTS = sorted(ROOT.glob('*.py'))
SOURCES = [*sorted(PACKAGE.rglob('*.py')), *SCRIPTS, *sorted((ROOT / 'configs').glob('*.py'))]

# What each part of the package may import of the others. Arrows point one way: a part that is
# listed earlier never imports a later one.
ARROWS = {
    'errors': '',
    'settings': 'errors',
    'console': '',
    'buckets': 'errors',
    'visualize': '',
    'ops': 'errors',
    'models': 'ops errors',
    'cost': 'models',
    'tasks': 'models ops errors',
    'data': 'ops errors',
    'evaluation': 'data ops errors',
    'training': 'tasks cost models ops data evaluation visualize settings console buckets errors',
    'convert': 'training tasks models ops data settings errors',
    'inference': 'training tasks models data settings errors',
    'prediction': 'inference data evaluation visualize errors',
    'prediction_files': 'prediction buckets errors',
    'launch': 'training console buckets errors',
    'hlo': 'errors',
    'tpu': 'hlo cost training tasks models errors',
}
LIBRARY_PARTS = ('ops', 'models', 'tasks', 'data', 'evaluation', 'visualize')
CONFIGS = [
    ('digits', None),
    *(('retinanet', f'{m}-{p}') for m in retinanet.MODELS for p in retinanet.PROTOCOLS),
    *(
        ('classification', f'{data}-{model}{best}')
        for data in classification.DATASETS
        for model in classification.MODELS
        for best in ('', '-best')
    ),
]


def ids(path):
    return str(path.relative_to(ROOT))


def part_of(path):
    """'ops' for spinenet_jax/ops/boxes.py, 'cost' for spinenet_jax/cost.py."""
    return path.relative_to(PACKAGE).parts[0].removesuffix('.py')


def imported_modules(path):
    """Dotted names of all modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f'{node.module}.{alias.name}' for alias in node.names)


@pytest.mark.parametrize('path', sorted(PACKAGE.rglob('*.py')), ids=ids)
def test_imports_point_one_way(path):
    part = part_of(path)
    if part == '__init__':
        return
    allowed = {part, *ARROWS[part].split()}
    for module in imported_modules(path):
        names = module.split('.')
        if names[0] == 'spinenet_jax' and len(names) > 1:
            assert names[1] in allowed, f'{part} must not import {module}'
        # Conversion alone writes a workdir for a published configuration.
        assert names[0] != 'configs' or part == 'convert', 'the package must not import configs'


def test_arrows_have_no_circle_and_leave_no_part_out():
    parts = list(ARROWS)
    for part, allowed in ARROWS.items():
        assert all(parts.index(other) < parts.index(part) for other in allowed.split()), part
    assert {part_of(p) for p in PACKAGE.rglob('*.py')} - {'__init__'} <= set(parts)


@pytest.mark.parametrize('part', LIBRARY_PARTS)
def test_library_parts_do_not_log(part):
    for path in [*(PACKAGE / part).rglob('*.py'), *PACKAGE.glob(f'{part}.py')]:
        modules = set(imported_modules(path))
        assert not modules & {'logging', 'absl.logging'}, path
        assert 'print(' not in re.sub(r"'.*?'|#.*", '', path.read_text()), path


@pytest.mark.parametrize('path', SOURCES, ids=ids)
def test_modules_and_public_names_are_documented(path):
    tree = ast.parse(path.read_text())
    if tree.body:
        assert ast.get_docstring(tree), 'no module docstring'
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith('_'):
            assert ast.get_docstring(node), f'{node.name} has no docstring'


@pytest.mark.parametrize('path', SCRIPTS, ids=ids)
def test_scripts_are_guarded(path):
    text = path.read_text()
    assert "if __name__ == '__main__':" in text


@pytest.mark.parametrize('path', SCRIPTS, ids=ids)
def test_help_imports_nothing_heavy(path):
    program = (
        'import runpy, sys\n'
        f'sys.argv = [{str(path)!r}, "--help"]\n'
        'try:\n'
        f'    runpy.run_path({str(path)!r}, run_name="__main__")\n'
        'except SystemExit:\n'
        '    pass\n'
        'heavy = {"jax", "flax", "grain", "cv2", "orbax", "sklearn"} & set(sys.modules)\n'
        'print("heavy:", *heavy)\n'
    )
    done = subprocess.run(
        [sys.executable, '-c', program], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.splitlines()[-1] == 'heavy:', done.stdout + done.stderr


def test_tensorflow_is_never_imported():
    for path in SOURCES:
        if path.parent != PACKAGE / 'convert':
            assert 'tensorflow' not in {m.split('.')[0] for m in imported_modules(path)}, path
    modules = [
        '.'.join(p.relative_to(ROOT).with_suffix('').parts)
        for p in PACKAGE.rglob('*.py')
        if p.name != '__init__.py'
    ]
    program = (
        'import importlib, sys\n'
        'sys.modules["tensorflow"] = None  # importing it now fails\n'
        f'for name in {modules!r}:\n'
        '    importlib.import_module(name)\n'
    )
    done = subprocess.run(
        [sys.executable, '-c', program], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


def leaves(config, prefix=''):
    for key, value in config.items():
        if isinstance(value, ConfigDict) and len(value):
            yield from leaves(value, f'{prefix}{key}.')
        else:
            yield f'{prefix}{key}'


def test_every_config_key_is_read():
    readers = [p for p in SOURCES if p.parent.name != 'configs' and p.name != 'settings.py']
    text = '\n'.join(path.read_text() for path in readers)
    unread = [
        key
        for key in leaves(common.get_config())
        if not re.search(r"[.']{}\b".format(key.split('.')[-1]), text)
    ]
    assert not unread


def test_no_config_is_left_out():
    of_a_workdir = {'workdir', 'finetune'}  # tests/test_finetune.py
    found = {p.stem for p in (ROOT / 'configs').glob('*.py')} - {'common', '__init__'}
    assert found - of_a_workdir == {name for name, _ in CONFIGS}


@pytest.mark.parametrize(('name', 'argument'), CONFIGS)
def test_every_config_builds(name, argument):
    module = importlib.import_module(f'configs.{name}')
    config = module.get_config(argument) if argument else module.get_config()
    assert set(leaves(config)) == set(leaves(common.get_config())), 'keys differ from common.py'
    build_model(config.model)
    build_task(config)


def project_files():
    done = subprocess.run(
        ['git', 'ls-files', '--cached', '--others', '--exclude-standard'],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        pytest.skip('not a git checkout')
    return [ROOT / name for name in done.stdout.splitlines() if (ROOT / name).is_file()]


def test_no_file_names_a_place_on_someones_machine():
    places = re.compile(
        '|'.join('/' + p for p in ('work/', 'root/', 'home/(?!someone)[a-z]', 'Users/', 'tmp/w/'))
    )
    for path in project_files():
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.splitlines(), 1):
            assert not places.search(line), (
                f'{path.relative_to(ROOT)}:{number}: {line.strip()[:90]}'
            )


@pytest.mark.parametrize('arguments', [['check', '.'], ['format', '--check', '.']])
def test_ruff(arguments):
    pytest.importorskip('ruff')
    done = subprocess.run(
        [sys.executable, '-m', 'ruff', *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
