"""The steps as the TPU compiler sees them, and the reading of what it says."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from ml_collections import ConfigDict

from configs import digits
from spinenet_jax.analysis import hlo
from spinenet_jax.lowering.policy import TPU_V3
from spinenet_jax.models.build import build_layers
from spinenet_jax.models.graph import Block, Graph
from spinenet_jax.models.retinanet import RetinaNet
from spinenet_jax.models.spinenet import SpineNet
from spinenet_jax.training.programs import lower_eval_step, lower_train_step

ROOT = Path(__file__).resolve().parents[1]

# Two fusions of 10 and 20 cycles, a loop of three turns of 5, a loop without a number of 7, a
# conditional whose branches cost 100 and 1, two collectives.
PROGRAM = """HloModule step, is_scheduled=true

%body (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %turn = f32[8]{0} fusion(%p), kind=kLoop, backend_config={"estimated_cycles":"5"}
}

%turns (i: s32[]) -> pred[] {
  %limit = s32[]{:T(256)} constant(3)
  ROOT %more = pred[] compare(%i, %limit), direction=LT
}

%open (q: f32[8]) -> f32[8] {
  ROOT %open_turn = f32[8]{0} fusion(%q), kind=kLoop, backend_config={"estimated_cycles":"7"}
}

%dear (r: f32[8]) -> f32[8] {
  ROOT %slow = f32[8]{0} fusion(%r), kind=kLoop, backend_config={"estimated_cycles":"100"}
}

%cheap (s: f32[8]) -> f32[8] {
  ROOT %fast = f32[8]{0} fusion(%s), kind=kLoop, backend_config={"estimated_cycles":"1"}
}

ENTRY %main (a: f32[8]) -> f32[8] {
  %a = f32[8]{0} parameter(0)
  %one = bf16[2,3]{1,0:T(8,128)} fusion(%a), metadata={op_name="jit(f)/conv"}, \
backend_config={"estimated_cycles":"10"}
  %two = (f32[8]{0}, f32[2]{0}) fusion(%one), backend_config={"estimated_cycles":"20"}
  %psum.1 = (f32[2,8]{1,0}, f32[2,4]{1,0}) all-reduce(%two), \
metadata={op_name="jit(f)/jvp(RetinaNet)/stem_norm/psum"}
  %psum.2 = f32[10]{0} all-reduce(%two), metadata={op_name="jit(f)/psum"}
  %loop = f32[8]{0} while(%a), condition=%turns, body=%body,
  %endless = f32[8]{0} while(%a), condition=%c, body=%open
  ROOT %end = f32[8]{0} conditional(%a, %a), branch_computations={%dear, %cheap}
}
"""


def test_operations_count_loops_and_the_usual_branch():
    found = {o.name: o for o in hlo.operations(PROGRAM)}
    assert found['one'].cycles == 10 and found['one'].source == 'jit(f)/conv'
    assert found['one'].output_bytes == 2 * 3 * 2
    assert (found['turn'].cycles, found['turn'].times) == (15, 3)
    assert found['open_turn'].cycles == 7
    assert 'fast' in found and 'slow' not in found
    assert sum(o.cycles for o in found.values()) == 10 + 20 + 15 + 7 + 1


def test_collectives_by_place():
    got = hlo.collectives(hlo.operations(PROGRAM))
    assert got == {
        'forward': hlo.Collectives(1, 4 * (2 * 8 + 2 * 4)),
        'other': hlo.Collectives(1, 40),
    }


@pytest.mark.parametrize(
    ('refusal', 'peak'),
    [
        ('RESOURCE_EXHAUSTED: ... Used 17.5G of 15.48G hbm. Exceeded', {'peak': 35 * 2**29}),
        ('the total memory required for HLO temporaries (83.0G) exceeds', {'peak': 83 * 2**30}),
        ('RESOURCE_EXHAUSTED: out of patience', {}),
    ],
)
def test_memory_of_a_step_that_does_not_fit(refusal, peak):
    from spinenet_jax.analysis import tpu

    assert tpu.memory(tpu.Program(None, refusal, {}, 1.0)) == peak


def small_config() -> ConfigDict:
    """The digits config with two levels, for a backbone of two blocks."""
    config = digits.get_config()
    config.model.update({'max_level': 4, 'dtype': 'bfloat16', 'head_convs': 1})
    config.data.image_size = (64, 64)
    return config


def small_detector(config: ConfigDict, axis_name: str | None = 'batch') -> RetinaNet:
    """A stem, two blocks and two heads: every kind of layer, in a program that compiles soon."""
    layers = build_layers(config.model, axis_name=axis_name, policy=TPU_V3)
    graph = Graph('two', (Block(3, 'residual', (0, 1), True), Block(4, 'bottleneck', (1, 2), True)))
    backbone = SpineNet(graph, layers, width=0.125, endpoint_channels=16, levels=(3, 4))
    return RetinaNet(backbone, layers, config.model.num_classes, head_channels=16, head_convs=1)


@pytest.fixture(scope='module')
def program():
    pytest.importorskip('libtpu', reason='needs the TPU compiler: pip install "jax[tpu]"')
    from spinenet_jax.analysis import tpu

    config = small_config()
    config.train.batch_size = 16
    devices = tpu.topology_devices('v3:2x2x1')
    assert len(devices) == 8
    return tpu.compile_program(*lower_train_step(config, small_detector(config), devices))


def test_state_is_not_held_twice(program):
    from spinenet_jax.analysis import tpu

    memory = tpu.memory(program)
    state = sum(program.held[k] for k in ('parameters', 'optimizer', 'statistics'))
    assert memory['donated'] >= state
    assert memory['results'] < 64 * 1024  # the metrics


def test_collectives_are_few(program):
    from spinenet_jax.analysis import tpu

    figures, found = tpu.work(program)
    config = small_config()
    variables = jax.eval_shape(
        lambda: small_detector(config).init(
            jax.random.key(0), jax.numpy.zeros((1, 64, 64, 3)), train=False
        )
    )
    norms = len(jax.tree.leaves(variables['batch_stats'])) // 2
    places = figures['collectives']
    assert places['forward']['count'] < norms
    assert places['backward']['count'] < norms
    assert places['other']['count'] <= 3  # the count of anchors; gradients and losses
    assert figures['cycles'] > 0 and figures['flops'] > 0
    assert sum(o.cycles for o in found) == figures['cycles']
    assert figures['unestimated']['count'] < len(found) / 20


def test_evaluation_step_with_post_processing_compiles():
    pytest.importorskip('libtpu', reason='needs the TPU compiler: pip install "jax[tpu]"')
    from spinenet_jax.analysis import tpu

    config = small_config()
    config.eval.batch_size = 16
    model = small_detector(config)
    devices = tpu.topology_devices('v3:2x2x1')
    program = tpu.compile_program(*lower_eval_step(config, model, devices))
    figures, _ = tpu.work(program)
    assert set(figures['collectives']) <= {'other'}  # detections are gathered, nothing is summed
    assert 0 < tpu.memory(program)['peak'] < 2**30


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (['--global_batch=-8'], 'must be a positive multiple of 8'),
        (['--global_batch=12'], 'must be a positive multiple of 8'),
        (['--config.optim.accumulate_steps=3'], 'must be a positive multiple of 24'),
        (['--config.model.num_classes=0'], 'model.num_classes=0'),
        (['--eval', '--global_batch=-8'], 'eval.batch_size=-8'),
        (['--topology=v9:2x2x1'], 'choose a chip'),
    ],
)
def test_what_cannot_be_compiled_is_refused_in_a_line(arguments, words):
    pytest.importorskip('libtpu', reason='needs the TPU compiler: pip install "jax[tpu]"')
    script = [sys.executable, 'tools/compile_for_tpu.py', '--config=configs/digits.py']
    command = [*script, '--topology=v3:2x2x1', *arguments]
    environment = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'TPU_SKIP_MDS_QUERY': '1'}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert words in done.stderr and 'Traceback' not in done.stderr
