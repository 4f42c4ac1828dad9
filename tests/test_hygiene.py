"""Rules of the code base that users depend on: import arrows, config keys, no TensorFlow."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from flax import linen as nn
from ml_collections import ConfigDict

from configs import classification, common, mask_rcnn, retinanet
from spinenet_jax.data.build import SOURCES as SOURCES_OF_DATA
from spinenet_jax.tasks.build import build_task, build_task_model

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / 'spinenet_jax'
SCRIPTS = sorted(ROOT.glob('*.py'))
SOURCES = [*sorted(PACKAGE.rglob('*.py')), *SCRIPTS, *sorted((ROOT / 'configs').glob('*.py'))]

# What each part of the package may import of the others. Arrows point one way: a part that is
# listed earlier never imports a later one.
ARROWS = {
    'errors': '',
    'legal_values': '',
    'settings': 'legal_values errors',
    'console': '',
    'interrupts': '',
    'buckets': 'errors',
    'files': 'buckets errors',
    'visualize': '',
    'ops': 'errors',
    'lowering': 'ops errors',
    'models': 'lowering ops errors',
    'data': 'ops errors',
    'parallel': 'data',
    'evaluation': 'parallel data ops files errors',
    'annotated': 'data visualize',
    'tasks': 'evaluation data models lowering ops visualize errors',
    'analysis': 'tasks models errors',
    'training': (
        'analysis tasks models lowering ops data parallel evaluation settings console interrupts '
        'annotated visualize files buckets errors'
    ),
    'inference': 'training tasks lowering ops evaluation parallel data settings files errors',
    'convert': 'inference training tasks models ops data settings files errors',
    'prediction': 'inference evaluation parallel data errors',
    'export': 'inference tasks lowering data ops files errors',
    'predictor': 'inference prediction training data visualize files errors',
    'prediction_files': 'tasks inference prediction data files buckets errors',
    'notebook': 'visualize errors',
    'launch': 'training console interrupts buckets errors',
    'search': 'launch inference training analysis models data settings legal_values files errors',
}
LIBRARY_PARTS = (
    'ops',
    'lowering',
    'models',
    'tasks',
    'data',
    'parallel',
    'evaluation',
    'visualize',
)
CONFIGS = [
    ('digits', None),
    ('digits', 'masks'),
    *(('mask_rcnn', argument) for argument in mask_rcnn.ARGUMENTS),
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
    """'ops' for spinenet_jax/ops/boxes.py, 'launch' for spinenet_jax/launch.py."""
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
        outside = {'configs', 'tools', 'benchmarks', 'tests'}
        assert names[0] not in outside, f'the package must not import {module}'


@pytest.mark.parametrize('path', sorted(PACKAGE.rglob('*.py')), ids=ids)
def test_the_package_needs_no_file_beside_it(path):
    """Installed by pip it has none: a path is not built from a module's own place upwards."""
    assert not re.search(r'__file__.*(\.parents|\.parent\.parent|\.\.)', path.read_text())


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
        if path.parent not in (PACKAGE / 'convert', PACKAGE / 'export'):
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


SECTIONS = ('model', 'data', 'train', 'optim', 'eval')
MODEL_BUILD = PACKAGE / 'models/build.py'  # there, `config` is the section `model`


def keys_read(paths):
    """What sources read of a config: 'seed', 'train.epochs'.

    Reading is `config.train.epochs` (of any variable or attribute named so), `data_config.root` of
    a section alone, and `f(data_config, 'root')`.
    """
    found = set()
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute):
                section = section_of(node.value, path)
                if section is not None:
                    found.add(f'{section}.{node.attr}'.lstrip('.'))
            elif isinstance(node, ast.Call):
                words = [a.value for a in node.args if isinstance(a, ast.Constant)]
                sections = [section for a in node.args if (section := section_of(a, path))]
                found |= {f'{section}.{word}' for section in sections for word in words}
    return found


def section_of(node, path):
    """The section of a config that an expression is, '' for the whole config, None for others."""
    name = node.attr if isinstance(node, ast.Attribute) else getattr(node, 'id', '')
    if isinstance(node, ast.Attribute) and name in SECTIONS:
        return name if section_of(node.value, path) == '' else None
    if name == 'config':
        return 'model' if path == MODEL_BUILD else ''
    section = name.removesuffix('_config')
    return section if section != name and section in SECTIONS else None


READERS = [path for path in SOURCES if path.parent.name not in ('configs', 'convert', 'search')]


def test_every_config_key_is_read():
    unread = set(leaves(common.get_config())) - keys_read(READERS)
    assert not unread, 'see keys_read for how a key is recognised'


def test_an_invented_config_key_would_be_found():
    """Every attribute in the sources, and every key of another section, put into each section."""
    real = set(leaves(common.get_config()))
    names = {key.rpartition('.')[2] for key in real}
    for path in READERS:
        nodes = ast.walk(ast.parse(path.read_text()))
        names |= {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    names -= {*dir(ConfigDict), *SECTIONS}  # methods of a section
    invented = {f'{section}.{name}' for section in SECTIONS for name in names} | names
    assert len(invented) > 1000
    assert not (invented - real) & keys_read(READERS)


def test_no_config_is_left_out():
    of_a_workdir = {'workdir', 'finetune'}  # tests/test_finetune.py
    of_a_search = {'search'}  # tests/search/
    found = {p.stem for p in (ROOT / 'configs').glob('*.py')} - {'common', '__init__'}
    assert found - of_a_workdir - of_a_search == {name for name, _ in CONFIGS}


def config_of(name, argument):
    module = importlib.import_module(f'configs.{name}')
    return module.get_config(argument) if argument else module.get_config()


@pytest.mark.parametrize(('name', 'argument'), CONFIGS)
def test_every_config_builds(name, argument):
    config = config_of(name, argument)
    assert set(leaves(config)) == set(leaves(common.get_config())), 'keys differ from common.py'
    task = build_task(config)
    assert task.rows.needs <= SOURCES_OF_DATA[config.data.source].provides
    assert task.image_size == tuple(config.data.image_size)
    build_task_model(config, axis_name=None)


def cheapest(config):
    """The config as it is traced: small images, and nothing that only repeats a layer."""
    config.data.image_size, config.model.num_classes = (64, 64), 11
    config.model.block_repeats, config.model.head_convs, config.model.depth = 1, 1, 50
    config.model.rpn_convs = 1
    return config


def traced_once():
    """Of configs whose traces would be alike, the first."""
    seen = set()
    for name, argument in CONFIGS:
        config = cheapest(config_of(name, argument))
        model = config.model.to_dict()
        for key in ('anchor_size', 'bn_momentum'):
            model.pop(key)
        if argument and '49-' not in argument:  # activation and drops are tried with one model
            for key in ('activation', 'stochastic_depth', 'dropblock_keep_prob'):
                model.pop(key)
        exact = (config.task, *sorted(model.items()))
        if exact not in seen:
            yield pytest.param(name, argument, id=f'{name}-{argument}')
        seen.add(exact)


@pytest.mark.slow
@pytest.mark.parametrize(('name', 'argument'), traced_once())
def test_every_config_trains_as_far_as_a_trace_shows(name, argument):
    """One forward pass, losses and predictions of the config's own task and model."""
    config = cheapest(config_of(name, argument))
    task, model = build_task(config), build_task_model(config, axis_name=None)

    def losses(key, batch):
        keys = dict.fromkeys(('params', *task.streams), key)
        outputs, variables = nn.init_with_output(task.forward, model)(keys, batch, train=True)
        targets = task.targets(batch)
        numerators = task.numerators(outputs, targets)
        return task.losses(numerators, task.normalisers(outputs, targets)), variables

    batch = {
        name: jax.ShapeDtypeStruct((2, *field.shape), field.dtype)
        for name, field in task.rows.train.fields.items()
    }
    found, variables = jax.eval_shape(losses, jax.random.key(0), batch)
    assert found['loss'].shape == () and found['loss'].dtype == 'float32'
    assert variables['params']['backbone']


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
