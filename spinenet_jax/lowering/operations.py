"""Convolution, max-pool, resizing and cropping of feature maps: which formulation computes each.

Every choice follows from the map's layout, the policy it carries and static shapes; the arithmetic
is in the files beside this one. All results equal those of the plain formulation but for rounding.
"""

from collections.abc import Callable
from functools import partial

import jax

from spinenet_jax.lowering import (
    cells,
    convolution_cpu,
    depthwise,
    plain,
    pointwise,
    pooling,
    strided_gradient,
)
from spinenet_jax.lowering import strips as strip_ops
from spinenet_jax.lowering.feature_map import WHOLE, FeatureMap, Layout, wanted_layout
from spinenet_jax.ops import resample, roi_align


def conv(
    x: FeatureMap,
    kernel: jax.Array,
    *,
    stride: int = 1,
    padding: str = 'same',
    dilation: int = 1,
    groups: int = 1,
) -> FeatureMap:
    """A square convolution; n rows or columns become ceil(n / stride).

    Args:
      x: of C channels, of the kernel's dtype.
      kernel: f[k,k,C/groups,D], k odd.
      stride: 1 or a power of 2, each doubling of which is a level.
      padding: of strided convolutions: 'same' or 'symmetric', see `plain.pads_of`.
      dilation, groups: see `plain.conv`.

    Returns:
      A map of D channels. It keeps the strips of `x`, also where its own level wants others
      (`settled`); the stem's comes on cells.
    """
    if x.layout.positions > 1:
        x = x.to(WHOLE)
    size = kernel.shape[0]
    formulation, layout = _conv_formulation(
        x, size, stride, dilation, groups, features=kernel.shape[3]
    )
    pads = plain.pads_of(x.size, size, stride, padding, dilation)
    data = formulation(x.data, kernel, stride=stride, pads=pads, dilation=dilation, groups=groups)
    return FeatureMap(data, x.level + _halvings(stride), x.policy, layout)


def _conv_formulation(
    x: FeatureMap, size: int, stride: int, dilation: int, groups: int, features: int
) -> tuple[Callable[..., jax.Array], Layout]:
    """The formulation of a convolution, and the layout of its result; the first that applies."""
    policy, layout = x.policy, x.layout
    ordinary = dilation == groups == 1
    # An image has a layout of its own: 3 channels fill nothing, however its columns are cut.
    if policy.stem_on_cells and x.level == 0 and (size, stride) == (7, 2) and ordinary:
        height, width = x.size
        if height % cells.SIDE == width % cells.SIDE == 0:
            strips = wanted_layout(policy, 2, x.images, width // cells.SIDE).strips
            return partial(cells.conv, strips=strips), Layout(strips, cells.POSITIONS)
    # Maps that are cut must be convolved as such, at any kernel size. They fill the registers, so
    # that neither products nor the gradient on cells would gain anything.
    if layout.strips > 1:
        return partial(strip_ops.conv, strips=layout.strips), layout
    if not ordinary:
        is_depthwise = groups == x.channels == features
        return (depthwise.conv if is_depthwise and policy.shifted_depthwise else plain.conv), layout
    # A bound of infinity is not compared, as the number of images may be symbolic.
    if size == stride == 1 and policy.products_below:
        if policy.products_below == float('inf') or x.images < policy.products_below:
            return pointwise.conv, layout
        return plain.conv, layout
    if policy.unstrided_gradient and stride == 2 and size > 1:
        return strided_gradient.conv, layout
    if policy.winograd_3x3 and size == 3:
        return convolution_cpu.conv, layout
    return plain.conv, layout


def doubling_conv(x: FeatureMap, kernel: jax.Array) -> FeatureMap:
    """A transposed 2x2 convolution of stride 2: [B,H,W,C] to [B,2*H,2*W,D].

    No two windows overlap, so that it is a 1x1 convolution to four times the channels, which are
    then laid out as squares.

    Args:
      x: not cut into strips.
      kernel: f[2,2,C,D], of which [i,j] gives row i and column j of each square.
    """
    channels, features = kernel.shape[2:]
    folded = kernel.transpose(2, 0, 1, 3).reshape(1, 1, channels, 4 * features)
    data = conv(x, folded).whole()
    batch, height, width, _ = data.shape
    data = data.reshape(batch, height, width, 2, 2, features).transpose(0, 1, 3, 2, 4, 5)
    data = data.reshape(batch, 2 * height, 2 * width, features)
    return FeatureMap(data, x.level, x.policy)


def crop(pyramid: dict[int, FeatureMap], regions: jax.Array, size: int) -> FeatureMap:
    """ROIAlign of every region, in the formulation that the policy names.

    Args:
      pyramid: {level: [B,h,w,C]}, every level from the lowest to the highest.
      regions: f32[B,R,4] in pixels of the network's input.
      size: samples a side.

    Returns:
      [B*R,size,size,C], images' regions one after the other; it counts as of the lowest level.
    """
    lowest = min(pyramid)
    policy = pyramid[lowest].policy
    maps = [x.whole() for _, x in sorted(pyramid.items())]
    crops = roi_align.roi_align(maps, regions, lowest, size, policy.roi_align)
    return FeatureMap(crops.reshape(-1, size, size, crops.shape[-1]), lowest, policy)


def max_pool(x: FeatureMap, window: int, stride: int) -> FeatureMap:
    """Max-pool with 'same' padding; n rows or columns become ceil(n / stride).

    Of equal values in a window the first, row by row, gets the gradient, in every formulation.

    Args:
      x: any map.
      window: rows and columns.
      stride: as of `conv`; where it is no power of 2, the result counts as of the level above.
    """
    level = x.level + _halvings(stride)
    if x.layout.positions > 1 and (window, stride) == (3, 2):
        strips = x.layout.strips
        data = cells.max_pool(x.data, strips)
        return FeatureMap(data, level, x.policy, Layout(strips))
    pool = pooling.shifted_max_pool if x.policy.shifted_pools else pooling.plain_max_pool
    return FeatureMap(pool(x.whole(), window, stride), level, x.policy)


def resize(x: FeatureMap, size: tuple[int, int], level: int) -> FeatureMap:
    """Nearest-neighbour resize to `size` (height, width), settled in the layout of `level`."""
    layout = wanted_layout(x.policy, level, x.images, size[1])
    if x.layout == layout and size[1] % x.size[1] == 0:  # no strip needs its neighbours
        data = resample.nearest(x.data, (size[0], size[1] // layout.strips))
        return FeatureMap(data, level, x.policy, layout)
    return FeatureMap(resample.nearest(x.whole(), size), level, x.policy).to(layout)


def _halvings(stride: int) -> int:
    """Levels up that a stride leads: 0 for 1, 1 for 2, 2 for 3 and 4."""
    return (stride - 1).bit_length()
