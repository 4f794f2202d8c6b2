"""Maps over positions -> attributions of an input's shape."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from captum_mi.choices import check_choice
from captum_mi.grid import Place, finest, n_positions, resize, without_offsets

__all__ = ["Unit", "combine", "joined", "per_unit", "to_input", "zeros_for"]

Unit = Literal["nats", "bits"]


def per_unit(unit: Unit) -> float:
    """Factor from nats to a unit.

    Raises:
        ValueError: for an unknown unit.
    """
    check_choice("unit", unit, Unit)
    return 1.0 if unit == "nats" else 1 / math.log(2)


def combine(
    maps: Sequence[Tensor], positions: Sequence[int], places: Sequence[Sequence[Place]] = (),
    onto: Sequence[Place] = (),
) -> Tensor:
    """Mean of maps ``(N, M, *positions_l)`` after resizing each to one grid, as densities.

    Args:
        maps: one for each layer.
        positions: of the grid.
        places: of each layer's positions (:func:`captum_mi.grid.resize`); none: without.
        onto: of the positions of the grid; none: without.
    """
    resized = [resize(one, positions, where, onto)
               for one, where in zip(maps, places or [()] * len(maps))]
    total = resized[0]
    for one in resized[1:]:
        total = total + one
    return total / len(maps)


def joined(maps: Sequence[Tensor], places: Sequence[Sequence[Place]]) -> Tensor:
    """Mean of maps of layers on the finest of their grids.

    Layers are combined as if their positions had no offsets, but as far apart as they lie, as
    those of convolutions that leave out the edges.

    Args:
        maps: one for each layer, ``(N, M, *positions_l)``.
        places: of each layer's positions.
    """
    grid = finest([tuple(one.shape[2:]) for one in maps])
    apart = [without_offsets(of) for of in places]
    onto = next(of for one, of in zip(maps, apart) if tuple(one.shape[2:]) == grid)
    return combine(maps, grid, apart, onto)


def to_input(
    maps: Sequence[Tensor], like: Tensor, first_axis: int = 2,
    places: Sequence[Sequence[Place]] = (),
) -> Tensor:
    """Attributions of the shape of an input from the maps of several layers.

    Each map is resized to the input's grid as a density, the maps are averaged, scaled by
    (positions of the finest layer / positions of the input), and shared equally by the input's
    channels: the sum over an example is the total over positions. Local terms overlap, so that
    total is not the information of the whole input.

    Args:
        maps: ``(N, 1, *positions_l)``, one per layer.
        like: the input, ``(N, C, *spatial)``, ``(N, *spatial, C)`` or ``(N, *spatial)``.
        first_axis: where the input's positions begin: 1 if channels come last, or none do.
        places: of each layer's positions (:mod:`captum_mi.probing.placing`); none: without.
    """
    grid = finest([tuple(one.shape[2:]) for one in maps])
    if like.dim() == len(grid) + 2 and first_axis == 1:
        channels_first = to_input(maps, like.movedim(-1, 1), places=places)
        return channels_first.movedim(1, -1).contiguous()
    channels, spatial = _channels_and_grid(like, len(grid))
    scale = n_positions(grid) / n_positions(spatial) / channels
    parts = [torch.cat([one, -one], 1).clamp_min(0) for one in maps]
    positive, negative = _density(parts, spatial, places).split(1, 1)
    density = scale * (positive - negative)
    shaped = density.expand(-1, channels, *spatial) if like.dim() > len(spatial) + 1 else density
    dtype = like.dtype if like.is_floating_point() else density.dtype
    return shaped.reshape(like.shape).to(dtype).contiguous()


def _density(
    maps: Sequence[Tensor], positions: Sequence[int], places: Sequence[Sequence[Place]]
) -> Tensor:
    """Maps without negative values, combined, with the mean that they have on their own grids."""
    density = combine(maps, positions, places)
    wanted = sum(one.flatten(2).mean(2) for one in maps) / len(maps)
    found = density.flatten(2).mean(2).clamp_min(torch.finfo(density.dtype).tiny)
    return density * (wanted / found).view(*density.shape[:2], *[1] * len(positions))


def _channels_and_grid(like: Tensor, axes: int) -> tuple[int, tuple[int, ...]]:
    if like.dim() == axes + 2:
        return like.shape[1], tuple(like.shape[2:])
    return 1, tuple(like.shape[1:])


def zeros_for(x: Tensor) -> Tensor:
    """Zero attributions of an input's shape, floating-point for integer inputs too."""
    return torch.zeros_like(x, dtype=None if x.is_floating_point() else torch.get_default_dtype())
