"""Where a layer's positions lie in an input: in the middle of what they see.

A map divides the input into one cell for each position. A position need not see what lies around
the middle of its cell: a convolution of stride s and odd size, padded evenly, is centred on the
first pixel of each s, so that a ResNet's map of stride 8 lies 3.5 pixels too far down and to the
right. A convolution without padding leaves out the edges, and its positions lie closer together
than cells. What positions see of an input is told by their gradient (its effective receptive
field: Luo et al., 2016, https://arxiv.org/abs/1701.04128), half of which, squared, lies on each
side of their middle.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from captum_mi import ranks
from captum_mi.grid import Lattice, Place
from captum_mi.model.arguments import chunks
from captum_mi.model.batches import Batch
from captum_mi.model.gradients import gradients_of
from captum_mi.model.passes import Passes
from captum_mi.model.preserve import isolated_randomness
from captum_mi.model.sites import Site, layers_of
from captum_mi.probing.map_input import MapInput

__all__ = ["lattices_of"]

_AT_ONCE = 8  # examples, for all that lies below a layer is kept for its gradient
_ERRORS = 3  # standard errors, above which an offset is told from none
_MOST = 0.5  # cells: further off are other positions
_FELT = 1e-12  # of the largest square of a gradient: less is rounding


def lattices_of(
    passes: Passes, sites: Sequence[Site], batch: Batch, mapped: MapInput
) -> tuple[tuple[Lattice, ...], ...]:
    """Where the positions of each site lie along each axis of an input.

    The offset is told by the positions in the middle of a grid, which are far from the edges of
    the input; it is 0 where it cannot be told from 0. The scale is told by positions whose whole
    receptive field lies inside of the input; it is 1 where there are none. Features without a
    gradient tell neither: a fit needs no gradient below the layers, and some modules have none in
    eval mode, such as recurrent ones on CUDA.

    Args:
        passes: passes of the model, in eval mode.
        sites: the sites.
        batch: one batch.
        mapped: the input that positions are places in.
    """
    at_once = _at_once(passes, sites, batch)
    seen = [_ReceptiveFields(site.position_axes, at_once) for site in sites]
    if mapped.of(batch.inputs).is_floating_point():
        for inputs, args, _ in chunks(batch.inputs, batch.additional_forward_args, None, at_once):
            x = mapped.of(inputs).detach().clone().requires_grad_()
            layers = passes.features(mapped.replaced(inputs, x), args, layers_of(sites))
            for site, one in zip(sites, seen):
                one.update(site.of(layers), x, mapped.first_axis, len(batch.inputs[0]))
    return tuple(one.lattices(mapped.of(batch.inputs), mapped.first_axis) for one in seen)


def _at_once(passes: Passes, sites: Sequence[Site], batch: Batch) -> int:
    """A few examples, or all if a process's model takes whole batches alone."""
    few, args, _ = next(chunks(batch.inputs, batch.additional_forward_args, None, _AT_ONCE))
    whole = torch.zeros((), device=few[0].device)
    try:
        with torch.no_grad():
            passes.features(few, args, layers_of(sites))
    except torch.OutOfMemoryError:
        raise
    except Exception:  # of the user's code
        whole += 1
    return len(batch.inputs[0]) if ranks.total(whole) else _AT_ONCE


class _ReceptiveFields:
    """What the positions of one site see of an input, batch by batch."""

    def __init__(self, axes: int, at_once: int) -> None:
        self.axes, self.at_once = axes, at_once
        self.grid: tuple[int, ...] = ()
        self._mixtures: Iterator[Tensor] | None = None
        self._offsets: list[Tensor] = []
        self._supports: list[list[Tensor]] = [[] for _ in range(axes)]

    def update(self, features: Tensor, x: Tensor, first_axis: int, n: int) -> None:
        """Look at a few of ``n`` examples: features ``(few, C, *grid)`` of an input x."""
        if not self.axes:
            return
        self.grid = tuple(features.shape[2:])
        middle = _middle(features)
        if self._mixtures is None:
            self._mixtures = iter(_mixtures(middle, n).split(self.at_once))
        mixture = next(self._mixtures)
        energy = _squared_gradient((middle * mixture).sum(), x)
        if energy is None:
            return
        self._offsets.append(torch.stack([
            (_median(_along(energy, first_axis + i)) - 0.5) * length
            if length > 1 else energy.new_zeros(len(x))
            for i, length in enumerate(self.grid)
        ], 1))
        for i, length in enumerate(self.grid):
            self._supports[i].append(
                _supports(features, mixture, x, i, first_axis + i, _candidates(length)))

    def lattices(self, x: Tensor, first_axis: int) -> tuple[Lattice, ...]:
        """Of an input of the shape of x; none where nothing was seen."""
        if not self._offsets:
            return ()
        offsets = _told_from_zero(torch.cat(self._offsets))
        sizes = x.shape[first_axis:]
        return tuple(
            Lattice(Place(offset, _scale(torch.cat(rows), length, size)), length, size)
            for offset, rows, length, size in zip(offsets, self._supports, self.grid, sizes)
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


def _squared_gradient(total: Tensor, x: Tensor) -> Tensor | None:
    """Squares of the gradient of a mixture of features by an input; ``None`` without one."""
    if not total.requires_grad:
        return None
    try:
        (gradient,) = gradients_of(total, [x], retain_graph=True)
    except RuntimeError:  # of a module below the layer
        return None
    return None if gradient is None else gradient.double().square()


def _along(energy: Tensor, axis: int) -> Tensor:
    """Sums over all axes but one, ``(N, length)``."""
    return energy.movedim(axis, 1).flatten(2).sum(2) if energy.dim() > 2 else energy


def _candidates(length: int) -> list[int]:
    """Positions along an axis in pairs, from the ends to the middle."""
    starts = dict.fromkeys(length * eighths // 8 for eighths in range(4))
    pairs = [(start, length - 1 - start) for start in starts if 2 * start < length]
    return list(dict.fromkeys(position for pair in pairs for position in pair))


def _supports(
    features: Tensor, mixture: Tensor, x: Tensor, i: int, axis: int, candidates: list[int]
) -> Tensor:
    """Position along the grid's axis ``i``, and the first and the last place that it sees along
    the input's: ``(N, 3)``, each example telling of one of the candidates."""
    rows = torch.arange(len(x), device=x.device)
    chosen = torch.tensor(candidates, device=x.device)[rows % len(candidates)]
    middle = features.movedim(i + 2, 1)[rows, chosen]
    while middle.dim() > 2:
        middle = middle.select(2, middle.shape[2] // 2)
    energy = _squared_gradient((middle * mixture.flatten(2)[..., 0]).sum(), x)
    if energy is None:
        return x.new_full((len(x), 3), float("nan"), dtype=torch.float64)
    along = _along(energy, axis)
    felt = along > _FELT * along.amax(1, keepdim=True)
    last = along.shape[1] - 1 - felt.flip(1).byte().argmax(1)
    found = torch.stack([chosen, felt.byte().argmax(1), last], 1).double()
    return found.masked_fill(~felt.any(1, keepdim=True), float("nan"))  # as behind a ReLU at 0


def _scale(supports: Tensor, length: int, size: int) -> float:
    """How far positions lie apart, in cells, told by two whose receptive fields are whole.

    Those are of one width, which is that of the fields that touch no edge of the input.
    """
    rows = ranks.gather_rows(supports)
    rows = rows[rows.isfinite().all(1)]
    fields = {int(one): (float(of[:, 1].amin()), float(of[:, 2].amax()))
              for one in rows[:, 0].unique()
              for of in [rows[rows[:, 0] == one]]}
    interior = {last - first for first, last in fields.values() if first > 0 and last < size - 1}
    widest = max((last - first for first, last in fields.values()), default=0.0)
    starts = {position: first for position, (first, last) in fields.items()
              if last - first == widest}
    if interior != {widest} or len(starts) < 2:  # no field is known to be whole
        return 1.0
    one, other = min(starts), max(starts)
    return (starts[other] - starts[one]) / (other - one) * length / size or 1.0


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
