"""Sends batches from the host to the devices ahead of the step that needs them."""

from __future__ import annotations

import collections
from collections.abc import Collection, Iterator

import jax

from spinenet_jax import parallel
from spinenet_jax.data.batch import Batch


def device_batches(
    batches: Iterator[Batch], keys: Collection[str], ahead: int = 2
) -> Iterator[dict[str, jax.Array]]:
    """Send batches to this process's devices, `ahead` of them before they are asked for.

    Sending is asynchronous, and the host works on the batches themselves in the reader's threads,
    so a device meets its next batch in its own memory.

    Args:
      batches: host arrays [local batch, ...], the local batch a multiple of the local devices.
      keys: which entries the step reads; the others stay on the host.
      ahead: batches.

    Yields:
      Arrays [local devices, local batch / local devices, ...], in order.
    """
    queue: collections.deque = collections.deque()
    for batch in batches:
        queue.append(parallel.shard({key: batch[key] for key in keys}))
        if len(queue) > ahead:
            yield queue.popleft()
    yield from queue
