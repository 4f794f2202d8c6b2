"""What weights evidence for a class: a posterior, and what a decision was seen to need."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from captum_mi.grid import Place, n_positions, resize
from captum_mi.maps.posterior import magnitude, normalised, sharpened

__all__ = ["Measured", "weighted"]

_OF_LOSSES = 0.5  # weight of the losses of many blocks, to 1 of posterior times share
_OF_SHARES = 0.1  # weight of signed shares, beside their positive part's
_UNFELT = 0.5  # losses, or shares, of so many nats in all count half
_AS_FEW = 8  # so many pairs of halves have half the weight of many
_UNSEEN = 0.01  # of the probability: halves that differ by so little count half


class Measured(NamedTuple):
    """What a decision loses at positions.

    Attributes:
        shares: of each position, ``(N, 1, *grid)``, in nats (:mod:`captum_mi.maps.shares`).
        losses: of each block, ``(N, 1, *blocks)``, in nats (:mod:`captum_mi.maps.ablation`).
        halves: contrasts of pairs of halves, ``(N, pairs, *grid)``, in shares of the probability
            of the class (:mod:`captum_mi.maps.halves`).
    """

    shares: Tensor
    losses: Tensor
    halves: Tensor


def weighted(
    evidence: Tensor, posterior: Tensor, measured: Measured | None = None,
    places: Sequence[Place] = (),
) -> Tensor:
    r"""Each position's share of the expected evidence; evidence against the class stays.

    The evidence found at the position that shows the class is expected to be
    :math:`\sum_j p(j \mid t)\, e_j`. Where :math:`e_j > 0` the result is the summand, by the
    :func:`~captum_mi.maps.posterior.sharpened` posterior :math:`p`, scaled so that each example
    keeps the total of its positive evidence; elsewhere it is :math:`e_j`.

    With measurements the positive total E is divided by weights w of magnitudes that sum to 1,
    which N restores after each step:

    .. math::

        w &= N\bigl(p\, (e^+ / E + s^+)\bigr) \\
        w &\leftarrow N\Bigl(w + c\, \frac{u}{\sum_j |u_j| + u_0}\Bigr)

    for u the losses of B blocks (:math:`c = (1 - 1/B)/2`, half a nat for :math:`u_0`), the mean
    contrast of M pairs of halves (:math:`c = M/(M + 8)`, a hundredth for each position), and at
    last the shares s once more, with their signs (:math:`c = 1/10`, half a nat): they alone tell
    as finely as the grid which positions speak against the class. E is then no less than the
    largest loss: what a class owes that the model says for want of others has been measured,
    although no position is evidence for it.

    Args:
        evidence: for a class, ``(N, 1, *positions)``.
        posterior: ``(N, 1, *grid)``, of any scale.
        measured: what the decision loses without its parts.
        places: where positions lie, to find which block they are in; none given: in the middles
            of cells.

    Returns:
        Tensor of the shape of ``evidence``.

    Example::

        >>> evidence = torch.tensor([[[3.0, 3.0, -1.0, -1.0]]])
        >>> posterior = torch.tensor([[[0.0, 0.6, 0.4, 0.0]]])
        >>> weighted(evidence, posterior).round(decimals=2)
        tensor([[[ 0.1000,  5.9000, -1.0000, -1.0000]]])
    """
    positions = evidence.shape[2:]
    in_favour = evidence.clamp_min(0).double()
    total = magnitude(in_favour)
    weights = resize(sharpened(posterior), positions)
    if measured is None:
        weights = normalised(weights * in_favour)
    else:
        shares = _resized(measured.shares.double(), positions)
        weights = normalised(weights * (normalised(in_favour) + shares.clamp_min(0)))
        weights = _with_measured(weights, measured, shares, places)
        total = torch.maximum(total, measured.losses.flatten(1).amax(1).view_as(total))
    return (weights * total).to(evidence.dtype) + evidence.clamp_max(0)


def _with_measured(
    weights: Tensor, measured: Measured, shares: Tensor, places: Sequence[Place]
) -> Tensor:
    """Weights to which losses, contrasts and signed shares are added."""
    positions, (_, losses, halves) = weights.shape[2:], measured
    blocks, pairs = n_positions(losses.shape[2:]), halves.shape[1]
    felt = _resized(losses.double(), positions, places)
    weights = _with(weights, felt, _OF_LOSSES * (1 - 1 / blocks), _UNFELT)
    if pairs:
        seen = _resized(halves.double().mean(1, keepdim=True), positions)
        unseen = _UNSEEN * n_positions(halves.shape[2:])
        weights = _with(weights, seen, pairs / (pairs + _AS_FEW), unseen)
    return _with(weights, shares, _OF_SHARES, _UNFELT)


def _with(weights: Tensor, more: Tensor, weight: float, little: float) -> Tensor:
    """Weights and others, which are scaled to ``weight`` unless they are ``little`` in all."""
    return normalised(weights + weight * more / (magnitude(more) + little))


def _resized(shares: Tensor, positions: Sequence[int], onto: Sequence[Place] = ()) -> Tensor:
    """Shares on another grid, with the same total where the grids divide one another."""
    factor = n_positions(shares.shape[2:]) / n_positions(positions)
    return resize(shares, positions, onto=onto) * factor
