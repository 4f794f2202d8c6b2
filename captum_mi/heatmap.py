"""Maps over positions -> attributions of an input's shape."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from captum_mi.grid import finest, n_positions, resize
from captum_mi.sites import ChannelAxis, channels_are_last

__all__ = [
    "Unit", "check_map_input", "combine", "find_map_input", "first_spatial_axis", "per_unit",
    "to_input", "zeros_for",
]

Unit = Literal["nats", "bits"]


def per_unit(unit: Unit) -> float:
    """Factor from nats to a unit.

    Raises:
        ValueError: for an unknown unit.
    """
    if unit not in ("nats", "bits"):
        raise ValueError(f"unit must be 'nats' or 'bits'; got {unit!r}")
    return 1.0 if unit == "nats" else 1 / math.log(2)


def combine(
    maps: Sequence[Tensor], positions: Sequence[int], offsets: Sequence[Sequence[float]] = ()
) -> Tensor:
    """Mean of maps ``(N, M, *positions_l)`` after resizing each to one grid, as densities.

    Args:
        maps: one for each layer.
        positions: of the grid.
        offsets: of each layer's positions (:func:`captum_mi.grid.resize`); none: without.
    """
    resized = [resize(one, positions, offset)
               for one, offset in zip(maps, offsets or [()] * len(maps))]
    total = resized[0]
    for one in resized[1:]:
        total = total + one
    return total / len(maps)


def to_input(
    maps: Sequence[Tensor], like: Tensor, channel_axis: ChannelAxis | None = None,
    input_channel_axis: ChannelAxis | None = None, offsets: Sequence[Sequence[float]] = (),
) -> Tensor:
    """Attributions of the shape of an input from the maps of several layers.

    Each map is resized to the input's grid as a density, the maps are averaged, scaled by
    (positions of the finest layer / positions of the input), and shared equally by the input's
    channels: the sum over an example is the total over positions. Local terms overlap, so that
    total is not the information of the whole input.

    Args:
        maps: ``(N, 1, *positions_l)``, one per layer.
        like: the input, ``(N, C, *spatial)``, ``(N, *spatial, C)`` or ``(N, *spatial)``.
        channel_axis: where features have their channels, if it is known.
        input_channel_axis: where the input has them, if it is known.
        offsets: of each layer's positions (:mod:`captum_mi.placing`); none: without.
    """
    grid = finest([tuple(one.shape[2:]) for one in maps])
    start = first_spatial_axis(like, grid, channel_axis, input_channel_axis)
    if like.dim() == len(grid) + 2 and start == 1:
        channels_first = to_input(
            maps, like.movedim(-1, 1), input_channel_axis="first", offsets=offsets)
        return channels_first.movedim(1, -1).contiguous()
    channels, spatial = _channels_and_grid(like, len(grid))
    scale = n_positions(grid) / n_positions(spatial) / channels
    parts = [torch.cat([one, -one], 1).clamp_min(0) for one in maps]
    positive, negative = _density(parts, spatial, offsets).split(1, 1)
    density = scale * (positive - negative)
    shaped = density.expand(-1, channels, *spatial) if like.dim() > len(spatial) + 1 else density
    dtype = like.dtype if like.is_floating_point() else density.dtype
    return shaped.reshape(like.shape).to(dtype).contiguous()


def _density(
    maps: Sequence[Tensor], positions: Sequence[int], offsets: Sequence[Sequence[float]]
) -> Tensor:
    """Maps without negative values, combined, with the mean that they have on their own grids."""
    density = combine(maps, positions, offsets)
    wanted = sum(one.flatten(2).mean(2) for one in maps) / len(maps)
    found = density.flatten(2).mean(2).clamp_min(torch.finfo(density.dtype).tiny)
    return density * (wanted / found).view(*density.shape[:2], *[1] * len(positions))


def first_spatial_axis(
    like: Tensor, grid: Sequence[int], channel_axis: ChannelAxis | None,
    input_channel_axis: ChannelAxis | None,
) -> int:
    """Where the axes begin that maps of a grid belong to, in an input: 2, or 1 if no channels
    come before them."""
    if like.dim() < len(grid) + 2:
        return 1
    if input_channel_axis is not None:
        return 1 if input_channel_axis == "last" else 2
    return 1 if channels_are_last(tuple(grid), tuple(like.shape), channel_axis) else 2


def _channels_and_grid(like: Tensor, axes: int) -> tuple[int, tuple[int, ...]]:
    if like.dim() == axes + 2:
        return like.shape[1], tuple(like.shape[2:])
    return 1, tuple(like.shape[1:])


def check_map_input(map_input: int, n_inputs: int) -> None:
    """Whether there is such an input.

    Raises:
        ValueError: if there is none.
    """
    if not 0 <= map_input < n_inputs:
        raise ValueError(f"map_input={map_input} is out of range for {n_inputs} inputs")


def find_map_input(inputs: tuple[Tensor, ...], axes: int, map_input: int | None) -> int:
    """Index of the input that the map belongs to.

    Inputs ``(N, C, *spatial)`` with as many spatial axes as the features match; failing those,
    inputs ``(N, *spatial)`` without a channel axis.

    Raises:
        ValueError: if none matches, or several do and ``map_input`` does not say which.
    """
    if map_input is not None:
        check_map_input(map_input, len(inputs))
        if inputs[map_input].dim() not in (axes + 1, axes + 2):
            raise ValueError(
                f"map_input={map_input} has shape {tuple(inputs[map_input].shape)}, which does "
                f"not match features of {axes} position axes"
            )
        return map_input
    for rank in (axes + 2, axes + 1):
        matching = [i for i, x in enumerate(inputs) if x.dim() == rank]
        if len(matching) == 1:
            return matching[0]
        if matching:
            raise ValueError(
                f"inputs {matching} all match the features' {axes} position axes; pass "
                "map_input= to say which one the map belongs to"
            )
    raise ValueError(
        f"no input matches features of {axes} position axes; input shapes are "
        f"{[tuple(x.shape) for x in inputs]}. LayerInfoBottleneckAttribution gives the maps at "
        "the layer's own resolution, with any weighting but 'shares', which removes blocks of an "
        "input"
    )


def zeros_for(x: Tensor) -> Tensor:
    """Zero attributions of an input's shape, floating-point for integer inputs too."""
    return torch.zeros_like(x, dtype=None if x.is_floating_point() else torch.get_default_dtype())
