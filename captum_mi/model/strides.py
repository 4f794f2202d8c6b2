"""Whether a grid is an input's at a stride, and where that leaves the input's channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

__all__ = ["ChannelAxis", "channels_are_last", "downsampled"]

#: Which axis of a layer's features, or of an input, holds the channels.
ChannelAxis = Literal["first", "last"]

_ROUNDING = 2  # positions that padding may add to a grid or take away


def downsampled(grid: tuple[int, ...], size: tuple[int, ...], common: bool = True) -> bool:
    """Whether a grid is that of a size at a stride, up to two positions of rounding.

    Args:
        grid: positions of features.
        size: positions of an input.
        common: one stride for all axes, whole or not; else a whole one for each axis.
    """
    if len(grid) != len(size) or any(new > old for new, old in zip(grid, size)):
        return False
    if not common:
        strides = [max(1, round(old / new)) for new, old in zip(grid, size)]
        return all(abs(new - old / stride) < _ROUNDING
                   for new, old, stride in zip(grid, size, strides))
    return _unevenness(grid, size) <= _ROUNDING / min(size)


def channels_are_last(
    grid: tuple[int, ...], shape: tuple[int, ...], channel_axis: ChannelAxis | None
) -> bool:
    """Whether an input ``(N, *axes)``, one axis more than a grid has, keeps its channels last.

    That is so if its other axes, and not its last ones, are the grid's at a stride. Where both
    would do, it is so if its other axes are the grid itself and ``channel_axis`` says that
    features come that way, or if they suit a common stride better; not where axis 1 is shorter and
    the last ones are the grid's at a stride for each, or the last ones alone are the grid itself.
    """
    first, last = shape[2:], shape[1:-1]
    padded = all(abs(new - old) <= _ROUNDING for new, old in zip(grid, first))
    if not downsampled(grid, last):
        return False
    if grid == first:
        return grid == last and channel_axis == "last"
    if not (padded or downsampled(grid, first)):
        # A grid may have a stride for each axis, and images seldom have more channels than pixels.
        return shape[1] >= shape[-1] or not downsampled(grid, first, common=False)
    if grid == last and channel_axis == "last":
        return True
    return _unevenness(grid, last) < _unevenness(grid, first)


def _unevenness(grid: Sequence[int], size: Sequence[int]) -> float:
    """How far the strides of the axes lie apart."""
    shares = [new / old for new, old in zip(grid, size)]
    return max(shares) - min(shares)
