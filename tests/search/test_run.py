"""The search loop on simulated workers: duplicates, retries, failures, kills at any line."""

import numpy as np
import pytest

from spinenet_jax.errors import UserError
from spinenet_jax.models.graph import to_text
from spinenet_jax.search.controller import Evolution, Proposal, Random
from spinenet_jax.search.history import History
from spinenet_jax.search.ledger import FILE, Ledger
from spinenet_jax.search.process import Outcome
from spinenet_jax.search.run import Plan, Search
from spinenet_jax.search.space import decode, draw_valid
from tests.search.made import SMALL, TableEngine, accepts, noisy

HIDDEN = draw_valid(SMALL, np.random.default_rng(5))[1]


def reward_of(graph):
    return noisy(graph, HIDDEN)


def plan(folder, candidates=12, workers=3, samples=100):
    return Plan(
        candidates=candidates,
        samples=samples,
        workers=workers,
        seed=0,
        folder=str(folder),
        evaluator='',
        config={},
        time_limit=10.0,
        environment={},
    )


def evolution():
    return Evolution(SMALL, accepts(SMALL), seed=1, population=4, tournament=2)


def search(folder, controller=None, engine=None, **options):
    ledger = Ledger(folder)
    sizes = {n: options.pop(n) for n in ('candidates', 'workers', 'samples') if n in options}
    try:
        return Search(
            plan(folder, **sizes),
            SMALL,
            controller or evolution(),
            engine or TableEngine(reward_of),
            ledger,
            **options,
        ).run()
    finally:
        ledger.close()


def test_all_candidates_are_evaluated_once(tmp_path):
    engine = TableEngine(reward_of)
    history = search(tmp_path, engine=engine)
    assert history.evaluated == 12
    assert not history.pending
    done = [result for result in history.results if result.status == 'done']
    assert len({result.graph for result in done}) == len(done) == len(engine.ran) == 12
    assert sorted(engine.ran) == sorted(result.number for result in done)
    for result in done:
        assert result.reward == pytest.approx(reward_of(decode(SMALL, result.proposal.decisions)))
        assert result.graph == to_text(decode(SMALL, result.proposal.decisions))
    assert history.best()[0].reward == max(result.reward for result in done)


class Repeating:
    """Proposes the same few graphs over and over."""

    def __init__(self, different):
        rng = np.random.default_rng(0)
        self.proposals = [Proposal(draw_valid(SMALL, rng)[0], (-1.5,)) for _ in range(different)]
        self.told = []

    def ask(self, number):
        return self.proposals[number % len(self.proposals)]

    def tell(self, proposal, reward):
        self.told.append((proposal, reward))


def test_duplicates_are_answered_from_the_ledger(tmp_path):
    controller, engine = Repeating(3), TableEngine(reward_of)
    history = search(tmp_path, controller, engine, candidates=5, samples=20)
    assert sorted(engine.ran) == [0, 1, 2]
    assert len(history.results) == len(controller.told) == 20
    for result in history.results:
        first = history.result_of(result.graph)
        assert result.reward == first.reward
        if result.number > 2:
            assert (result.status, result.reason) == ('duplicate', f'of candidate {first.number}')
    assert all(proposal.log_probabilities == (-1.5,) for proposal, _ in controller.told)


def test_lost_candidates_are_retried_twice_and_others_not(tmp_path):
    fates = {0: ['lost'], 1: ['lost'] * 5, 2: ['timeout'], 3: ['timeout'] * 5, 4: ['failed'] * 5}

    def fate(job, attempt):
        statuses = fates.get(job.number, [])
        if attempt < len(statuses):
            return Outcome(job.number, statuses[attempt], reason=f'{statuses[attempt]} {attempt}')
        return None

    engine = TableEngine(reward_of, fate=fate)
    history = search(tmp_path, engine=engine, candidates=6)
    results = {result.number: result for result in history.results}
    assert [engine.ran.count(n) for n in range(6)] == [2, 3, 2, 2, 1, 1]
    assert [results[n].status for n in range(6)] == [
        'done', 'lost', 'done', 'timeout', 'failed', 'done'
    ]  # fmt: skip
    assert [results[n].reason for n in (1, 3, 4)] == ['lost 2', 'timeout 1', 'failed 0']
    assert [results[n].reward for n in (1, 3, 4)] == [0.0, 0.0, 0.0]
    assert all(results[n].reward != 0 for n in (0, 2, 5))
    assert len(history.results) == 6


def test_a_failure_is_never_the_best(tmp_path):
    """Rewards may be negative, as latencies are that are to be small."""

    def fate(job, attempt):
        return Outcome(job.number, 'failed', reason='crash') if job.number in (3, 7) else None

    history = search(tmp_path, engine=TableEngine(lambda graph: reward_of(graph) - 2, fate=fate))
    done = []
    for result in history.results:
        if result.status == 'failed':
            assert result.reward == min([0.0, *done])
        elif result.status == 'done':
            done.append(result.reward)
    assert max(done) < 0 and history.results[0].status != 'failed'


class Killed(BaseException):
    """Stands for the end of the process."""


class KilledLedger(Ledger):
    """Ends the search just before or just after its n-th line reaches the disk."""

    def __init__(self, folder, lines, written):
        super().__init__(folder)
        self.left, self.written = lines, written

    def append(self, event):
        self.left -= 1
        if self.left < 0 and not self.written:
            raise Killed
        super().append(event)
        if self.left < 0:
            raise Killed


@pytest.mark.parametrize('written', [False, True])
def test_killed_at_every_line_and_resumed(tmp_path, written):
    """Nothing is lost or counted twice, and the controller knows what it would have known."""
    search(tmp_path / 'whole')
    lines = len((tmp_path / 'whole' / FILE).read_text().splitlines())
    assert lines >= 24
    for kill_at in range(0, lines, 3):
        folder = tmp_path / f'{kill_at}'
        ledger = KilledLedger(folder, kill_at, written)
        engine = TableEngine(reward_of)
        stopped = Search(plan(folder), SMALL, evolution(), engine, ledger)
        with pytest.raises(Killed):
            stopped.run()
        ledger.close()
        before = Ledger(folder)
        told = [event for event in before.events if event['event'] == 'tell']
        asked = {event['number'] for event in before.events if event['event'] == 'ask'}
        before.close()

        controller, engine = evolution(), TableEngine(reward_of, seed=7)
        history = search(folder, controller, engine)
        assert [r.number for r in history.results[: len(told)]] == [e['number'] for e in told]
        numbers = [result.number for result in history.results]
        assert len(set(numbers)) == len(numbers)
        assert asked <= set(numbers)
        assert history.evaluated == 12
        assert not history.pending
        assert not {event['number'] for event in told} & set(engine.ran)
        again = evolution()
        history.teach(again)
        assert list(again._members) == list(controller._members)


def test_a_search_in_which_nothing_works_ends_early(tmp_path):
    def fate(job, attempt):
        return Outcome(job.number, 'failed', reason='no data')

    engine = TableEngine(None, fate=fate)
    with pytest.raises(UserError, match=r'none of 10 candidates .* failed: no data'):
        search(tmp_path, engine=engine)
    assert len(engine.ran) == 10
    engine = TableEngine(reward_of)
    assert search(tmp_path, engine=engine, candidates=30).evaluated == 30


def test_retries_survive_the_head(tmp_path):
    def lost(job, attempt):
        return Outcome(job.number, 'lost', reason='gone')

    ledger = KilledLedger(tmp_path, 2, True)  # ask, retry, retry
    with pytest.raises(Killed):
        Search(
            plan(tmp_path, candidates=1), SMALL, evolution(), TableEngine(None, fate=lost), ledger
        ).run()
    ledger.close()
    engine = TableEngine(None, fate=lost)
    history = search(tmp_path, engine=engine, candidates=1)
    assert engine.ran == [0]
    assert history.results[0].status == 'lost'


def test_running_candidates_are_cancelled_on_the_way_out(tmp_path):
    def stop(job, attempt):
        raise KeyboardInterrupt

    engine = TableEngine(reward_of, fate=stop)
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path, engine=engine)
    assert sorted(engine.cancelled) == [0, 1, 2]


def test_workers_do_not_wait_for_a_round(tmp_path):
    """A slow candidate keeps its worker busy and nobody else."""

    class OneSlow(TableEngine):
        def wait(self, timeout):
            self._jobs.sort(key=lambda job: job.number == 0)
            self._rng = np.random.default_rng(0)
            if len(self._jobs) > 1:
                slow = self._jobs.pop()
                report = super().wait(timeout)
                self._jobs.append(slow)
                return report
            return super().wait(timeout)

    engine = OneSlow(reward_of)
    search(tmp_path, Random(SMALL, accepts(SMALL), 0), engine)
    assert engine.ran[-1] == 0
    assert len(engine.ran) == 12


def test_score_and_cost_are_written_down(tmp_path):
    history = search(
        tmp_path,
        candidates=2,
        cost=lambda graph: {'blocks': len(graph.blocks)},
        score=lambda reward, cost: reward / cost['blocks'],
    )
    for result in history.results:
        assert result.cost == {'blocks': 6}
        assert result.reward == pytest.approx(result.metrics['reward'] / 6)
        assert result.metrics['x'] == 1.0


def test_watch_sees_every_change(tmp_path):
    seen = []
    search(tmp_path, watch=lambda s: seen.append(s.history.evaluated))
    assert seen == sorted(seen)
    assert set(seen) >= set(range(13))


def test_a_second_result_of_a_candidate_is_an_error():
    ask = {
        'event': 'ask',
        'number': 0,
        'decisions': [],
        'log_probability': 0,
        'graph': '',
        'seed': 0,
    }
    tell = {'event': 'tell', 'number': 0, 'reward': 1.0, 'status': 'done', 'reason': ''}
    tell |= {'metrics': {}, 'worker': '', 'seconds': 0.0, 'time': 0.0}
    with pytest.raises(KeyError):
        History([ask, tell, tell])
