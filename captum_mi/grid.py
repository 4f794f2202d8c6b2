"""Positions of features: flatten them to locals, and resize maps between grids."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["finest", "locals_of", "n_positions", "on_grid", "resize"]

_FEW = 4  # channels, below which PyTorch interpolates slowly on CUDA, channels last or not
_LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}


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
    count = 1
    for size in positions:
        count *= size
    return count


def finest(grids: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The grid with the most positions, the first one of equals."""
    return max(grids, key=n_positions)


def resize(maps: Tensor, positions: Sequence[int]) -> Tensor:
    """Resize maps ``(N, C, *source)`` to ``(N, C, *positions)`` as densities.

    Linear interpolation where the grid grows, means over areas where it shrinks. A map without
    positions is spread evenly, and any map is averaged into a grid without positions.

    Raises:
        ValueError: if both grids have positions, but along different numbers of axes.
    """
    source, target = tuple(maps.shape[2:]), tuple(positions)
    if source == target:
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
    if all(new <= old for new, old in zip(target, source)):
        return F.interpolate(maps, target, mode="area")
    if maps.is_cuda and len(target) == 2 and not _is_fast(maps, target):
        return _as_one_image(maps, target)
    return F.interpolate(maps, target, mode=_LINEAR[len(target)], align_corners=False)


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
