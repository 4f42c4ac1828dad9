"""The paper's controller: a recurrent network that is trained by reinforcement learning.

One LSTM layer reads the decisions made so far; each decision has a softmax of its own over the
options that are left (Zoph et al., 2018, appendix A.2). Rewards train it by PPO or REINFORCE with a
moving average of rewards as baseline.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from spinenet_jax.search.controller import Proposal, first_accepted
from spinenet_jax.search.space import Decisions, Space


class PolicySettings(NamedTuple):
    """How the network learns; configs/search.py names the sources.

    Attributes:
      algorithm: 'ppo' or 'reinforce'.
      hidden: units of the LSTM, and width of what a decision is embedded to.
      learning_rate: Adam's.
      batch: rewards an update.
      epochs: gradient steps an update; REINFORCE makes one.
      clip: by what share of its value at sampling a decision's probability may change before PPO
        ignores it.
      baseline_decay: of the moving average of rewards.
      entropy: weight of the mean entropy of the decisions in the objective, beside rewards.
      init_scale: weights start uniform between minus and plus this.
    """

    algorithm: str = 'ppo'
    hidden: int = 100
    learning_rate: float = 3.5e-4
    batch: int = 20
    epochs: int = 4
    clip: float = 0.2
    baseline_decay: float = 0.95
    entropy: float = 1e-5
    init_scale: float = 0.1


class Policy(nn.Module):
    """Scores of the options of every decision, given those before it.

    Attributes:
      steps: decisions of the space.
      options: most options that a decision has.
      hidden, init_scale: see `PolicySettings`.
    """

    steps: int
    options: int
    hidden: int
    init_scale: float

    def setup(self) -> None:
        uniform = nn.initializers.uniform(2 * self.init_scale)
        init = lambda *args: uniform(*args) - self.init_scale  # noqa: E731
        shape = (self.steps, self.options, self.hidden)
        self.embedding = self.param('embedding', init, shape)
        self.head = self.param('head', init, shape)
        self.bias = self.param('bias', nn.initializers.zeros, shape[:2])
        self.cell = nn.LSTMCell(self.hidden, kernel_init=init, recurrent_kernel_init=init)
        self.rnn = nn.RNN(self.cell)

    def __call__(self, decisions: jax.Array) -> jax.Array:
        """f32[B,steps,options] of full sequences i32[B,steps].

        The first decision has none before it: its input is that of option 0 of the last decision,
        which is no other's.
        """
        previous = jnp.roll(decisions, 1, axis=1).at[:, 0].set(0)
        inputs = self.embedding[jnp.arange(self.steps) - 1, previous]
        hidden = self.rnn(inputs)
        return jnp.einsum('bth,tkh->btk', hidden, self.head) + self.bias


class _Sampler:
    """The same network in numpy, one decision after another.

    A sequence of 70 decisions takes 3 ms this way, and 20 when JAX is called for each.
    """

    def __init__(self, params: Mapping[str, Any]) -> None:
        arrays = jax.tree.map(np.asarray, params['params'])
        cell = arrays['cell']
        self._embedding, self._head, self._bias = (arrays[n] for n in ('embedding', 'head', 'bias'))
        self._input = np.concatenate([cell[f'i{gate}']['kernel'] for gate in 'ifgo'], 1)
        self._recurrent = np.concatenate([cell[f'h{gate}']['kernel'] for gate in 'ifgo'], 1)
        self._shift = np.concatenate([cell[f'h{gate}']['bias'] for gate in 'ifgo'])

    def sample(self, space: Space, rng: np.random.Generator) -> Proposal:
        """One sequence, with the logarithms of its probabilities."""
        memory = hidden = np.zeros(self._head.shape[-1], np.float32)
        decisions: list[int] = []
        logs: list[float] = []
        for number, step in enumerate(space.steps):
            seen = self._embedding[number - 1, decisions[-1] if decisions else 0]
            gates = seen @ self._input + hidden @ self._recurrent + self._shift
            enter, forget, new, leave = np.split(gates, 4)
            memory = _sigmoid(forget) * memory + _sigmoid(enter) * np.tanh(new)
            hidden = _sigmoid(leave) * np.tanh(memory)
            scores = (
                self._head[number, : step.options] @ hidden + self._bias[number, : step.options]
            )
            left = space.mask(decisions)
            scores = np.where(left, scores.astype(np.float64), -np.inf)
            probabilities = np.exp(scores - scores.max())
            probabilities /= probabilities.sum()
            option = int(np.searchsorted(np.cumsum(probabilities), rng.random()))
            option = min(option, int(np.flatnonzero(left)[-1]))  # where the sum rounds below 1
            decisions.append(option)
            logs.append(round(float(np.log(probabilities[option])), 6))
        return Proposal(tuple(decisions), tuple(logs))


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


class _Batch(NamedTuple):
    """Told candidates, leading axis B."""

    decisions: jax.Array  # i32[B,steps]
    masks: jax.Array  # bool[B,steps,options]
    log_probabilities: jax.Array  # f32[B,steps], of the decisions at sampling
    advantage: jax.Array  # f32[B]


def masked_log_softmax(scores: jax.Array, mask: jax.Array) -> jax.Array:
    """Log-probabilities over the options left, of the last axis; about -1e9 for the others."""
    return jax.nn.log_softmax(jnp.where(mask, scores, -1e9))


class RecurrentController:
    """Samples decisions from a `Policy` and trains it on rewards.

    Args:
      space: what to decide.
      accept: whether a sequence may be proposed. Others are drawn again and never told.
      seed: of weights and samples.
      settings: how it learns.
    """

    def __init__(
        self,
        space: Space,
        accept: Callable[[Decisions], bool],
        seed: int,
        settings: PolicySettings | None = None,
    ) -> None:
        settings = settings or PolicySettings()
        self._space, self._accept, self._seed, self._settings = space, accept, seed, settings
        options = max(step.options for step in space.steps)
        self._policy = Policy(len(space.steps), options, settings.hidden, settings.init_scale)
        self._optimizer = optax.adam(settings.learning_rate)
        sequence = jnp.zeros((1, len(space.steps)), jnp.int32)
        self.params = jax.jit(self._policy.init)(jax.random.key(seed), sequence)
        self._state = self._optimizer.init(self.params)
        self._told: list[tuple[Proposal, float]] = []
        self.baseline: float | None = None
        self._sampler = _Sampler(self.params)
        self._update = jax.jit(self._gradient_step)

    def ask(self, number: int) -> Proposal:
        """A sample of the policy as it is now."""
        rng = np.random.default_rng((self._seed, number))
        return first_accepted(lambda: self._sampler.sample(self._space, rng), self._accept)

    def tell(self, proposal: Proposal, reward: float) -> None:
        """Keep the result; every `batch` of them, update the policy with these."""
        self._told.append((proposal, reward))
        if len(self._told) < self._settings.batch:
            return
        rewards = np.array([reward for _, reward in self._told])
        decay, mean = self._settings.baseline_decay, float(rewards.mean())
        before = mean if self.baseline is None else self.baseline
        self.baseline = decay * before + (1 - decay) * mean
        batch = _Batch(
            jnp.array([proposal.decisions for proposal, _ in self._told]),
            jnp.array([self._space.masks(proposal.decisions) for proposal, _ in self._told]),
            jnp.array([proposal.log_probabilities for proposal, _ in self._told]),
            jnp.array(rewards - before, jnp.float32),
        )
        epochs = self._settings.epochs if self._settings.algorithm == 'ppo' else 1
        for _ in range(epochs):
            self.params, self._state = self._update(self.params, self._state, batch)
        self._sampler = _Sampler(self.params)
        self._told = []

    def _gradient_step(self, params, state, batch: _Batch) -> tuple:
        gradient = jax.grad(self._loss)(params, batch)
        updates, state = self._optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    def _loss(self, params, batch: _Batch) -> jax.Array:
        """Minus the objective: expected advantage, clipped in PPO, and entropy."""
        settings = self._settings
        logs = masked_log_softmax(self._policy.apply(params, batch.decisions), batch.masks)
        taken = jnp.take_along_axis(logs, batch.decisions[..., None], -1)[..., 0]
        entropy = -jnp.sum(jnp.where(batch.masks, jnp.exp(logs) * logs, 0.0), -1).mean()
        advantage = batch.advantage[:, None]
        if settings.algorithm == 'ppo':
            ratio = jnp.exp(taken - batch.log_probabilities)
            clipped = jnp.clip(ratio, 1 - settings.clip, 1 + settings.clip)
            gain = jnp.minimum(ratio * advantage, clipped * advantage)
        else:
            gain = taken * advantage
        return -(gain.sum(-1).mean() + settings.entropy * entropy)
