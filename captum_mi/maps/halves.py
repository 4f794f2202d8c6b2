r"""Which half of the input a decision needs, for halves of ever finer patterns.

.. math:: \eta_m(c) = W_m\, \frac{p(c \mid x_{W_m = 1}) - p(c \mid x_{W_m = -1})}{p(c \mid x)} ,

where :math:`x_{W = 1}` keeps the input where :math:`W = 1` and has the baseline elsewhere. The
patterns :math:`W_m`, 1 or -1 at each place, are products of Walsh functions, one for each axis
(Walsh, 1923, https://doi.org/10.2307/2387224), the coarsest first. On a grid of a power of two
they are orthogonal, on others nearly so: where a decision is a sum over places, the mean of the
:math:`\eta_m` is what each place adds to it, as finely as the patterns are, up to a scale and a
constant. A position that both halves share counts for each by its part. Blocks
(:mod:`captum_mi.maps.ablation`) are missed by an input that is whole otherwise; halves tell what a
place does with half of the rest, as the random masks of RISE do (Petsiuk et al., 2018,
https://arxiv.org/abs/1806.07421).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice, product

import torch
from torch import Tensor

from captum_mi.grid import Place, resize

__all__ = ["half_contrasts", "pattern", "sequencies", "walsh"]

_MOST_GAINED = 300.0  # nats by which a half may be above the whole: more of them overflow


def walsh(sequency: int, size: int) -> Tensor:
    """Walsh function with so many changes of sign, at the middles of ``size`` cells: 1 or -1.

    Changes that lie closer than the cells of a size that is no power of two are lost.

    Example::

        >>> torch.stack([walsh(s, 4) for s in range(4)]).int()
        tensor([[ 1,  1,  1,  1],
                [ 1,  1, -1, -1],
                [ 1, -1, -1,  1],
                [ 1, -1,  1, -1]], dtype=torch.int32)
    """
    at = (torch.arange(size, dtype=torch.float64) + 0.5) / size
    flips = torch.zeros(size, dtype=torch.int64)
    gray = sequency ^ (sequency >> 1)
    for k in range(gray.bit_length()):
        if gray >> k & 1:  # the k-th Rademacher function takes part
            flips += (at * 2 ** (k + 1)).long()
    return 1 - 2 * (flips % 2).double()


def sequencies(n: int, sizes: Sequence[int]) -> list[tuple[int, ...]]:
    """Sequencies along each axis of the ``n`` coarsest patterns; fewer where cells are few.

    Example::

        >>> sequencies(4, (12, 12)), sequencies(9, (3, 1))
        ([(0, 1), (1, 0), (1, 1), (0, 2)], [(1, 0), (2, 0)])
    """
    found = product(*(range(min(size, n + 1)) for size in sizes))
    ordered = sorted(found, key=lambda one: (sum(one), max(one), one))
    return list(islice((one for one in ordered if any(one)), n))


def pattern(orders: Sequence[int], sizes: Sequence[int]) -> Tensor:
    """Product of Walsh functions along the axes, ``(*sizes)``."""
    result = torch.ones((), dtype=torch.float64)
    for order, size in zip(orders, sizes):
        result = result[..., None] * walsh(order, size)
    return result


def half_contrasts(
    log_probability: Callable[[Tensor], Tensor], whole: Tensor, x: Tensor, baseline: Tensor,
    n: int, first_axis: int, positions: Sequence[int], places: Sequence[Place] = (),
) -> Tensor:
    """How much more of the probability one half of the input keeps than the other.

    Args:
        log_probability: from inputs to ``log p(c)``, ``(N,)``.
        whole: that of ``x``.
        x: the input, ``(N, ...)``.
        baseline: what is put in place of a half, broadcastable to it.
        n: pairs of halves, at most.
        first_axis: the first of the spatial axes.
        positions: grid of the result; one length for each spatial axis.
        places: where positions lie; none given: in the middles of cells.

    Returns:
        ``(N, pairs, *positions)`` in float64: for each pair its contrast, times how much more of
        a position is in the first half than in the other, in shares of the whole input's
        probability.
    """
    sizes = x.shape[first_axis : first_axis + len(positions)]
    after = (1,) * (x.dim() - first_axis - len(positions))
    contrasts = [x.new_zeros(len(x), 0, *positions, dtype=torch.float64)]
    for orders in sequencies(n, [min(pair) for pair in zip(sizes, positions)]):
        signs = pattern(orders, sizes).to(x.device)
        first = (signs > 0).reshape(*sizes, *after)
        kept = torch.stack([
            (log_probability(torch.where(half, x, baseline.to(x))) - whole).double()
            for half in (first, ~first)
        ])
        kept = (kept - (kept.amax(0) - _MOST_GAINED).clamp_min(0)).exp()
        contrast = (kept[0] - kept[1]).view(-1, *(1,) * (1 + len(positions)))
        contrasts.append(contrast * resize(signs[None, None], positions, onto=places))
    return torch.cat(contrasts, 1)
