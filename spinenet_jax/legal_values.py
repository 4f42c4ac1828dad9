"""What may stand in a field of a config: kinds of values, each with the words for a message."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

_MANY = 2**20  # more than any count needs


@dataclasses.dataclass(frozen=True)
class Legal:
    """What may stand in a field.

    Attributes:
      words: the legal values, after "must be".
      allows: whether a value is one of them.
    """

    words: str
    allows: Callable[[Any], bool]


def whole(low: int, high: int = _MANY) -> Legal:
    """A whole number between two bounds, which belong to the range."""
    return Legal(
        f'a whole number from {low} to {high}', lambda v: _is_whole(v) and low <= v <= high
    )


def number(low: float, high: float, *, above: bool = False, below: bool = False) -> Legal:
    """A finite number between two bounds.

    Args:
      low: the lower bound, which belongs to the range unless `above`.
      high: the upper bound, which belongs to the range unless `below`.
    """
    words = (
        f'a number {"above" if above else "from"} {low:g} {"and below" if below else "to"} {high:g}'
    )

    def allows(value: Any) -> bool:
        if not _is_number(value):
            return False
        return (low < value if above else low <= value) and (
            value < high if below else value <= high
        )

    return Legal(words, allows)


def switch(*, undecided: bool = False) -> Legal:
    """True or False; with `undecided` also None."""
    words = 'True, False or None' if undecided else 'True or False'
    return Legal(words, lambda v: isinstance(v, bool) or (undecided and v is None))


def choice(*options: Any) -> Legal:
    """One of the options."""
    words = f'one of {", ".join(map(str, options))}'
    return Legal(words, lambda v: any(type(v) is type(o) and v == o for o in options))


def text(*, empty: bool = True) -> Legal:
    """A string that can be part of a path."""
    return Legal(
        'text without NUL characters' + ('' if empty else ', not empty'),
        lambda v: isinstance(v, str) and '\0' not in v and (empty or v != ''),
    )


def pair_of_whole(low: int, high: int) -> Legal:
    """Two whole numbers."""
    return Legal(
        f'two whole numbers from {low} to {high}',
        lambda v: (
            isinstance(v, tuple | list)
            and len(v) == 2
            and all(_is_whole(side) and low <= side <= high for side in v)
        ),
    )


def numbers(low: float, high: float, longest: int) -> Legal:
    """A tuple of finite numbers above `low`, at most `high`; it may be empty."""
    return Legal(
        f'a tuple of up to {longest} numbers above {low:g} to {high:g}',
        lambda v: (
            isinstance(v, tuple | list)
            and len(v) <= longest
            and all(_is_number(item) and low < item <= high for item in v)
        ),
    )


def expectations() -> Legal:
    """A dictionary of (value, tolerance) by name."""

    def is_pair(item: Any) -> bool:
        return (
            isinstance(item, tuple | list)
            and len(item) == 2
            and all(map(_is_number, item))
            and item[1] >= 0
        )

    return Legal(
        "a dictionary of (value, tolerance), as {'AP': (0.44, 0.002)}",
        lambda v: (
            isinstance(v, ConfigDict | Mapping)
            and all(isinstance(name, str) for name in v)
            and all(is_pair(v[name]) for name in v)
        ),
    )


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    """A number that a float can hold."""
    if isinstance(value, float):
        return math.isfinite(value)
    return _is_whole(value) and abs(value) < 2**1000
