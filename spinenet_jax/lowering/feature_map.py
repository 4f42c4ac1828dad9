"""Feature maps that know how they lie in memory.

Models see positions and channels; how an array holds them is a feature map's own affair, and that
of the operations on feature maps (`operations.py`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax

from spinenet_jax.lowering import cells
from spinenet_jax.lowering import strips as strip_ops
from spinenet_jax.lowering.policy import PLAIN, Policy


class Layout(NamedTuple):
    """How an array holds a map [B,H,W,C].

    Attributes:
      strips: into how many strips of columns each image is cut, [B*strips,H,W/strips,C]
        (`strips.py`).
      positions: how many positions are folded into the channels; 1, or `cells.POSITIONS` for
        squares of 2x2, [B,H/2,W/2,4*C] (`cells.py`).
    """

    strips: int = 1
    positions: int = 1


WHOLE = Layout()


@partial(
    jax.tree_util.register_dataclass,
    data_fields=['data'],
    meta_fields=['level', 'policy', 'layout'],
)
@dataclasses.dataclass(frozen=True)
class FeatureMap:
    """A map f[B,H,W,C] of a network; a pytree of one array.

    Attributes:
      data: the values, laid out as `layout` says.
      level: its sides are 1/2**level of the image's.
      policy: what the device it is computed on wants.
      layout: see `Layout`.
    """

    data: jax.Array
    level: int
    policy: Policy = PLAIN
    layout: Layout = WHOLE

    @property
    def images(self) -> int:
        """B."""
        return self.data.shape[0] // self.layout.strips

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        _, height, width, _ = self.data.shape
        side = 2 if self.layout.positions > 1 else 1
        return side * height, side * width * self.layout.strips

    @property
    def channels(self) -> int:
        """C."""
        return self.data.shape[3] // self.layout.positions

    def map(self, f: Callable[[jax.Array], jax.Array]) -> FeatureMap:
        """The map after `f`, which treats every position alike: element by element, or a norm."""
        return dataclasses.replace(self, data=f(self.data))

    def map_images(self, f: Callable[[jax.Array], jax.Array]) -> FeatureMap:
        """The map after `f`, which treats all values of an image alike, of [B,*,*,*]."""
        strips, (batch, height, *rest) = self.layout.strips, self.data.shape
        data = self.data.reshape(batch // strips, strips * height, *rest)
        return dataclasses.replace(self, data=f(data).reshape(self.data.shape))

    def __add__(self, other: FeatureMap) -> FeatureMap:
        """The sum; ValueError unless both are of one level and lie alike."""
        if (self.level, self.layout) != (other.level, other.layout):
            raise ValueError(
                f'maps do not lie alike: level {self.level}, {self.layout} and level '
                f'{other.level}, {other.layout}'
            )
        return self.map(lambda data: data + other.data)

    def whole(self) -> jax.Array:
        """The plain array f[B,H,W,C]."""
        data = strip_ops.join(self.data, self.layout.strips)
        return cells.unfold(data) if self.layout.positions > 1 else data

    def with_whole(self, data: jax.Array) -> FeatureMap:
        """This map with the values of f[B,H,W,*], laid out as before."""
        return FeatureMap(data, self.level, self.policy).to(self.layout)

    def to(self, layout: Layout) -> FeatureMap:
        """The same values in another layout; ValueError for one of several positions."""
        if layout == self.layout:
            return self
        if layout.positions > 1:
            raise ValueError('only the stem convolution makes cells of positions')
        data = strip_ops.split(self.whole(), layout.strips)
        return dataclasses.replace(self, data=data, layout=layout)

    def settled(self) -> FeatureMap:
        """The same values in the layout that the policy wants at this map's level and size."""
        return self.to(wanted_layout(self.policy, self.level, self.images, self.size[1]))


def wanted_layout(policy: Policy, level: int, images: int, width: int) -> Layout:
    """How maps of `level` should lie, `images` of them on a device and `width` wide."""
    if not 0 < level <= policy.deepest_strips:  # the stem takes images as they are
        return WHOLE
    # Only here: the number of images may be symbolic, which cannot be compared.
    return Layout(strip_ops.count(images, width))
