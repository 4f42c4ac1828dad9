"""The defaults that every config starts from: SpineNet-49 RetinaNet on COCO with protocol B.

All settings, with defaults, legal values and meanings, are one table: spinenet_jax/settings.py.

    python -m configs.common

prints it. A file beside this one changes some of them; nothing adds a field elsewhere.
"""

import contextlib

from ml_collections import ConfigDict

from spinenet_jax import settings
from spinenet_jax.models.graph import Scaling


def get_config() -> ConfigDict:
    """A config with every setting at its default, to be specialised."""
    return settings.default_config()


def set_scaling(config: ConfigDict, scaling: Scaling) -> None:
    """Give the backbone the width, resampling, repeats and endpoints of a row of SCALING."""
    config.model.width = scaling.width
    config.model.resample_alpha = scaling.resample_alpha
    config.model.block_repeats = scaling.block_repeats
    config.model.endpoint_channels = scaling.endpoint_channels


if __name__ == '__main__':
    with contextlib.suppress(BrokenPipeError):  # head, or less left early
        print(settings.describe(), flush=True)
