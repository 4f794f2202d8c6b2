"""Which layers see an input, and whether their positions are the input's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from captum_mi.model.arguments import copied, of_few, replaced
from captum_mi.model.hooks import OnRepeat, observe
from captum_mi.model.sites import Site
from captum_mi.model.strides import downsampled

__all__ = ["following", "seeing"]

_EXAMPLES = 8  # at most, to find out
_SEQUENCES = 64  # the same; whether attention keeps places differs from one to the next
_ASTRAY = 2  # times what changes may lie further on along other axes, as by chance
_MOVED = 0.005  # of the grid: what changes must lie so much further on, at least
_FEW = 2  # positions along each axis: whatever changes may lie anywhere
_STRAYED = 0.1  # of the grid: what changes lies so much further on along another axis
_MOVED_ALONE = 0.05  # the same for a single axis, with no other to compare it with


@torch.no_grad()
def seeing(
    model: nn.Module, names: Sequence[str], inputs: tuple[Tensor, ...], args: tuple[Any, ...],
    i: int, on_repeat: OnRepeat = "error",
) -> list[str]:
    """Which layers return something else when input ``i`` is turned round, in the call that counts
    of those that run several times; in any call where that is an error."""

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
    before = sums_of(inputs)
    try:
        after = sums_of(replaced(inputs, i, turned))
    except Exception:  # of the user's code: nothing is known
        return list(names)
    counted = {"first": slice(0, 1), "last": slice(-1, None), "error": slice(None)}[on_repeat]
    return [name for name in names
            if not all(map(torch.equal, before[name][counted], after[name][counted]))]


@torch.no_grad()
def following(
    model: nn.Module, sites: Mapping[str, Site], inputs: tuple[Tensor, ...],
    args: tuple[Any, ...], map_input: int | None = None,
) -> list[str]:
    """Layers whose positions follow those of an input.

    The first or the last half of the input along one of its axes is turned round. If what changes
    in a layer lies further on along its first axis of positions, and hardly along others, as the
    half of one of the input's axes does, and so on for its next axis and the input's next, then
    positions are places in the input. Weights, tables, hidden units and matrices of
    attention do not follow. Grids that are an image's at a common stride pass unless what changes
    strays along another axis. Inputs with fewer axes tell nothing, nor do those that turning round
    leaves as they are, or that the model cannot take then: all layers pass.

    Args:
        model: the model, in eval mode.
        sites: layer -> its features, all with the same number of position axes; each layer runs
            once.
        inputs: one batch.
        args: additional forward arguments.
        map_input: index of the input; ``None`` for any.
    """
    if not sites:
        return []
    count = max(site.position_axes for site in sites.values())
    most = _EXAMPLES if count > 1 else _SEQUENCES
    few, few_args, before = of_few(partial(_mixed_layers, model, sites), inputs, args, most)
    chosen = range(len(few)) if map_input is None else [map_input]
    telling = [i for i in chosen if few[i].dim() > count]
    found: set[str] = set()
    for i in telling:
        moved = _moved(model, sites, few, few_args, i, before)
        if moved is None:
            return list(sites)
        for name, one in moved.items():
            grid = tuple(before[name].shape[1:-1])
            is_image = _is_image_of(few[i], sites[name], grid)
            if _follows(one, grid) or (is_image and not _strays(one, grid)):
                found.add(name)
    return [name for name in sites if name in found or not telling]


def _moved(
    model: nn.Module, sites: Mapping[str, Site], inputs: tuple[Tensor, ...],
    args: tuple[Any, ...], i: int, before: dict[str, Tensor],
) -> dict[str, Tensor] | None:
    """How much further on along each of a layer's axes what changes lies, if it is the last half
    of an input's axis instead of the first: ``(axes of the input, axes of the layer)``.

    ``None`` if a half is the same when it is turned round, or the model cannot take it.
    """
    moved: dict[str, list[Tensor]] = {name: [] for name in before}
    for axis in range(1, inputs[i].dim()):
        centres = []
        for half in _halves_turned(inputs[i], axis):
            if torch.equal(half, inputs[i]) and inputs[i].shape[axis] > 1:
                return None
            try:
                after = _mixed_layers(model, sites, replaced(inputs, i, half), args)
            except Exception:  # of the user's code, as of a sequence that became empty
                return None
            centres.append({name: _centre((one - before[name]).square().sum(-1))
                            for name, one in after.items() if name in before})
        first, last = centres
        for name in first.keys() & last.keys():
            moved[name].append(last[name] - first[name])
    return {name: torch.stack(one) for name, one in moved.items()
            if len(one) == inputs[i].dim() - 1}


def _halves_turned(x: Tensor, axis: int) -> Iterator[Tensor]:
    """The first half of an axis turned round, and examples with it; the last half."""
    turned = x.flip(tuple(range(x.dim())))
    half = x.shape[axis] // 2
    sizes = [half, x.shape[axis] - half]
    (first, last), (first_turned, last_turned) = (one.split(sizes, axis) for one in (x, turned))
    yield torch.cat([first_turned, last], axis)
    yield torch.cat([first, last_turned], axis)


def _mixed_layers(
    model: nn.Module, sites: Mapping[str, Site], inputs: tuple[Tensor, ...], args: tuple[Any, ...]
) -> dict[str, Tensor]:
    """Each layer's features, its channels mixed: ``(N, *positions, M)``."""
    seen: dict[str, Tensor] = {}

    def note(name: str, output: Any) -> None:
        site = sites[name]
        view = site.view(output if site.part is None else output[site.part])
        seen[name] = _mixed(view.flatten(2)).unflatten(1, view.shape[2:])

    with observe(model, list(sites), note):
        model(*copied(inputs), *copied(args))
    return seen


def _mixed(features: Tensor) -> Tensor:
    """Features ``(N, C, P)`` with channels mixed to fewer, more for few positions: ``(N, P, M)``.
    """
    channels, count = features.shape[1], max(4, min(64, 4096 // features.shape[2]))
    places = torch.arange(channels, device=features.device, dtype=torch.float64)
    speeds = torch.arange(1, count + 1, device=features.device, dtype=torch.float64).sqrt()
    return features.double().mT @ torch.outer(places, speeds).cos()


def _centre(energy: Tensor) -> Tensor:
    """Where energy ``(N, *positions)`` lies along each axis, from 0 to 1; NaN without any."""
    centres = []
    for axis in range(1, energy.dim()):
        length = energy.shape[axis]
        places = (torch.arange(length, device=energy.device, dtype=energy.dtype) + 0.5) / length
        along = energy.movedim(axis, -1).flatten(0, -2).sum(0)
        centres.append(along @ places / along.sum())
    return torch.stack(centres)


def _is_image_of(x: Tensor, site: Site, grid: tuple[int, ...]) -> bool:
    """Whether a layer's grid is an image's, or a volume's, at a common stride.

    Such positions are places unless they stray: where each sees nearly all of the image, as in the
    last layers of a deep network on a small one, what changes may lie anywhere.
    """
    return site.layout == "channels_first" and x.dim() == len(grid) + 2 > 3 and (
        downsampled(grid, tuple(x.shape[2:])))


def _strays(moved: Tensor, grid: tuple[int, ...]) -> bool:
    """Whether what changes moves along other axes of the layer than the image's own, or nothing
    changes, as in what never sees the image. Two positions along an axis are too few to tell."""
    spatial = moved[1:]
    if not bool(spatial.isfinite().any()):
        return True
    if max(grid) <= _FEW:
        return False
    spatial = spatial.nan_to_num(0.0).abs()
    along = spatial.diagonal()
    across = (spatial - torch.diag(along)).amax(0)
    return bool(((across > _STRAYED) & (across * _ASTRAY > along)).any())


def _follows(moved: Tensor, grid: tuple[int, ...]) -> bool:
    """Whether a layer's axes follow as many of an input's, one after the other."""
    axes, count = moved.shape
    moved = moved.nan_to_num(0.0)  # along an axis of one place nothing can move
    long = [axis for axis, length in enumerate(grid) if length > 1]
    if not long:  # a single position
        return True
    least = _MOVED if len(long) > 1 else _MOVED_ALONE
    for start in range(axes - count + 1):
        part = moved[start : start + count][long][:, long]
        along = part.diagonal()
        across = torch.maximum(moved[:, long].abs().amax(0), part.abs().amax(1)) / _ASTRAY
        if len(long) == 1:  # what other axes of the input do is all that it compares with
            own = torch.arange(start, start + count, device=moved.device)
            across = _ASTRAY * moved[:, long].abs().index_fill(0, own, 0).amax(0)
        if bool((along > least).all() and (along >= across).all()):
            return True
    return False
