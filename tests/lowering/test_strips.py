"""Maps in strips: what is computed on them is what is computed on whole maps."""

import jax
import numpy as np
import pytest

from spinenet_jax.lowering import plain, strips


def test_count_fills_eight_rows_with_strips_of_even_width():
    assert [strips.count(batch, 160) for batch in (1, 2, 3, 4, 5, 8, 128)] == [8, 4, 2, 2, 1, 1, 1]
    assert strips.count(1, 24) == 4  # 8 strips would be 3 columns wide
    assert strips.count(1, 7) == 1


def test_split_by_hand_and_join():
    x = np.arange(8).reshape(2, 1, 4, 1)
    pieces = strips.split(x, 2)
    assert pieces[:, 0, :, 0].tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]]
    np.testing.assert_array_equal(strips.join(pieces, 2), x)
    assert strips.split(x, 1) is x


def test_edges_by_hand():
    x = strips.split(np.arange(1.0, 9.0, dtype=np.float32).reshape(2, 1, 4, 1), 2)
    assert strips.left_edge(x, 2, 1).ravel().tolist() == [0, 2, 0, 6]
    assert strips.right_edge(x, 2, 1, -1.0).ravel().tolist() == [3, -1, 7, -1]


@pytest.mark.parametrize(
    ('size', 'stride', 'padding', 'dilation', 'groups'),
    [
        (1, 1, 'same', 1, 1),
        (1, 2, 'same', 1, 1),
        (3, 1, 'same', 1, 1),
        (3, 2, 'same', 1, 1),
        (3, 2, 'symmetric', 1, 1),
        (7, 2, 'same', 1, 1),
        (3, 1, 'same', 2, 1),
        (3, 2, 'same', 1, 6),
    ],
)
def test_conv_equals_that_of_whole_maps_and_its_gradients(size, stride, padding, dilation, groups):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 7, 16, 6)).astype(np.float32)
    kernel = rng.normal(size=(size, size, 6 // groups, 12)).astype(np.float32)
    pads = plain.pads_of((7, 16), size, stride, padding, dilation)
    options = {'stride': stride, 'pads': pads, 'dilation': dilation, 'groups': groups}

    def in_strips(x, kernel):
        return strips.join(strips.conv(strips.split(x, 4), kernel, strips=4, **options), 4)

    want, vjp_want = jax.vjp(lambda x, k: plain.conv(x, k, **options), x, kernel)
    got, vjp_got = jax.vjp(in_strips, x, kernel)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-4)
    for a, b in zip(vjp_got(want), vjp_want(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ('kernel_size', 'options'),
    [
        (3, {'stride': 3, 'pads': ((0, 0), (0, 0))}),  # strips of 4 columns
        (3, {'stride': 1, 'pads': ((0, 0), (0, 0))}),  # fewer results than columns
        (11, {'stride': 1, 'pads': ((5, 5), (5, 5))}),  # further than the next strip
    ],
)
def test_conv_refuses_what_neighbours_cannot_give(kernel_size, options):
    x, kernel = np.ones((4, 4, 4, 1)), np.ones((kernel_size, kernel_size, 1, 1))
    with pytest.raises(ValueError, match='strips of 4 columns have no convolution'):
        strips.conv(x, kernel, strips=2, **options)
