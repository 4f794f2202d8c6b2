"""Which layers end the stages of a network that nobody has described."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from statistics import multimode
from typing import Any

import torch
from torch import Tensor, nn

from captum_mi.grid import n_positions
from captum_mi.model.arguments import copied
from captum_mi.model.hooks import observe
from captum_mi.model.passes import Passes
from captum_mi.model.sites import Site, find_sites
from captum_mi.model.strides import ChannelAxis, downsampled
from captum_mi.probing.deciding import deciding
from captum_mi.probing.following import following

__all__ = ["stage_layers"]

_MAX_STAGES = 4
_INSIDE = 2  # levels of modules below other stages: what is deeper is a part of a block
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
    passes: Passes | None = None,
) -> list[str]:
    """The last block of every stage: of each grid of positions, the outermost last layer.

    At most the four deepest stages whose features have ``position_axes`` position axes and more
    than one position; a network of one grid, such as a vision transformer, counts as four stages
    of equally many blocks, and so does the last grid of a network of few, as of dilated
    convolutions. Passed over are

    - layers that run more than once,
    - features without a row for each example,
    - grids that are not the inputs' at a stride for each axis,
    - positions that do not follow the inputs' (:func:`captum_mi.probing.following.following`),
    - layers that the prediction does not depend on (:func:`captum_mi.probing.deciding.deciding`),
    - adaptive pooling that repeats positions of a grid smaller than its own,
    - grids found deep inside of blocks alone.

    Args:
        model: the model, in eval mode.
        inputs: one batch.
        args: additional forward arguments.
        position_axes: number of position axes of the chosen layers.
        channel_axis: see :func:`captum_mi.model.sites.find_sites`.
        map_input: index of the input that the layers must depend on; ``None`` for any.
        passes: of the model, which know y and the prediction; ``None`` for its output.
    """
    found = _candidates(model, inputs, args, position_axes, channel_axis)
    passes = passes or Passes(model, [])

    def followed(names: Iterable[str]) -> list[str]:
        sites = {name: found[name][0] for name in names}
        return following(model, sites, inputs, args, map_input)

    stages = _stages(model, {name: grid for name, (_, grid) in found.items()})
    if stages == followed(stages) == deciding(passes, stages, inputs, args):
        return stages
    names = followed(found)
    names = deciding(passes, names, inputs, args) or names  # the fit says that none does
    return _stages(model, {name: found[name][1] for name in names})


def _stages(model: nn.Module, grids: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Of layers and their grids, in the order in which they run."""
    last: dict[tuple[int, ...], str] = {}
    for name, grid in grids.items():
        if _depth(name) <= _depth(last.get(grid, name)):
            last.pop(grid, None)
            last[grid] = name
    usual = min(multimode(map(_depth, last.values())), default=0)
    last = {grid: name for grid, name in last.items() if _depth(name) <= usual + _INSIDE}
    blocks = _blocks(model, grids)
    if blocks and len(last) == 1:
        return _evenly(blocks, _MAX_STAGES)
    stages = list(last.values())
    if blocks and len(stages) < _MAX_STAGES and blocks[-1] in stages:
        i = stages.index(blocks[-1])  # several stages of one grid, as of dilated convolutions
        stages[i : i + 1] = _evenly(blocks, _MAX_STAGES)
    return stages[-_MAX_STAGES:]


def _candidates(
    model: nn.Module, inputs: tuple[Tensor, ...], args: tuple[Any, ...], position_axes: int,
    channel_axis: ChannelAxis | None,
) -> dict[str, tuple[Site, tuple[int, ...]]]:
    """Layers that run once and return features on a grid, with that grid, as they run."""
    shapes = [tuple(x.shape) for x in inputs]
    runs: dict[str, int] = {}
    found: dict[str, tuple[Site, tuple[int, ...]]] = {}

    def note(name: str, output: Any) -> None:
        runs[name] = runs.get(name, 0) + 1
        site, grid = _site(name, output, shapes, channel_axis)
        if site is None or len(grid) != position_axes or max(grid, default=1) == 1:
            return
        if isinstance(model.get_submodule(name), _ADAPTIVE):
            before = next(reversed(found.values()))[1] if found else grid
            if n_positions(grid) > n_positions(before):
                return
        found[name] = site, grid

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
    return {
        name: (site, grid) for name, (site, grid) in found.items()
        if runs[name] == 1 and (not sizes or any(
            downsampled(grid, size, common) for size in sizes for common in (True, False)))
    }


def _site(
    name: str, output: Any, shapes: list[tuple[int, ...]], channel_axis: ChannelAxis | None
) -> tuple[Site | None, tuple[int, ...]]:
    """Features that a layer returned, alone or in a tuple of one, and their positions."""
    part = output[0] if isinstance(output, tuple) and len(output) == 1 else output
    if not isinstance(part, Tensor) or part.is_nested or not part.is_floating_point():
        return None, ()
    if not 3 <= part.dim() <= 5 or len(part) != shapes[0][0]:
        return None, ()
    try:
        sites, _ = find_sites(name, output, shapes, channel_axis)
    except ValueError:  # tokens of something else than patches
        return None, ()
    return sites[0], tuple(sites[0].view(part).shape[2:])


def _blocks(model: nn.Module, grids: Mapping[str, tuple[int, ...]]) -> list[str]:
    """The sequence of like blocks on one grid that has the most parameters; none without one."""
    sequences: dict[tuple[str, type, tuple[int, ...]], list[str]] = {}
    for name, grid in grids.items():
        if not isinstance(model.get_submodule(name), nn.Embedding):
            kind = (name.rpartition(".")[0], type(model.get_submodule(name)), grid)
            sequences.setdefault(kind, []).append(name)
    long = [blocks for blocks in sequences.values() if len(blocks) > 1]

    def size(blocks: list[str]) -> int:
        return sum(p.numel() for name in blocks for p in model.get_submodule(name).parameters())

    blocks = max(long, key=size, default=[])
    return blocks if blocks and size(blocks) else []


def _evenly(blocks: list[str], most: int) -> list[str]:
    """The last of each of up to so many equal parts."""
    count = min(most, len(blocks))
    return [blocks[len(blocks) * (i + 1) // count - 1] for i in range(count)]


def _depth(name: str) -> int:
    return name.count(".")
