"""The smallest setup that has everything the training code touches.

A convolution with synchronised batch norm, a linear layer, dropout; a task with a padded
count-weighted loss; an endless stream of batches that is a function of (seed, position).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

CLASSES = 3


class TinyModel(nn.Module):
    """conv, batch norm, dropout, mean, dense."""

    width: int = 4
    axis_name: str | None = 'batch'
    dropout: float = 0.0

    @nn.compact
    def __call__(self, images, *, train):
        x = nn.Conv(self.width, (3, 3), use_bias=False, name='conv')(images)
        norm = nn.BatchNorm(
            use_running_average=not train, axis_name=self.axis_name if train else None, name='norm'
        )
        x = nn.relu(norm(x))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(CLASSES, name='head')(x.mean((1, 2)))


@dataclasses.dataclass(frozen=True)
class TinyTask:
    """Cross-entropy over the valid rows only."""

    image_size: tuple[int, int] = (8, 8)
    device_keys_train: tuple[str, ...] = ('image', 'label', 'valid')
    device_keys_eval: tuple[str, ...] = ('image', 'label', 'valid')

    def images(self, batch):
        return batch['image'].astype(jnp.float32) / 255.0

    def targets(self, batch):
        weight = batch['valid'].astype(jnp.float32)
        return {'onehot': jax.nn.one_hot(batch['label'], CLASSES), 'weight': weight}

    def counts(self, targets):
        return {'rows': targets['weight'].sum()}

    def sums(self, outputs, targets):
        losses = -(jax.nn.log_softmax(outputs) * targets['onehot']).sum(-1)
        return {
            'entropy': (losses * targets['weight']).sum(),
            'size': (jnp.square(outputs).sum(-1) * targets['weight']).sum(),
        }

    def loss(self, sums, counts):
        parts = {name + '_loss': value / (counts['rows'] + 1) for name, value in sums.items()}
        return {'loss': parts['entropy_loss'] + 0.1 * parts['size_loss'], **parts}

    def predictions(self, outputs, batch):
        return {'classes': outputs.argmax(-1).astype(jnp.int32), 'scores': outputs.max(-1)}


def batch_at(position: int, size: int, seed: int = 0) -> dict[str, Any]:
    """Global batch number `position`: uint8 images whose brightness tells the label."""
    rng = np.random.default_rng((seed, position))
    label = rng.integers(0, CLASSES, size).astype(np.int32)
    noise = rng.integers(0, 80, (size, 8, 8, 3))
    image = (noise + 80 * label[:, None, None, None]).clip(0, 255).astype(np.uint8)
    return {'image': image, 'label': label, 'valid': rng.random(size) < 0.8}


def on_devices(batch: dict[str, Any], count: int) -> dict[str, Any]:
    """[count * B, ...] -> [count, B, ...]."""
    return {k: v.reshape(count, len(v) // count, *v.shape[1:]) for k, v in batch.items()}
