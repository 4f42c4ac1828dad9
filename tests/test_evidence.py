"""The comparisons of docs/evidence.md: what is trained, what the seeds say, and the page."""

import json

import pytest

from benchmarks import evidence, search_proxy
from spinenet_jax.models.graph import from_text, load, validate
from tools.maintenance import evidence_page


def row(model, seed, ap, task='detection', size='1'):
    return {
        'model': model,
        'seed': seed,
        'task': task,
        'size': size,
        'top1' if task == 'classification' else 'AP': ap,
        'multiply_adds_m': 40.0 + seed,
        'cost_ratio': 1.01,
        'parameters': 398_000,
        'width': 0.125,
        'image_side': 96,
        'epochs': 4.0,
        'seconds': 90.0,
        'machine': 'm',
        'cores': 2,
        'jax': '1',
    }


def test_every_model_is_trained_with_all_seeds_once():
    keys = [
        (model.name, model.size, model.task, seed)
        for model, seed in evidence.runs([*evidence.GROUPS], 3)
    ]
    assert len(set(keys)) == len(keys)
    for models in evidence.GROUPS.values():
        assert {(m.name, m.size, m.task, seed) for m in models for seed in range(3)} <= set(keys)


def test_models_of_a_task_differ_in_nothing_but_the_model():
    for task in evidence.WIDTHS:
        configs = [
            evidence.make_config(task, graph, 0.1) for graph in ('spinenet49', evidence.RESNET)
        ]
        first, second = (json.loads(config.to_json()) for config in configs)
        assert first.pop('model') != second.pop('model')
        assert first == second


@pytest.mark.parametrize('name', evidence.ORDERS)
def test_drawn_connections_change_with_the_seed_and_the_order_does_not(name):
    model = next(model for model in evidence.GROUPS['orders'] if model.name == name)
    graphs = [from_text(model.graph(seed)) for seed in (0, 1)]
    for graph in graphs:
        validate(graph)
    assert graphs[0].levels == graphs[1].levels == evidence.ORDERS[name].base.levels
    assert graphs[0] != graphs[1]
    assert model.graph(0) == model.graph(0)


def test_damaged_graphs_can_be_built():
    for model in evidence.GROUPS['damage']:
        validate(load(model.graph(0)))


@pytest.mark.parametrize(
    ('better', 'worse', 'word'),
    [
        ([30, 31, 32], [27, 28, 29], '+3.0: **holds**'),
        ([27, 28, 29], [30, 31, 32], '-3.0: **reversed**'),
        ([27, 28, 31], [30, 25, 26], '+1.7: **within noise**'),
        ([30, 31], [27, 28, 29], '2 and 3 of 3 seeds, too few'),
    ],
)
def test_verdict(better, worse, word):
    assert word in evidence_page.verdict(better, worse)


def test_page_from_a_log():
    rows = [row('ResNet-50-FPN', seed, 30.0 + seed) for seed in range(3)]
    rows += [row('R0-SP53', seed, 40.0 + seed) for seed in range(3)]
    rows += [row('SpineNet-49', 0, 50.0), row('ResNet-50', 0, 90.0, 'classification')]
    page = evidence_page.page(rows)
    assert '| R0-SP53 | 40.7 | 41.0 | 1.0 | 40.0, 41.0, 42.0 | 40.0 to 42.0 | 398 | 0.125 |' in page
    assert '| SpineNet-49 | 40.8 | 50.0 |  | 50.0 (1 of 3 seeds) |' in page
    assert 'R0-SP53 over ResNet-50-FPN (paper: 2.9 AP better): +10.0: **holds**' in page
    assert 'SpineNet-49 over R0-SP53 (paper: 0.1 AP better): +9.0: 1 and 3 of 3 seeds' in page
    assert '- hold here: R0-SP53 over ResNet-50-FPN.' in page
    assert '- are reversed here: none.' in page and f'{evidence_page.NOT_RUN}: `python' in page
    assert '| SpineNet-49, size 1.5 |' not in page
    assert '| ResNet-50 | 59.6 | 90.0 |' in page


def test_rank_correlation_of_a_proxy():
    rising = [1.0, 2.0, 5.0, 6.0, 9.0]
    assert search_proxy.correlation(rising, [x**2 for x in rising])['spearman'] == 1
    low, high = search_proxy.correlation(rising, [2.0, 1.0, 5.0, 4.0, 9.0])['interval']
    assert -1 <= low < 0.8 < high <= 1
    assert search_proxy.correlation(rising, [3.0] * 5)['spearman'] == 0
