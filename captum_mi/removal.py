"""Random sets of positions, and inputs without them: what the shares in a decision learn from."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_mi import ranks
from captum_mi.grid import n_positions
from captum_mi.moments import channel_view
from captum_mi.sites import ChannelAxis, channels_are_last

__all__ = ["channels_first", "random_positions", "without"]

_MEAN = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def random_positions(n: int, grid: Sequence[int], device: torch.device) -> Tensor:
    """Random sets of positions, ``(n, 1, *grid)``, boolean.

    A set's share of the positions is the square of a uniform number: few more often than many.
    It is scattered, or lumps of up to a sixth or a quarter of the grid's shortest side, wherever
    they fall.
    """
    shortest = min(grid)
    sides = (1, -(-shortest // 6), -(-shortest // 4))
    side = sides[int(torch.randint(len(sides), ()))]
    like = torch.empty(n, 1, *(length + side - 1 for length in grid), device=device)
    field = _MEAN[len(grid)](ranks.randn_rows(like), side, stride=1)
    rank = field.flatten(1).argsort(1).argsort(1)
    size = ranks.rand_rows(n, 1, device).square() * n_positions(grid)
    return (rank < size).view_as(field)


def channels_first(
    x: Tensor, grid: Sequence[int], channel_axis: ChannelAxis | None = None
) -> Tensor:
    """View an input ``(N, C, *spatial)``, ``(N, *spatial, C)`` or ``(N, *spatial)`` as the first.

    Args:
        x: the input.
        grid: positions of the features that it is seen with.
        channel_axis: see :func:`captum_mi.sites.channels_are_last`.
    """
    if x.dim() == len(grid) + 1:
        return x[:, None]
    if channels_are_last(tuple(grid), tuple(x.shape), channel_axis):
        return x.movedim(-1, 1)
    return x


def without(
    x: Tensor, removed: Tensor, reference: Tensor, channel_axis: ChannelAxis | None = None
) -> Tensor:
    """An input whose values at some positions are the reference's.

    Args:
        x: input ``(N, C, *spatial)``, ``(N, *spatial, C)`` or ``(N, *spatial)``; not changed.
        removed: ``(N, 1, *grid)``, boolean: a position stands for the part of the input below.
        reference: what removed values become, ``(C,)``.
        channel_axis: see :func:`captum_mi.sites.channels_are_last`.
    """
    viewed = channels_first(x, removed.shape[2:], channel_axis)
    gone = F.interpolate(removed.to(x.dtype), viewed.shape[2:]).bool()
    filled = torch.where(gone, channel_view(reference.to(x.dtype), viewed), viewed)
    if x.dim() == removed.dim() - 1:
        return filled[:, 0]
    return filled if viewed is x else filled.movedim(1, -1)
