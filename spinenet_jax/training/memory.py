"""Decides whether blocks are recomputed in the backward pass, so that a step fits the memory.

An estimate from the traced network, good enough to choose by: tests/training/test_memory.py holds
it against what the compiler for TPU v3 found (benchmarks/logs/tpu_compile.jsonl). From v4 on the
compilers take up to a quarter more for small models and a tenth more for large ones.
"""

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from spinenet_jax.analysis.cost import Cost, config_cost
from spinenet_jax.models.build import DTYPES

USABLE = 0.95  # share of the memory that an estimate may fill
GIB = 2**30


def device_memory() -> int:
    """Bytes a device of this run can hold, as process 0 sees it; 0 where JAX does not know."""
    stats = jax.local_devices()[0].memory_stats() or {}
    mebibytes = stats.get('bytes_limit', 0) // 2**20
    if jax.process_count() > 1:  # all must choose alike
        mebibytes = int(multihost_utils.broadcast_one_to_all(np.int32(mebibytes)))
    return mebibytes * 2**20


def estimate_step(config: ConfigDict, devices: int) -> int:
    """Bytes a training step without recomputation holds on one of `devices` devices.

    Parameters, momentum and gradients in float32, and for each image twice what convolutions put
    out: once for the backward pass, once more for norms, activations and gradients on the way.
    """
    cost = sum(config_cost(config, train=True).values(), Cost())
    images = config.train.batch_size / devices / max(1, config.optim.accumulate_steps)
    value = np.dtype(DTYPES[config.model.dtype]).itemsize
    return round(3 * 4 * cost.parameters + images * 2 * value * cost.activations)


def choose_remat(config: ConfigDict, devices: int, memory: int) -> bool:
    """Whether to recompute blocks in the backward pass.

    Args:
      config: `train.remat` decides; None: if the step would not fit without.
      devices: over which the batch is split.
      memory: of a device, bytes; 0 if unknown, which recomputes nothing.
    """
    if config.train.remat is not None:
        return config.train.remat
    if not memory:
        return False
    needed = estimate_step(config, devices)
    if needed <= USABLE * memory:
        return False
    logging.info(
        'recomputing blocks in the backward pass: the step would need about %.0f GiB of %.0f GiB '
        '(train.remat)',
        needed / GIB,
        memory / GIB,
    )
    return True
