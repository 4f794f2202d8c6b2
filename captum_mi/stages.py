"""Which layers end the stages of a network that nobody has described."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from captum_mi.hooks import observe
from captum_mi.sites import ChannelAxis, Site, downsampled, find_sites, position_sizes

__all__ = ["stage_layers"]

_MAX_STAGES = 4


def stage_layers(
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    args: tuple[Any, ...],
    position_axes: int,
    channel_axis: ChannelAxis | None = None,
) -> list[str]:
    """The last block of every stage: of each grid of positions, the outermost last layer.

    At most the four deepest stages whose features have ``position_axes`` position axes and more
    than one position; a network of one grid, such as a vision transformer, counts as four stages
    of equally many blocks. Layers that run more than once are passed over, and so are features of
    another grid than the inputs', divided by the same stride along each axis.

    Args:
        model: the model, in eval mode.
        inputs: one batch.
        args: additional forward arguments.
        position_axes: number of position axes of the chosen layers.
        channel_axis: see :func:`captum_mi.sites.find_sites`.
    """
    sizes = position_sizes(inputs)
    sizes = [size for size in sizes if len(size) == position_axes]
    runs: dict[str, int] = {}
    grids: dict[str, tuple[int, ...]] = {}

    def note(name: str, output: Any) -> None:
        runs[name] = runs.get(name, 0) + 1
        if not isinstance(output, Tensor) or not output.is_floating_point():
            return
        if not 3 <= output.dim() <= 5:
            return
        site: Site = find_sites(name, output, sizes, channel_axis)[0][0]
        grid = tuple(site.view(output).shape[2:])
        if len(grid) == position_axes and max(grid) > 1:
            grids[name] = grid

    names = [name for name, _ in model.named_modules() if name]
    with torch.no_grad(), observe(model, names, note):
        model(*inputs, *args)
    usable = [
        name for name, grid in grids.items()
        if runs[name] == 1 and (not sizes or any(downsampled(grid, size) for size in sizes))
    ]
    last: dict[tuple[int, ...], str] = {}
    for name in usable:
        grid = grids[name]
        if _depth(name) <= _depth(last.get(grid, name)):
            last.pop(grid, None)
            last[grid] = name
    if len(last) == 1:
        return _evenly(model, usable) or list(last.values())
    return list(last.values())[-_MAX_STAGES:]


def _evenly(model: nn.Module, names: list[str]) -> list[str]:
    """Four of the outermost sequence of like blocks, evenly spaced; none if it has fewer."""
    sequences: dict[tuple[str, type], list[str]] = {}
    for name in names:
        kind = (name.rpartition(".")[0], type(model.get_submodule(name)))
        sequences.setdefault(kind, []).append(name)
    long = [blocks for blocks in sequences.values() if len(blocks) >= _MAX_STAGES]
    if not long:
        return []
    blocks = min(long, key=lambda blocks: _depth(blocks[0]))
    return [blocks[len(blocks) * (i + 1) // _MAX_STAGES - 1] for i in range(_MAX_STAGES)]


def _depth(name: str) -> int:
    return name.count(".")
