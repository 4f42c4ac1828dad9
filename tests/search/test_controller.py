"""Controllers: proposals, learning where the answer is known, and the same state after resuming."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spinenet_jax.errors import UserError
from spinenet_jax.search import controller as controllers
from spinenet_jax.search.controller import Evolution, Proposal, Random, mutate
from spinenet_jax.search.policy import (
    PolicySettings,
    RecurrentController,
    _Batch,
    _Sampler,
    masked_log_softmax,
)
from spinenet_jax.search.space import SPACES, decode, draw, draw_valid, why_invalid
from tests.search.made import SMALL, accepts, closeness, noisy

QUICK = PolicySettings(hidden=24, learning_rate=1e-2, batch=10)
MAKERS = {
    'random': lambda seed: Random(SMALL, accepts(SMALL), seed),
    'evolution': lambda seed: Evolution(SMALL, accepts(SMALL), seed, 20, 5),
    'ppo': lambda seed: RecurrentController(SMALL, accepts(SMALL), seed, QUICK),
    'reinforce': lambda seed: RecurrentController(
        SMALL, accepts(SMALL), seed, QUICK._replace(algorithm='reinforce')
    ),
}


def learn(controller, hidden, samples, late=0):
    """Closeness of what is proposed, rewards coming `late` candidates later."""
    waiting, found = [], []
    for number in range(samples):
        proposal = controller.ask(number)
        graph = decode(SMALL, proposal.decisions)
        found.append(closeness(graph, hidden))
        waiting.append((proposal, noisy(graph, hidden)))
        if len(waiting) > late:
            controller.tell(*waiting.pop(0))
    return np.array(found)


@pytest.fixture(scope='module')
def random_closeness():
    hidden = draw_valid(SMALL, np.random.default_rng(100))[1]
    return hidden, learn(MAKERS['random'](0), hidden, 200).mean()


@pytest.mark.parametrize('name', ['evolution', 'ppo', 'reinforce'])
def test_learning_is_ahead_of_random_search(name, random_closeness):
    """benchmarks/search_controllers.py has five seeds, the full space and a plot."""
    hidden, by_chance = random_closeness
    found = learn(MAKERS[name](1), hidden, 300, late=8)
    assert found[-50:].mean() > by_chance + 0.15
    assert abs(found[:10].mean() - by_chance) < 0.15


@pytest.mark.parametrize('name', MAKERS)
def test_proposals_are_valid_and_a_function_of_seed_and_number(name):
    first, second, other = MAKERS[name](3), MAKERS[name](3), MAKERS[name](4)
    proposals = [first.ask(number) for number in (0, 1, 2, 1)]
    assert proposals[1] == proposals[3]
    assert [second.ask(number) for number in (0, 1, 2)] == proposals[:3]
    assert [other.ask(number) for number in (0, 1, 2)] != proposals[:3]
    assert len({proposal.decisions for proposal in proposals}) > 1
    for proposal in proposals:
        assert why_invalid(SMALL, decode(SMALL, proposal.decisions)) == ''


@pytest.mark.parametrize('name', MAKERS)
def test_a_controller_is_a_fold_over_what_it_was_told(name):
    hidden = SMALL.base
    first, told = MAKERS[name](5), []
    for number in range(25):
        proposal = first.ask(number)
        told.append((proposal, noisy(decode(SMALL, proposal.decisions), hidden)))
        if number % 3 == 2:  # rewards come in another order
            for result in told[number - 2 : number + 1][::-1]:
                first.tell(*result)
    second = MAKERS[name](5)
    for number in range(2, 25, 3):
        for result in told[number - 2 : number + 1][::-1]:
            second.tell(*result)
    assert [second.ask(n) for n in (100, 101)] == [first.ask(n) for n in (100, 101)]


def test_log_probabilities_are_those_of_the_policy():
    """One decision after another, or all at once: the sampled path is also what is trained."""
    controller = MAKERS['ppo'](0)
    proposal = controller.ask(0)
    decisions = jnp.array([proposal.decisions])
    scores = controller._policy.apply(controller.params, decisions)
    logs = masked_log_softmax(scores, jnp.array([SMALL.masks(proposal.decisions)]))
    taken = jnp.take_along_axis(logs, decisions[..., None], -1)[0, :, 0]
    np.testing.assert_allclose(taken, proposal.log_probabilities, atol=2e-6)
    total = jnp.exp(logs).sum(-1)
    np.testing.assert_allclose(total, jnp.ones_like(total), atol=1e-5)


def test_sampling_follows_the_probabilities():
    controller = MAKERS['ppo'](0)
    bias = jnp.array([0.0, jnp.log(4.0), 0.0])  # first decision: one of levels 2, 3, 4
    params = jax.tree.map(jnp.zeros_like, controller.params)
    params['params']['bias'] = params['params']['bias'].at[0, :3].set(bias)
    sampler, rng = _Sampler(params), np.random.default_rng(0)
    first = [sampler.sample(SMALL, rng).decisions[0] for _ in range(100)]
    assert abs(first.count(1) / 100 - 4 / 6) < 0.15
    assert first.count(0) > 10
    assert first.count(2) > 10


@pytest.fixture(scope='module')
def gradients():
    """(algorithm, entropy) -> function of (params, batch): the gradient by the biases."""
    controller = RecurrentController(SMALL, accepts(SMALL), 0, QUICK)
    proposal = controller.ask(0)

    def batch(old, advantage):
        logs = np.array(proposal.log_probabilities) + old
        return _Batch(
            jnp.array([proposal.decisions]),
            jnp.array([SMALL.masks(proposal.decisions)]),
            jnp.array([logs], jnp.float32),
            jnp.array([advantage]),
        )

    def make(algorithm, entropy=0.0):
        controller._settings = QUICK._replace(algorithm=algorithm, entropy=entropy)
        gradient = jax.jit(jax.grad(controller._loss))
        return lambda old, advantage, params=controller.params: np.asarray(
            gradient(params, batch(old, advantage))['params']['bias']
        )

    return make, proposal, controller.params


def test_gradients_by_hand(gradients):
    make, proposal, _ = gradients
    option, p = proposal.decisions[0], np.exp(proposal.log_probabilities[0])
    # REINFORCE: d(-A log p)/d score of the option taken = -A (1 - p), whatever p was at sampling.
    reinforce = make('reinforce')
    for old in (0.0, 1.0):
        assert reinforce(old, 2.0)[0, option] == pytest.approx(-2.0 * (1 - p), rel=1e-4)
    # PPO: the same at ratio 1; times the ratio while that is within the clip ...
    ppo = make('ppo')
    assert ppo(0.0, 2.0)[0, option] == pytest.approx(-2.0 * (1 - p), rel=1e-4)
    assert ppo(-np.log(1.1), 2.0)[0, option] == pytest.approx(-1.1 * 2.0 * (1 - p), rel=1e-4)
    # ... nothing where a good one has gained more than that, or a bad one lost more,
    assert ppo(-np.log(1.5), 2.0)[0, option] == 0.0
    assert ppo(np.log(1.5), -2.0)[0, option] == 0.0
    # and everything where the change goes the wrong way.
    assert ppo(-np.log(1.5), -2.0)[0, option] == pytest.approx(1.5 * 2.0 * (1 - p), rel=1e-4)


def test_entropy_pulls_towards_an_even_choice(gradients):
    make, _, params = gradients
    uneven = jax.tree.map(jnp.zeros_like, params)
    uneven['params']['bias'] = uneven['params']['bias'].at[0, 0].set(2.0)
    gradient = make('ppo', entropy=1.0)(0.0, 0.0, uneven)
    assert gradient[0, 0] > 0 > gradient[0, 1]
    np.testing.assert_allclose(gradient[1:], 0.0, atol=1e-6)  # even already


def test_baseline_moves():
    controller = RecurrentController(
        SMALL, accepts(SMALL), 0, QUICK._replace(batch=2, baseline_decay=0.9)
    )
    proposal = controller.ask(0)
    assert controller.baseline is None
    for reward, expected in ((0.2, None), (0.4, 0.3), (0.5, 0.3), (0.7, 0.9 * 0.3 + 0.1 * 0.6)):
        controller.tell(proposal, reward)
        assert controller.baseline == (None if expected is None else pytest.approx(expected))


def test_population_drops_the_oldest():
    evolution = Evolution(SMALL, accepts(SMALL), 0, population=2, tournament=2)
    proposals = [evolution.ask(number) for number in range(3)]
    for reward, proposal in zip((0.9, 0.1, 0.2), proposals, strict=True):
        evolution.tell(proposal, reward)
    assert [member[0] for member in evolution._members] == [0.1, 0.2]
    changed = [evolution.ask(number).decisions for number in range(10, 20)]
    for decisions in changed:  # the oldest was best, and is forgotten
        likeness = [np.mean(np.array(decisions) == p.decisions) for p in proposals]
        assert max(likeness[1:]) > likeness[0]
    with pytest.raises(UserError, match='tournament=3: want between 1 and population=2'):
        Evolution(SMALL, accepts(SMALL), 0, population=2, tournament=3)


@pytest.mark.parametrize('name', ['spinenet49', 'hourglass'])
def test_mutations_change_one_thing_within_the_rules(name):
    space, rng = SPACES[name], np.random.default_rng(0)
    parent = draw(space, rng)
    seen = set()
    for _ in range(300):
        child = mutate(space, parent, rng)
        if child is None:
            continue
        different = [i for i in range(len(parent)) if parent[i] != child[i]]
        whats = {space.steps[i].what for i in different}
        assert len(whats) == 1
        what = whats.pop()
        assert len(different) == (2 if what in ('order', 'output order') else 1)
        if len(different) == 2:
            a, b = different
            assert (parent[a], parent[b]) == (child[b], child[a])
        assert space.allows(child)
        seen.add(what)
    assert seen == {step.what for step in space.steps}


def test_a_bound_nothing_keeps_is_refused(monkeypatch):
    monkeypatch.setattr(controllers, 'MOST_DRAWS', 20)
    with pytest.raises(UserError, match='none of 20 proposals is a valid graph within its bounds'):
        Random(SMALL, lambda decisions: False, 0).ask(0)


def test_proposals_hold_plain_numbers():
    """They go into the ledger as JSON and must come back equal."""
    for name in MAKERS:
        proposal = MAKERS[name](0).ask(0)
        assert isinstance(proposal, Proposal)
        assert all(type(option) is int for option in proposal.decisions)
        assert all(type(log) is float for log in proposal.log_probabilities)
