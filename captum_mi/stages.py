"""Which layers end the stages of a network that nobody has described."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from captum_mi.batches import copied
from captum_mi.grid import n_positions
from captum_mi.hooks import observe
from captum_mi.sites import ChannelAxis, downsampled, find_sites

__all__ = ["depending", "stage_layers"]

_MAX_STAGES = 4
_ADAPTIVE = (
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
    nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d,
)


def stage_layers(
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    args: tuple[Any, ...],
    position_axes: int,
    channel_axis: ChannelAxis | None = None,
    map_input: int | None = None,
) -> list[str]:
    """The last block of every stage: of each grid of positions, the outermost last layer.

    At most the four deepest stages whose features have ``position_axes`` position axes and more
    than one position; a network of one grid, such as a vision transformer, counts as four stages
    of equally many blocks. Layers that run more than once are passed over, and so are features
    that have not a row for each example, or another grid than the inputs' at a stride for each
    axis, and adaptive pooling that repeats positions of a grid smaller than its own.

    Args:
        model: the model, in eval mode.
        inputs: one batch.
        args: additional forward arguments.
        position_axes: number of position axes of the chosen layers.
        channel_axis: see :func:`captum_mi.sites.find_sites`.
        map_input: index of the input that the layers must depend on; ``None`` for any.
    """
    shapes = [tuple(x.shape) for x in inputs]
    runs: dict[str, int] = {}
    grids: dict[str, tuple[int, ...]] = {}

    def note(name: str, output: Any) -> None:
        runs[name] = runs.get(name, 0) + 1
        grid = _grid(name, output, shapes, channel_axis)
        if len(grid) != position_axes or max(grid, default=1) == 1:
            return
        if isinstance(model.get_submodule(name), _ADAPTIVE):
            before = next(reversed(grids.values()), grid)
            if n_positions(grid) > n_positions(before):
                return
        grids[name] = grid

    names = [
        name for name, module in model.named_modules()
        if name and not isinstance(module, torch.jit.ScriptModule)  # cannot be hooked
    ]
    with torch.no_grad(), observe(model, names, note):
        model(*copied(inputs), *copied(args))
    sizes = [
        shape[start:stop] for shape in shapes for start, stop in ((2, None), (1, -1), (1, None))
    ]
    sizes = [size for size in sizes if len(size) == position_axes]  # none of a flat input
    usable = [
        name for name, grid in grids.items()
        if runs[name] == 1 and (not sizes or any(
            downsampled(grid, size, common) for size in sizes for common in (True, False)))
    ]
    if map_input is not None and len(inputs) > 1:
        usable = depending(model, usable, inputs, args, map_input)
    last: dict[tuple[int, ...], str] = {}
    for name in usable:
        grid = grids[name]
        if _depth(name) <= _depth(last.get(grid, name)):
            last.pop(grid, None)
            last[grid] = name
    if len(last) == 1:
        return _evenly(model, usable) or list(last.values())
    return list(last.values())[-_MAX_STAGES:]


@torch.no_grad()
def depending(
    model: nn.Module, names: Sequence[str], inputs: tuple[Tensor, ...], args: tuple[Any, ...],
    i: int,
) -> list[str]:
    """Which layers return something else when input ``i`` is turned round."""

    def sums_of(given: tuple[Tensor, ...]) -> dict[str, list[Tensor]]:
        seen: dict[str, list[Tensor]] = {name: [] for name in names}

        def note(name: str, output: Any) -> None:
            rows = (output[0] if isinstance(output, tuple) else output).flatten(1).double()
            places = torch.arange(rows.shape[1], device=rows.device, dtype=rows.dtype)
            seen[name].append(rows @ places.cos())

        with observe(model, names, note):
            model(*copied(given), *copied(args))
        return seen

    turned = inputs[i].flip(tuple(range(1, inputs[i].dim())))
    before, after = sums_of(inputs), sums_of((*inputs[:i], turned, *inputs[i + 1 :]))
    return [name for name in names if not all(map(torch.equal, before[name], after[name]))]


def _grid(
    name: str, output: Any, shapes: list[tuple[int, ...]], channel_axis: ChannelAxis | None
) -> tuple[int, ...]:
    """Positions of what a layer returned, alone or in a tuple of one; none if it has none."""
    if isinstance(output, tuple) and len(output) == 1:
        output = output[0]
    if not isinstance(output, Tensor) or output.is_nested or not output.is_floating_point():
        return ()
    if not 3 <= output.dim() <= 5 or len(output) != shapes[0][0]:
        return ()
    try:
        sites, _ = find_sites(name, output, shapes, channel_axis)
    except ValueError:  # tokens of something else than patches
        return ()
    return tuple(sites[0].view(output).shape[2:])


def _evenly(model: nn.Module, names: list[str]) -> list[str]:
    """Up to four of the outermost sequence of like blocks, evenly spaced; none without one."""
    sequences: dict[tuple[str, type], list[str]] = {}
    for name in names:
        kind = (name.rpartition(".")[0], type(model.get_submodule(name)))
        sequences.setdefault(kind, []).append(name)
    long = [blocks for blocks in sequences.values() if len(blocks) > 1]
    if not long:
        return []
    blocks = min(long, key=lambda blocks: _depth(blocks[0]))
    count = min(_MAX_STAGES, len(blocks))
    return [blocks[len(blocks) * (i + 1) // count - 1] for i in range(count)]


def _depth(name: str) -> int:
    return name.count(".")
