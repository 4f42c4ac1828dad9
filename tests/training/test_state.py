"""The state that a run starts from."""

import jax
import numpy as np
import optax
from tiny import TinyModel, TinyTask

from spinenet_jax.training.state import create_state, empty_state

SGD = optax.sgd(0.1, momentum=0.9)


def test_empty_state_has_the_form_of_a_drawn_one():
    drawn = create_state(TinyModel(), SGD, TinyTask().image_size, seed=0)
    empty = empty_state(TinyModel(), SGD, TinyTask().image_size)
    assert jax.tree.structure(empty) == jax.tree.structure(drawn)
    for zeros, values in zip(jax.tree.leaves(empty), jax.tree.leaves(drawn), strict=True):
        assert isinstance(zeros, np.ndarray) and not zeros.any()
        assert (zeros.shape, zeros.dtype) == (values.shape, values.dtype)
