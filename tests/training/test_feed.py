"""Batches on their way to the devices."""

import itertools

import jax
import numpy as np

from spinenet_jax.training.feed import device_batches


def numbered(count):
    for n in range(count):
        yield {'image': np.full((8, 2), n, np.uint8), 'name': np.array(['x'] * 8)}


def test_order_shape_and_placement():
    sent = list(device_batches(numbered(5), ('image',)))
    assert [int(batch['image'][0, 0, 0]) for batch in sent] == [0, 1, 2, 3, 4]
    assert set(sent[0]) == {'image'}
    image = sent[0]['image']
    assert image.shape == (4, 2, 2) and image.dtype == np.uint8
    assert [shard.device for shard in image.addressable_shards] == jax.local_devices()


def test_reads_two_ahead_and_no_more():
    taken = []

    def source():
        for n in itertools.count():
            taken.append(n)
            yield {'image': np.zeros((4, 1), np.uint8)}

    batches = device_batches(source(), ('image',))
    next(batches)
    assert taken == [0, 1, 2]


def test_fewer_batches_than_are_read_ahead():
    assert len(list(device_batches(numbered(1), ('image',)))) == 1
    assert list(device_batches(numbered(0), ('image',))) == []
