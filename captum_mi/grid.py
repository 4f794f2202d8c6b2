"""Positions of features: flatten them to locals, and resize maps between grids."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "Lattice", "Place", "centres", "finest", "locals_of", "n_positions", "on_grid", "resize",
    "without_offsets",
]

_FEW = 4  # channels, below which PyTorch interpolates slowly on CUDA, channels last or not
_TINY = 1e-9  # of the input: a margin of nothing
_LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}


class Place(NamedTuple):
    """Where positions lie along an axis of an input that their cells divide equally.

    Attributes:
        offset: how far beyond the middle of the input their middle lies, in cells.
        scale: how far one lies from the next, in cells.
    """

    offset: float = 0.0
    scale: float = 1.0


class Lattice(NamedTuple):
    """Where positions lie along an axis, on a grid and in an input of the lengths that a fit saw.

    Attributes:
        place: there.
        length: of the grid.
        size: of the input.
    """

    place: Place
    length: int
    size: int

    def at(self, length: int, size: int) -> Place:
        """On a grid and in an input of other lengths.

        Positions stay as many samples apart, and as far from the start of the input, as those of a
        convolution do. They keep their shares of the input if its margin would otherwise change by
        more than a position (by half of one, on a grid that is as long as before), as where a
        model brings its inputs to one size.
        """
        spacing = self.place.scale * self.size / self.length
        left = (size - length * spacing) - (self.size - self.length * spacing)
        most = spacing / 2 if length == self.length else spacing
        if size == self.size or min(length, self.length) == 1 or abs(left) > most:
            return self.place
        first = float(centres(self.length, self.place)[0]) * self.size
        scale = spacing * length / size
        return Place((first / size - 0.5) * length + (length - 1) / 2 * scale, scale)


def without_offsets(places: Sequence[Place]) -> tuple[Place, ...]:
    """How far positions lie apart alone."""
    return tuple(Place(scale=place.scale) for place in places)


def centres(n: int, place: Place, device: torch.device | None = None) -> Tensor:
    """Where each of ``n`` positions lies, ``(n,)`` in float64, in shares of the input."""
    steps = torch.arange(n, dtype=torch.float64, device=device) + 0.5 - n / 2
    return (steps * place.scale + place.offset) / n + 0.5


def locals_of(features: Tensor) -> Tensor:
    """Local representations ``(N, P, C)`` of features ``(N, C, *positions)``.

    Features ``(N, C)`` are one position: ``(N, 1, C)``.
    """
    return features.flatten(2).transpose(1, 2) if features.dim() > 2 else features[:, None]


def on_grid(values: Tensor, positions: Sequence[int]) -> Tensor:
    """Values of locals ``(N, P, M)`` as maps ``(N, M, *positions)``."""
    channels_first = values.transpose(1, 2)
    return channels_first.unflatten(2, tuple(positions)) if positions else channels_first[..., 0]


def n_positions(positions: Sequence[int]) -> int:
    """Number of positions of a grid; the empty grid of ``(N, C)`` features has one."""
    return math.prod(positions)


def finest(grids: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The grid with the most positions, the first one of equals."""
    return max(grids, key=n_positions)


def resize(
    maps: Tensor, positions: Sequence[int], places: Sequence[Place] = (),
    onto: Sequence[Place] = (),
) -> Tensor:
    """Resize maps ``(N, C, *source)`` to ``(N, C, *positions)`` as densities.

    Linear interpolation where the grid grows, means over areas where it shrinks. A map without
    positions is spread evenly, and any map is averaged into a grid without positions.

    Args:
        maps: on a grid that divides an input into equal cells.
        positions: of the grid that is wanted.
        places: where the maps' positions lie along each axis; none given: in the middles of
            cells.
        onto: the same of the positions that are wanted.

    Raises:
        ValueError: if both grids have positions, but along different numbers of axes.
    """
    source, target = tuple(maps.shape[2:]), tuple(positions)
    even = (Place(),) * len(target)
    places, onto = tuple(places) or even, tuple(onto) or even
    moved = places != even or onto != even
    if source == target and not moved:
        return maps
    if not target:
        return maps.flatten(2).mean(2)
    if not source:
        return maps[(..., *[None] * len(target))].expand(*maps.shape, *target)
    if len(source) != len(target):
        raise ValueError(
            f"cannot resize between positions {source} and {target}: layers that are combined "
            "need the same number of position axes, or none"
        )
    if moved:
        return _moved(maps, target, places, onto)
    if all(new <= old for new, old in zip(target, source)):
        return F.interpolate(maps, target, mode="area")
    if maps.is_cuda and len(target) == 2 and not _is_fast(maps, target):
        return _as_one_image(maps, target)
    return F.interpolate(maps, target, mode=_LINEAR[len(target)], align_corners=False)


def _moved(
    maps: Tensor, positions: tuple[int, ...], places: Sequence[Place], onto: Sequence[Place]
) -> Tensor:
    """Resize along one axis after the other, as the places say."""
    for axis, new in enumerate(positions):
        old = maps.shape[axis + 2]
        asked = old, new, places[axis], onto[axis], maps.device, maps.dtype
        # What is recorded must find its weights in memory of its own, whoever else comes.
        recorded = maps.is_cuda and torch.cuda.is_current_stream_capturing()
        weights = _weights.__wrapped__(*asked) if recorded else _weights(*asked)
        maps = (maps.movedim(axis + 2, -1) @ weights).movedim(-1, axis + 2)
    return maps


@lru_cache(maxsize=64)
def _weights(
    old: int, new: int, place: Place, onto: Place, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """What each of the new positions takes of each old one, ``(old, new)``: sums of 1, or, towards
    the edges of an input that no position lies at, of less."""
    sources, targets = centres(old, place, device)[:, None], centres(new, onto, device)
    middle, half = place.offset / old + 0.5, (old - 1) / 2 * place.scale / old
    first, last = middle - half, middle + half
    inside = targets.clamp(first, last)  # ends go on
    between, wide = place.scale / old, onto.scale / new
    if wide <= between:  # as far as the next position it falls to 0
        taken = (1 - (inside - sources).abs() / between).clamp_min(0)
    else:
        start = torch.maximum(sources - between / 2, inside - wide / 2)
        end = torch.minimum(sources + between / 2, inside + wide / 2)
        taken = (end - start).clamp_min(0)
    taken = taken / taken.sum(0)
    if place.scale < 1:  # fewer and fewer positions see what lies outside
        before, after = (max(end - between / 2, _TINY) for end in (first, 1 - last))
        margin = after + (before - after) * (targets < inside).double()
        outside = (targets - inside).abs() - between / 2
        taken = taken * (1 - outside.clamp_min(0) / margin).clamp(0, 1)
    return taken.to(dtype)


def _is_fast(maps: Tensor, positions: tuple[int, ...]) -> bool:
    """Whether PyTorch interpolates with a thread for each number, or cannot be helped.

    On CUDA it has one for each position only, unless channels are last, and four at least.
    """
    if maps.shape[0] * maps.shape[1] * n_positions(positions) >= 2**31:
        return True
    return maps.shape[1] >= _FEW and maps.is_contiguous(memory_format=torch.channels_last)


def _as_one_image(maps: Tensor, positions: tuple[int, ...]) -> Tensor:
    """Bilinear interpolation of all channels of all examples as the channels of one image."""
    n, channels = maps.shape[:2]
    image = maps.flatten(0, 1)[None].contiguous(memory_format=torch.channels_last)
    larger = F.interpolate(image, positions, mode="bilinear", align_corners=False)
    return larger[0].contiguous().unflatten(0, (n, channels))
