"""Which position shows the class: a posterior over positions, and maps spread by it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from captum_mi.bottleneck import capacity
from captum_mi.grid import Place, n_positions, resize

__all__ = ["SHARPNESS", "capacity_prior", "position_posterior", "sharpened", "spread"]

#: Power of the posterior that maps are weighted by.
SHARPNESS = 3.0

_NOWHERE = 0.05  # probability that no one position shows the class
_OF_LOSSES = 0.5  # weight of the losses of many blocks, to 1 of posterior times share
_OF_SHARES = 0.1  # weight of signed shares, beside their positive part's
_UNFELT = 0.5  # losses, or shares, of so many nats in all count half
_AS_FEW = 8  # so many pairs of halves have half the weight of many
_UNSEEN = 0.01  # of the probability: halves that differ by so little count half


def capacity_prior(alpha_logit: Tensor) -> Tensor:
    """Capacity that alpha leaves to a standardised feature, in nats: what the decision may use.

    Uniform for a uniform alpha. The prior of :func:`position_posterior`, up to its scale.

    Args:
        alpha_logit: ``(N, 1, *positions)``.

    Returns:
        Tensor of the same shape, not negative.
    """
    return capacity(torch.ones_like(alpha_logit), alpha_logit)


def position_posterior(witnesses: Sequence[Tensor], prior: Tensor) -> Tensor:
    r"""Probability that the class is shown at a position.

    .. math:: p(j \mid t) \propto C_j \prod_l e^{w_{lj}}

    If one position shows class t, and position j is that one with prior probability
    :math:`C_j`, then this is Bayes' rule: :math:`w_{lj}` is the log likelihood ratio of the
    features of layer l at j with and without t, which a head's log odds ratio is
    (:meth:`captum_mi.outputs.Output.log_odds_ratio`), and witnesses are independent. Layers that
    see the same are one: each is given its share of the logarithm, so that they count by their
    geometric mean, a logarithmic opinion pool (Genest and Zidek, 1986,
    https://doi.org/10.1214/ss/1177013825).

    Args:
        witnesses: log likelihood ratios of each layer, ``(N, 1, *positions_l)``, in nats.
        prior: ``(N, 1, *positions)``, of any scale, not negative.

    Returns:
        ``(N, 1, *positions)`` in float64, sums to 1 over the positions of each example.

    Example::

        >>> ratio = torch.tensor([[[1.0, 3.0]]])
        >>> position_posterior([ratio.log()], torch.ones(1, 1, 2))
        tensor([[[0.2500, 0.7500]]], dtype=torch.float64)
    """
    prior = prior.double()
    score = prior.clamp_min(torch.finfo(prior.dtype).tiny).log()
    for one in witnesses:
        score = score + resize(one.double(), prior.shape[2:])
    return score.flatten(1).softmax(1).view_as(score)


def sharpened(posterior: Tensor, power: float = SHARPNESS) -> Tensor:
    r"""A power of a posterior, normalised, that allows for a class that no one position shows.

    With a probability of 1/20 the class may be anywhere.

    Args:
        posterior: ``(N, 1, *positions)``, of any scale.
        power: 1 leaves it as it is.

    Returns:
        ``(N, 1, *positions)`` in float64, sums to 1 over the positions of each example.
    """
    weight = posterior.double()
    weight = (weight / _at_least(_over_positions(weight))) ** power
    weight = (1 - _NOWHERE) * weight / _at_least(_over_positions(weight))
    return weight + _NOWHERE / n_positions(posterior.shape[2:])


def spread(
    maps: Tensor, posterior: Tensor, shares: Tensor | None = None, losses: Tensor | None = None,
    halves: Tensor | None = None, places: Sequence[Place] = (),
) -> Tensor:
    r"""Each position's share of the expected evidence; evidence against the class stays.

    The evidence found at the position that shows the class is expected to be
    :math:`\sum_j p(j \mid t)\, e_j`. Where :math:`e_j > 0` the result is the summand, by the
    :func:`sharpened` posterior, scaled so that each example keeps the total of its positive
    evidence; elsewhere it is :math:`e_j`.

    With shares in a decision the positive total is divided by posterior times positive share. To
    the shares comes one nat that lies as the evidence does, so that nothing hangs on shares of
    next to nothing.

    The losses of blocks, signed, are added to what was divided so, each scaled to the same sum of
    magnitudes and then half the losses: an even share in the decision is told by the one, and
    which blocks it needs, and which ones harm, by the other. The mean contrast of halves is added
    in the same way, with a weight that grows from 0 to 1 with their number, and at last, with a
    small weight, the shares once more, signed: they alone tell as finely as the grid which
    positions speak against the class. Of the result the sum of magnitudes is the positive total,
    and no less than the largest loss: what a class owes that the model says for want of others
    has been measured, although no position is evidence for it.

    Args:
        maps: evidence for a class, ``(N, 1, *positions)``.
        posterior: ``(N, 1, *grid)``, of any scale.
        shares: ``(N, 1, *grid)``, in nats.
        losses: ``(N, 1, *blocks)``, in nats.
        halves: ``(N, pairs, *grid)``, in shares of the probability of the class.
        places: where positions lie, to find which block they are in; none given: in the middles
            of cells.

    Returns:
        Tensor of the shape of ``maps``.

    Example::

        >>> evidence = torch.tensor([[[3.0, 3.0, -1.0, -1.0]]])
        >>> posterior = torch.tensor([[[0.0, 0.6, 0.4, 0.0]]])
        >>> spread(evidence, posterior).round(decimals=2)
        tensor([[[ 0.1000,  5.9000, -1.0000, -1.0000]]])
    """
    positions = maps.shape[2:]
    in_favour = maps.clamp_min(0).double()
    total = _over_positions(in_favour)
    weight = resize(sharpened(posterior), positions)
    told = in_favour / _at_least(total)
    if shares is not None:
        told = told + _resized(shares.double(), positions).clamp_min(0)
    parts = weight * told
    parts = parts / _at_least(_over_positions(parts))
    if losses is not None:
        total = torch.maximum(total, _largest(losses.double(), total))
        felt = _resized(losses.double(), positions, places)
        scale = _OF_LOSSES * (1 - 1 / n_positions(losses.shape[2:]))  # one block tells nothing
        parts = _with(parts, felt, scale, _UNFELT)
    if halves is not None and (pairs := halves.shape[1]):
        seen = _resized(halves.double().mean(1, keepdim=True), positions)
        unseen = _UNSEEN * n_positions(halves.shape[2:])
        parts = _with(parts, seen, pairs / (pairs + _AS_FEW), unseen)
    if shares is not None:
        parts = _with(parts, _resized(shares.double(), positions), _OF_SHARES, _UNFELT)
    moved = parts * total
    return moved.to(maps.dtype) + maps.clamp_max(0)


def _with(parts: Tensor, more: Tensor, weight: float, little: float) -> Tensor:
    """Parts and others, scaled to the weight if they are not little, with magnitudes of sum 1."""
    parts = parts + weight * more / (_over_positions(more.abs()) + little)
    return parts / _at_least(_over_positions(parts.abs()))


def _resized(shares: Tensor, positions: Sequence[int], onto: Sequence[Place] = ()) -> Tensor:
    """Shares on another grid, with the same total."""
    factor = n_positions(shares.shape[2:]) / n_positions(positions)
    return resize(shares, positions, onto=onto) * factor


def _largest(losses: Tensor, like: Tensor) -> Tensor:
    return losses.flatten(1).amax(1).view_as(like)


def _over_positions(maps: Tensor) -> Tensor:
    return maps.sum(dim=tuple(range(1, maps.dim())), keepdim=True)


def _at_least(values: Tensor) -> Tensor:
    """Away from zero, to divide by."""
    return values.clamp_min(torch.finfo(values.dtype).tiny)
