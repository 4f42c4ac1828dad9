"""Small models on the real graph, for tests: the same wiring, an eighth of the width."""

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict


def model_config(**changes):
    """The `model` part of a config, narrow, with `changes`."""
    config = ConfigDict(
        {
            'backbone': 'spinenet',
            'graph': 'spinenet49',
            'depth': 50,
            'width': 0.125,
            'resample_alpha': 0.5,
            'block_repeats': 1,
            'endpoint_channels': 16,
            'head_channels': 16,
            'head_convs': 1,
            'separable_heads': False,
            'squeeze_gate': 'sigmoid',
            'hidden_channels': 32,
            'rpn_convs': 1,
            'cascade': False,
            'num_classes': 5,
            'anchor_size': 3.0,
            'min_level': 3,
            'max_level': 7,
            'activation': 'relu',
            'stochastic_depth': 0.0,
            'dropblock_keep_prob': 1.0,
            'dropblock_size': 7,
            'padding': 'same',
            'pooling': 'chain',
            'bn_momentum': 0.99,
            'bn_epsilon': 1e-3,
            'dtype': 'float32',
        }
    )
    config.update(changes)
    return config


def random_variables(model, size=(128, 128), seed=0):
    """Random variables of a model without running its initialisation; variances are positive."""
    images = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)
    rng = np.random.default_rng(seed)

    def value(path, leaf):
        name, fan_in = path[-1].key, max(1, leaf.size // leaf.shape[-1])
        if name in ('scale', 'var'):
            return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        spread = fan_in**-0.5 if name == 'kernel' else 0.1
        return rng.normal(0, spread, leaf.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(value, shapes)


def random_images(size=(128, 128), batch=1, seed=0):
    """f32[batch,*size,3] of unit normals."""
    return np.random.default_rng(seed).normal(size=(batch, *size, 3)).astype(np.float32)
