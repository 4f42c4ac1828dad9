"""ROIAlign: crops of fixed size from a feature pyramid, one bilinear sample a bin.

This is the operation that the published SpineNet weights were trained with. It differs from
torchvision's and Detectron2's: one sample in the middle of each bin instead of several, and a
feature at index i stands for the place i * 2**level, not for the middle of its cell ("aligned"
is false).
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

FORMULATIONS = ('gather', 'einsum')
_CANONICAL_SIDE, _CANONICAL_LEVEL = 224.0, 4  # side of the square region that goes to this level


def roi_align(
    features: Sequence[jax.Array],
    regions: jax.Array,
    min_level: int,
    size: int,
    formulation: str = 'gather',
) -> jax.Array:
    """Features of each region, sampled at size x size places on the level that fits the region.

    Row i of a region is sampled at y0 + (i + 0.5) * height / size, columns alike, in cells of its
    level. A sample beyond the last row or column takes the last one's features. One before the
    first, which boxes inside the image never have, is extrapolated from the first two, as in the
    public code. No gradient flows to the regions.

    Args:
      features: f[B,h,w,C] a level, lowest level first; dtype of the result.
      regions: f32[B,R,4] (ymin, xmin, ymax, xmax) in pixels of the network's input. A region of
        no area samples one place size * size times.
      min_level: level of the first map.
      size: samples a side, at least 1 (box head 7, mask head 14).
      formulation: 'gather' reads four neighbours of each sample: work grows with the regions.
        'einsum' multiplies all levels, laid out as one map, by interpolation matrices: work grows
        with the maps as well, and there is no scatter in the gradient, which a TPU does slowly.
        Both give the same numbers.

    Returns:
      f[B,R,size,size,C].
    """
    if formulation not in FORMULATIONS:
        raise ValueError(f'formulation={formulation!r}: want one of {FORMULATIONS}')
    regions = lax.stop_gradient(regions.astype(jnp.float32))
    level = level_of(regions, min_level, min_level + len(features) - 1) - min_level
    cells = jnp.exp2(-(level + min_level).astype(jnp.float32))[..., None]
    rows, columns = (_samples(regions * cells, axis, size) for axis in (0, 1))
    formulate = _gather if formulation == 'gather' else _einsum
    return formulate(features, level, rows, columns)


def level_of(regions: jax.Array, min_level: int, max_level: int) -> jax.Array:
    """The level whose cells fit a region's size: floor(log2(sqrt(area) / 224)) + 4, cut to those
    that there are (Lin et al., 2017, equation 1).

    f32[...,4] to i32[...]. A region of no area belongs to the lowest level.
    """
    sides = regions[..., 2:] - regions[..., :2]
    side = jnp.sqrt(jnp.maximum(sides[..., 0] * sides[..., 1], 0.0))
    # As both public codes write it; a logarithm to base 2 rounds differently at the limits.
    exact = jnp.log(side / _CANONICAL_SIDE) / jnp.log(2.0) + _CANONICAL_LEVEL
    return jnp.clip(jnp.floor(exact), min_level, max_level).astype(jnp.int32)


def _samples(cells: jax.Array, axis: int, size: int) -> jax.Array:
    """f32[B,R,size]: where regions, in cells of their level, are sampled along an axis."""
    start, stop = cells[..., axis, None], cells[..., axis + 2, None]
    return start + (np.arange(size, dtype=np.float32) + 0.5) * (stop - start) / size


def _neighbours(samples: jax.Array, last: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Index of the neighbour below and above, and the share of the one above.

    samples f32[...], last f32[...] largest index.
    """
    below = jnp.clip(jnp.floor(samples), 0.0, last)
    above = jnp.minimum(below + 1.0, last)
    return below.astype(jnp.int32), above.astype(jnp.int32), samples - below


def _gather(features, level, rows, columns):
    """All levels laid out flat; one gather of 4 * size * size rows a region."""
    channels = features[0].shape[-1]
    shapes = [x.shape[1:3] for x in features]
    flat = jnp.concatenate([x.reshape(x.shape[0], -1, channels) for x in features], axis=1)
    starts = np.cumsum([0, *(h * w for h, w in shapes)])[:-1].astype(np.int32)
    shape = jnp.asarray(shapes, jnp.int32)[level]  # [B,R,2]
    height, width = (shape[..., axis, None] for axis in (0, 1))
    y0, y1, ly = _neighbours(rows, (height - 1).astype(jnp.float32))
    x0, x1, lx = _neighbours(columns, (width - 1).astype(jnp.float32))
    start = jnp.asarray(starts)[level][..., None]

    def corner(y, x, weight_y, weight_x):
        index = (start + y * width)[..., :, None] + x[..., None, :]  # [B,R,size,size]
        read = jax.vmap(lambda table, i: table.at[i].get(mode='promise_in_bounds'))(flat, index)
        weight = weight_y[..., :, None] * weight_x[..., None, :]
        return read * weight[..., None].astype(read.dtype)

    return (
        corner(y0, x0, 1.0 - ly, 1.0 - lx)
        + corner(y0, x1, 1.0 - ly, lx)
        + corner(y1, x0, ly, 1.0 - lx)
        + corner(y1, x1, ly, lx)
    )


def _einsum(features, level, rows, columns):
    """An interpolation matrix an axis for each region, on a mosaic of all levels.

    A matrix unit multiplies by 128 rows at a time: those of the lower half of the mosaic often cost
    nothing (80 + 40 at 640), where a product for each level would cost as much as its columns.
    """
    mosaic, origins = _mosaic(features)
    last = np.array([x.shape[1:3] for x in features], np.float32) - 1
    first, last = jnp.asarray(origins)[level], jnp.asarray(last)[level]  # [B,R,2]
    along = [
        _matrix(
            samples,
            first[..., axis, None],
            last[..., axis, None],
            mosaic.shape[1 + axis],
        ).astype(mosaic.dtype)
        for axis, samples in enumerate((rows, columns))
    ]

    def one_image(operands):
        x, along_y, along_x = operands
        part = jnp.einsum('rih,hwc->riwc', along_y, x, precision='highest')
        return jnp.einsum('rjw,riwc->rijc', along_x, part, precision='highest')

    # One image after the other: what lies between the two products is large.
    return lax.map(one_image, (mosaic, *along))


def _mosaic(features: Sequence[jax.Array]) -> tuple[jax.Array, np.ndarray]:
    """All levels in one map: the lowest above, the others side by side below it.

    Returns:
      f[B,H,W,C], zero where there is no level, and (row, column) i32[L,2] of each level's corner.
    """
    lowest, *others = features
    width = max(lowest.shape[2], sum(x.shape[2] for x in others))
    origins, bands = [(0, 0)], [_extended(lowest, lowest.shape[1], width)]
    if others:
        height = max(x.shape[1] for x in others)
        starts = np.cumsum([0, *(x.shape[2] for x in others[:-1])])
        origins += [(lowest.shape[1], start) for start in starts]
        below = [_extended(x, height, x.shape[2]) for x in others]
        bands.append(_extended(jnp.concatenate(below, axis=2), height, width))
    return jnp.concatenate(bands, axis=1), np.array(origins, np.int32)


def _extended(x: jax.Array, height: int, width: int) -> jax.Array:
    """f[B,h,w,C] with zeros below and on the right, f[B,height,width,C]."""
    return jnp.pad(x, ((0, 0), (0, height - x.shape[1]), (0, width - x.shape[2]), (0, 0)))


def _matrix(samples: jax.Array, first: jax.Array, last: jax.Array, length: int) -> jax.Array:
    """Row i holds the weights of the cells that sample i lies between.

    Args:
      samples: f32[B,R,size] in cells of their level.
      first: i32[B,R,1], where the level begins along this axis of the mosaic.
      last: f32[B,R,1], largest index of the level.
      length: of the mosaic along this axis.

    Returns:
      f32[B,R,size,length].
    """
    below, above, share = _neighbours(samples, last)
    below, above, share = ((first + below)[..., None], (first + above)[..., None], share[..., None])
    cell = jnp.arange(length)
    return jnp.where(cell == below, 1.0 - share, 0.0) + jnp.where(cell == above, share, 0.0)
