"""When a step recomputes its blocks, and how near the estimate is to the TPU compiler's figures."""

import json
from pathlib import Path

import pytest

from configs import mask_rcnn, retinanet
from spinenet_jax.training import memory as memory_module
from spinenet_jax.training.memory import GIB, choose_remat, device_memory, estimate_step

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = {'configs/retinanet.py': retinanet, 'configs/mask_rcnn.py': mask_rcnn}


@pytest.fixture(autouse=True, scope='module')
def traced_once():
    """A model of full size is traced once for all tests that ask for its cost."""
    costs, config_cost = {}, memory_module.config_cost

    def remembered(config, *, train):
        key = (config.task, config.model.to_json(), config.data.image_size)
        if key not in costs:
            costs[key] = config_cost(config, train=train)
        return costs[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory_module, 'config_cost', remembered)
        yield


def compiled():
    """What the compiler for TPU v3 found of steps of detectors that recompute nothing."""
    lines = (ROOT / 'benchmarks/logs/tpu_compile.jsonl').read_text().splitlines()
    for record in map(json.loads, lines):
        file, _, name = record['config'].partition(':')
        plain = file in CONFIGS and record['step'] == 'train' and not record['remat']
        if (
            plain
            and record['fits']
            and not record['changes']
            and record['topology'].startswith('v3:')
        ):
            words = f'{Path(file).stem}:{name} {record["topology"]}'
            yield pytest.param(CONFIGS[file], name, record, id=words)


@pytest.mark.slow
@pytest.mark.parametrize(('configs', 'name', 'record'), compiled())
def test_estimate_is_near_what_the_tpu_compiler_found(configs, name, record):
    config = configs.get_config(name)
    config.train.batch_size = record['global_batch']
    peak = record['memory']['peak']
    assert abs(estimate_step(config, record['cores']) - peak) < max(0.15 * peak, 0.6 * GIB)


@pytest.mark.parametrize(
    ('devices', 'memory', 'remat'),
    [(128, 16, False), (64, 16, True), (64, 32, False), (8, 0, False)],
)
def test_largest_model_recomputes_where_it_must(devices, memory, remat):
    config = retinanet.get_config('190-C')
    assert choose_remat(config, devices, memory * GIB) is remat


def test_accumulation_needs_the_memory_of_a_part():
    config = retinanet.get_config('190-C')
    config.optim.accumulate_steps = 2
    assert not choose_remat(config, 64, 16 * GIB)


@pytest.mark.parametrize('asked', [True, False])
def test_the_config_has_the_last_word(asked):
    config = retinanet.get_config('49-B')
    config.train.remat = asked
    assert choose_remat(config, 1, 1) is asked


def test_memory_of_a_cpu_is_not_known():
    assert device_memory() == 0
