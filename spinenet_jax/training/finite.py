"""Finds arrays that are infinite, not a number or beyond all use, on the device that holds them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spinenet_jax.parallel import first_replica


def first_bad(replicated: Any) -> str | None:
    """The path of an array that must not be saved; None if all are sound.

    A number is sound if its square is finite in float32: below 1.8e19. What is beyond it has lost
    its way as well, but the loss shows that only one step later.

    replicated: x[devices,...] on the local devices; the first copy is looked at, which is the one
    that is saved.
    """
    leaves = [
        (path, leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(first_replica(replicated))
        if jnp.issubdtype(leaf.dtype, jnp.floating)
    ]
    sound = np.asarray(_sound([leaf for _, leaf in leaves]))
    if sound.all():
        return None
    return jax.tree_util.keystr(leaves[int(np.argmin(sound))][0], simple=True, separator='/')


@jax.jit
def _sound(leaves: list[jax.Array]) -> jax.Array:
    """bool[n]: whether the largest square of each array is finite."""
    return jnp.stack([jnp.isfinite(jnp.square(x.astype(jnp.float32))).all() for x in leaves])
