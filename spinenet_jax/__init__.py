"""SpineNet in JAX and Flax: backbones, RetinaNet detection, training and evaluation.

`spinenet_jax.load(run)` gives the trained model of a run (`predictor.py`). It is imported on first
use: `import spinenet_jax` alone brings in neither JAX nor anything else.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from spinenet_jax.predictor import load

__all__ = ['load']


def __getattr__(name: str):
    if name != 'load':
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    from spinenet_jax import predictor

    return predictor.load
