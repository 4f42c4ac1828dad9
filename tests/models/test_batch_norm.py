"""Batch norm: Flax's own results, and one function in the program for equal layers."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from spinenet_jax.models.batch_norm import BatchNorm


def options(*, train, dtype=jnp.float32, axis_name=None):
    """Of both modules."""
    return {
        'use_running_average': not train,
        'momentum': 0.9,
        'epsilon': 1e-3,
        'dtype': dtype,
        'axis_name': axis_name,
    }


@pytest.mark.parametrize('train', [True, False])
@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_values_statistics_and_gradients_are_those_of_flax(train, dtype):
    rng = np.random.default_rng(0)
    x = rng.normal(1, 2, (2, 3, 4, 5, 6))  # two replicas
    x[..., 0] = 2  # a channel without variance
    x = jnp.asarray(x, dtype)
    cotangent = jnp.asarray(rng.normal(size=x.shape), dtype)
    axis_name = 'replicas' if train else None
    theirs = nn.BatchNorm(**options(train=train, axis_name=axis_name))
    ours = BatchNorm(**options(train=train, dtype=dtype, axis_name=axis_name))
    shapes = jax.eval_shape(theirs.init, jax.random.key(0), x[0])
    assert jax.eval_shape(ours.init, jax.random.key(0), x[0]) == shapes
    variables = jax.tree.map(lambda s: rng.uniform(0.5, 1.5, s.shape).astype('f'), shapes)

    def run(module, dtype):
        def call(x, cotangent):
            y, pull, updates = jax.vjp(
                lambda v, x: module.apply(v, x, mutable=['batch_stats']),
                variables,
                x,
                has_aux=True,
            )
            return y, updates, pull(cotangent)

        run = jax.jit(jax.vmap(call, axis_name='replicas'))
        return run(x.astype(dtype), cotangent.astype(dtype))

    def compare(got, want):  # the compiler may round the two programs differently
        rounded = 2**-8 if got.dtype == jnp.bfloat16 else 0  # once, from float32
        got = np.asarray(got, np.float32)
        np.testing.assert_allclose(got, want, rtol=1e-5 + rounded, atol=2e-6)

    jax.tree.map(compare, run(ours, dtype), run(theirs, jnp.float32))


def test_equal_layers_share_a_function_of_the_program():
    class Four(nn.Module):
        @nn.compact
        def __call__(self, x):
            for _ in range(4):
                x = BatchNorm(**options(train=True))(x)
            return x

    x = jnp.ones((2, 4, 4, 3))
    variables = jax.eval_shape(Four().init, jax.random.key(0), x)

    def loss(variables, x):
        y, updates = Four().apply(variables, x, mutable=['batch_stats'])
        return (y**2).sum(), updates

    text = jax.jit(jax.grad(loss, has_aux=True)).lower(variables, x).as_text()
    functions = re.findall(r'func\.func private @(by_batch\w*)', text)
    assert len(re.findall(r'call @by_batch', text)) == 8  # forward and backward
    assert len(functions) <= 4  # the first layer's input needs no gradient


def test_a_parameter_of_another_shape_is_refused():
    module = BatchNorm(**options(train=False))
    variables = module.init(jax.random.key(0), jnp.ones((1, 2, 2, 3)))
    with pytest.raises(Exception, match='shape'):
        module.apply(variables, jnp.ones((1, 2, 2, 4)))


@pytest.mark.parametrize('replicas', [1, 2])
def test_a_single_replica_sums_over_nothing(replicas):
    module = BatchNorm(**options(train=True, axis_name='replicas'))
    x = jnp.ones((replicas, 2, 4, 4, 3))
    variables = BatchNorm(**options(train=True)).init(jax.random.key(0), x[0])

    def call(x):
        return module.apply(variables, x, mutable=['batch_stats'])

    mapped = jax.pmap(call, axis_name='replicas', devices=jax.devices()[:replicas])
    assert ('psum' in str(jax.make_jaxpr(mapped)(x))) == (replicas > 1)
