"""How do batches get from the host to the devices ahead of the step that needs them?"""

from __future__ import annotations

import collections
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from spinenet_jax.training.state import shard_sharding


def device_batches(
    batches: Iterator[dict[str, np.ndarray]], keys: Sequence[str], ahead: int = 2
) -> Iterator[dict[str, jax.Array]]:
    """Send batches to this process's devices, `ahead` of them before they are asked for.

    Sending is asynchronous, and the host works on the batches themselves in the reader's threads,
    so a device meets its next batch in its own memory. Placement is what pmap takes as it is.

    batches: dicts of arrays [local batch, ...], the local batch a multiple of the local devices.
    keys: which entries the step reads; the others stay on the host.
    Yields dicts of arrays [local devices, local batch / local devices, ...], in order.
    """
    sharding = shard_sharding()
    count = jax.local_device_count()

    def send(batch):
        cut = {k: batch[k].reshape(count, -1, *batch[k].shape[1:]) for k in keys}
        return jax.device_put(cut, sharding)

    queue: collections.deque = collections.deque()
    for batch in batches:
        queue.append(send(batch))
        if len(queue) > ahead:
            yield queue.popleft()
    yield from queue
