"""From a config to a search: settings, bounds, cost, and the workdir of another search."""

import numpy as np
import pytest

from configs import digits
from configs import search as search_config
from spinenet_jax.errors import UserError
from spinenet_jax.models.graph import GRAPHS, Scaling
from spinenet_jax.search import settings
from spinenet_jax.search.build import (
    CostOfGraph,
    _accept,
    _score,
    _write_header,
    build_engine,
    check_evaluator,
)
from spinenet_jax.search.graph_cost import graph_cost
from spinenet_jax.search.ledger import Ledger
from spinenet_jax.search.space import SPACES, decode, draw_valid, encode, why_invalid


@pytest.fixture(scope='module')
def config():
    return search_config.get_config('digits')


@pytest.fixture(scope='module')
def cost(config):
    return CostOfGraph(config)


@pytest.mark.parametrize('argument', ['digits', *(f'{space}-coco' for space in SPACES)])
def test_configs_are_legal(argument):
    config = search_config.get_config(argument)
    settings.check(config)
    if argument != 'digits':
        assert config.search.space == argument.removesuffix('-coco')


@pytest.mark.parametrize('argument', ['', 'coco', 'spinenet50-coco', 'digits-coco'])
def test_other_arguments_are_refused(argument):
    with pytest.raises(UserError, match='the argument is digits or <space>-coco'):
        search_config.get_config(argument)


def test_coco_proxy_is_the_papers():
    config = search_config.get_config('spinenet49-coco').candidate
    assert (config.model.width, config.model.resample_alpha, config.model.head_channels) == (
        *(0.25, 0.25, 64),
    )
    assert tuple(config.data.image_size) == (512, 512)
    assert config.train.epochs == 5
    assert (config.data.train_split, config.data.eval_split) == (
        *('train2017_kept', 'train2017_held_out'),
    )


@pytest.mark.parametrize(
    ('name', 'value', 'message'),
    [
        ('space', 'hourglas', "search.space='hourglas': must be one of r35_sp18"),
        ('tournament', 99, 'search.tournament=99: larger than population=20'),
        ('candidates', 0, 'search.candidates=0: must be a whole number from 1'),
        ('learning_rate', float('nan'), 'search.learning_rate=nan: must be a number above 0'),
        ('environment', {'A': 1}, 'must be a dictionary of text by name'),
    ],
)
def test_settings_are_refused_in_one_line(name, value, message):
    config = search_config.get_config()
    with config.ignore_type():
        config.search[name] = value
    with pytest.raises(UserError, match=message) as error:
        settings.check(config)
    assert '\n' not in str(error.value)


def test_settings_of_candidates_are_held_to_their_table():
    config = search_config.get_config()
    config.candidate.train.batch_size = 0
    with pytest.raises(UserError, match=r'candidate: train.batch_size=0: must be'):
        settings.check(config)


def test_what_cannot_be_searched_is_refused():
    config = search_config.get_config()
    config.candidate.model.backbone = 'resnet_fpn'
    with pytest.raises(UserError, match=r'candidate.model.backbone=resnet_fpn: it has no graph'):
        settings.check(config)
    with pytest.raises(UserError, match="has no 'search' and 'candidate': see"):
        settings.check(digits.get_config())
    config = search_config.get_config()
    config.search.reference = 'mobile49'
    with pytest.raises(UserError, match=r'search.reference=mobile49: its blocks are mobile ones'):
        CostOfGraph(config)


def test_an_evaluator_that_ends_the_process_is_named(tmp_path, monkeypatch):
    (tmp_path / 'leaves.py').write_text('import sys\n\nsys.exit(3)\n')
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match='--evaluator=leaves:f: exit status 3'):
        check_evaluator('leaves:f')


def test_cost_of_the_whole_model(config, cost):
    """The formula of the backbone and the traced rest add up to the traced whole."""
    other = GRAPHS['r0_sp53']
    changed = search_config.get_config()
    changed.search.reference = 'r0_sp53'
    assert cost(other) == CostOfGraph(changed).reference
    model = config.candidate.model
    scaling = Scaling(model.width, model.resample_alpha, 1, model.endpoint_channels, 0, 0)
    backbone = graph_cost(other, scaling, tuple(config.candidate.data.image_size))
    assert cost(other)['parameters'] > backbone.parameters


def test_a_candidate_keeps_its_bounds(config, cost):
    space = SPACES['r0_sp53']
    rng = np.random.default_rng(0)
    draws = [draw_valid(space, rng) for _ in range(40)]
    search = search_config.get_config().search
    everything = _accept(search, space, cost)
    assert all(everything(decisions) for decisions, _ in draws)
    shares = [cost(graph)['multiply_adds'] / cost.reference['multiply_adds'] for _, graph in draws]
    search.max_multiply_adds = float(np.median(shares))
    bounded = _accept(search, space, cost)
    assert [bounded(d) for d, _ in draws] == [s <= search.max_multiply_adds for s in shares]
    search.max_parameters = 0.01
    assert not any(_accept(search, space, cost)(decisions) for decisions, _ in draws)


def test_an_invalid_graph_is_not_accepted(config, cost):
    space = SPACES['r0_sp53']
    accept = _accept(config.search, space, cost)
    graph = GRAPHS['r0_sp53']
    assert accept(encode(space, graph))
    # Nobody takes node 2, at level 2, any more.
    blocks = [
        b._replace(parents=tuple(0 if p == 2 else p for p in b.parents)) for b in graph.blocks
    ]
    dead = encode(space, graph._replace(blocks=tuple(blocks)))
    assert why_invalid(space, decode(space, dead))
    assert not accept(dead)


def test_cost_as_a_second_objective(cost):
    search = search_config.get_config().search
    reference = cost.reference
    twice = {'multiply_adds': 2 * reference['multiply_adds'], 'parameters': 0}
    assert _score(search, cost)(0.4, twice) == 0.4
    search.cost_exponent = -1.0
    assert _score(search, cost)(0.4, twice) == pytest.approx(0.2)
    assert _score(search, cost)(0.4, reference) == pytest.approx(0.4)
    assert _score(search, cost)(-0.4, twice) == pytest.approx(-0.8)  # worse there too


def test_a_ledger_belongs_to_one_search(tmp_path):
    config = search_config.get_config()
    ledger = Ledger(tmp_path)
    _write_header(ledger, config, 'a:b')
    _write_header(ledger, config, 'a:b')
    assert len(ledger.events) == 1
    config.search.candidates, config.search.workers = 1000, 8  # may change
    _write_header(ledger, config, 'a:b')
    for change, message in (
        (lambda: None, "evaluator: 'a:b' -> 'c:d'"),
        (lambda: config.search.update(seed=1), 'search.seed: 0 -> 1'),
        (lambda: config.candidate.model.update(width=0.5), 'candidate.model.width: 0.125 -> 0.5'),
    ):
        change()
        with pytest.raises(UserError, match='the workdir holds another search') as error:
            _write_header(ledger, config, 'c:d')
        assert message in str(error.value)
    ledger.close()


def test_an_unknown_engine(config):
    with pytest.raises(UserError, match='--engine=slurm: choose one of local, ray'):
        build_engine(config, 'slurm')
