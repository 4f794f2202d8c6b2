"""Where a layer's positions lie in an input: in the middle of what they see.

A map divides the input into one cell for each position. A position need not see what lies around
the middle of its cell: a convolution of stride s and odd size, padded evenly, is centred on the
first pixel of each s, so that a ResNet's map of stride 8 lies 3.5 pixels too far down and to the
right. What positions see of an input is told by their gradient (its effective receptive field: Luo
et al., 2016, https://arxiv.org/abs/1701.04128), half of which, squared, lies on each side of their
middle.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from captum_mi import ranks
from captum_mi.arguments import chunks
from captum_mi.batches import Batch
from captum_mi.gradients import gradients_of
from captum_mi.map_input import MapInput
from captum_mi.passes import Passes
from captum_mi.preserve import isolated_randomness
from captum_mi.sites import Site, layers_of

__all__ = ["offsets"]

_AT_ONCE = 8  # examples, for all that lies below a layer is kept for its gradient
_ERRORS = 3  # standard errors, above which an offset is told from none
_MOST = 0.5  # cells: further off are other positions


def offsets(
    passes: Passes, sites: Sequence[Site], batch: Batch, mapped: MapInput
) -> tuple[tuple[float, ...], ...]:
    """How far positions lie beyond the middles of their cells, in cells, of each site.

    Told by the positions in the middle of a grid, which the edges of the input are far from; 0
    where it cannot be told from 0, or the features have no gradient: a fit needs none below the
    layers, and some modules have none in eval mode, such as recurrent ones on CUDA.

    Args:
        passes: passes of the model, in eval mode.
        sites: the sites.
        batch: one batch.
        mapped: the input that positions are places in.
    """
    beyond: list[list[Tensor]] = [[] for _ in sites]
    mixtures: dict[Site, Iterator[Tensor]] = {}
    n = len(batch.inputs[0])
    if mapped.of(batch.inputs).is_floating_point():
        for inputs, args, _ in chunks(
                batch.inputs, batch.additional_forward_args, None, _AT_ONCE):
            x = mapped.of(inputs).detach().clone().requires_grad_()
            layers = passes.features(mapped.replaced(inputs, x), args, layers_of(sites))
            for site, found in zip(sites, beyond):
                middle = _middle(site.of(layers))
                if site not in mixtures:
                    mixtures[site] = iter(_mixtures(middle, n).split(_AT_ONCE))
                total = (middle * next(mixtures[site])).sum()
                grid = tuple(site.of(layers).shape[2:])
                found.append(_beyond(total, grid, x, mapped.first_axis))
    return tuple(
        _told_from_zero(torch.cat(found)) if found else (0.0,) * site.position_axes
        for site, found in zip(sites, beyond)
    )


def _middle(features: Tensor) -> Tensor:
    """Features at the middle positions, one or two along each axis."""
    for axis, length in enumerate(features.shape[2:], 2):
        features = features.narrow(axis, (length - 1) // 2, 2 - length % 2)
    return features


def _mixtures(middle: Tensor, n: int) -> Tensor:
    """Random weights for ``n`` examples, the same however these are shared by processes."""
    with isolated_randomness(0):
        return ranks.randn_rows(middle.new_empty(n, *middle.shape[1:]))


def _beyond(total: Tensor, grid: tuple[int, ...], x: Tensor, start: int) -> Tensor:
    """How far beyond the middle of an input lies what a mixture of features at the middle of a
    grid depends on, in cells: ``(N, axes)``; NaN without a gradient. Its positions start there."""
    found = x.new_full((len(x), len(grid)), float("nan"), dtype=torch.float64)
    if not grid or not total.requires_grad:
        return found
    try:
        (gradient,) = gradients_of(total, [x], retain_graph=True)
    except RuntimeError:  # of a module below the layer
        return found
    if gradient is None:
        return found
    energy = gradient.double().square()
    for i, length in enumerate(grid):
        along = energy.movedim(start + i, 1).reshape(len(x), x.shape[start + i], -1).sum(2)
        found[:, i] = (_median(along) - 0.5) * length if length > 1 else 0.0
    return found


def _median(energy: Tensor) -> Tensor:
    """Where half of the energy ``(N, length)`` lies on each side, from 0 to 1, ``(N,)``."""
    length = energy.shape[1]
    until = energy.cumsum(1) / energy.sum(1, keepdim=True)
    at = (until < 0.5).sum(1, keepdim=True).clamp_max(length - 1)
    share = energy.gather(1, at) / energy.sum(1, keepdim=True)
    before = until.gather(1, at) - share
    return ((at + (0.5 - before) / share) / length)[:, 0]


def _told_from_zero(values: Tensor) -> tuple[float, ...]:
    """Means of rows ``(n, axes)``, those that are some standard errors from 0."""
    rows = ranks.gather_rows(values)
    rows = rows[rows.isfinite().all(1)]
    if len(rows) < 2:
        return (0.0,) * values.shape[1]
    mean, error = rows.mean(0), rows.std(0) / len(rows) ** 0.5
    told = mean.clamp(-_MOST, _MOST) * (mean.abs() > _ERRORS * error)
    return tuple(told.tolist())
