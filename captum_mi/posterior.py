"""Which position shows the class: a posterior over positions, and maps spread by it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from captum_mi.bottleneck import capacity
from captum_mi.grid import resize

__all__ = ["capacity_prior", "position_posterior", "spread"]


def capacity_prior(alpha_logit: Tensor) -> Tensor:
    """Capacity that alpha leaves to a standardised feature, in nats: what the decision may use.

    Uniform for a uniform alpha. The prior of :func:`position_posterior`, up to its scale.
    """
    return capacity(torch.ones_like(alpha_logit), alpha_logit)


def position_posterior(evidence: Sequence[Tensor], prior: Tensor) -> Tensor:
    r"""Probability that the class is shown at a position.

    .. math:: p(j \mid t) \propto C_j \prod_l \frac{q_l(t \mid x'_j)}{r(t)}

    If one position shows class t, and position j is that one with prior probability
    :math:`C_j`, then this is Bayes' rule: by it :math:`q_l(t|x'_j) / r(t)` is the likelihood
    ratio of the features at j with and without t. Layers count as independent witnesses.

    Args:
        evidence: evidence for the class of each layer, ``(N, 1, *positions_l)``, in nats.
        prior: ``(N, 1, *positions)``, of any scale, not negative.

    Returns:
        ``(N, 1, *positions)`` in float64, sums to 1 over the positions of each example.

    Example::

        >>> evidence = torch.tensor([[[1.0, 3.0]]]).log()
        >>> position_posterior([evidence], torch.ones(1, 1, 2))
        tensor([[[0.2500, 0.7500]]], dtype=torch.float64)
    """
    prior = prior.double()
    score = prior.clamp_min(torch.finfo(prior.dtype).tiny).log()
    for one in evidence:
        score = score + resize(one.double(), prior.shape[2:])
    return score.flatten(1).softmax(1).view_as(score)


def spread(maps: Tensor, posterior: Tensor) -> Tensor:
    r"""Each position's share of the expected evidence; evidence against the class stays.

    The evidence found at the position that shows the class is expected to be
    :math:`\sum_j p(j \mid t)\, e_j`. Where :math:`e_j > 0` the result is the summand, scaled so
    that each example keeps the total of its positive evidence; elsewhere it is :math:`e_j`.

    Args:
        maps: evidence for a class, ``(N, 1, *positions)``.
        posterior: ``(N, 1, *grid)``, of any scale.

    Returns:
        Tensor of the shape of ``maps``.
    """
    in_favour = maps.clamp_min(0).double()
    summands = in_favour * resize(posterior, maps.shape[2:])
    total, mass = _over_positions(in_favour), _over_positions(summands)
    moved = (summands * (total / mass.clamp_min(torch.finfo(mass.dtype).tiny))).to(maps.dtype)
    return torch.where((in_favour > 0) & (mass > 0), moved, maps)


def _over_positions(maps: Tensor) -> Tensor:
    return maps.sum(dim=tuple(range(1, maps.dim())), keepdim=True)
