"""Which position shows the class: a posterior over positions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from captum_mi.bottleneck import capacity
from captum_mi.grid import n_positions, resize

__all__ = [
    "SHARPNESS", "capacity_prior", "magnitude", "normalised", "position_posterior", "sharpened",
]

#: Power of the posterior that maps are weighted by.
SHARPNESS = 3.0

_NOWHERE = 0.05  # probability that no one position shows the class


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
    weight = normalised(normalised(posterior.double()) ** power)
    return (1 - _NOWHERE) * weight + _NOWHERE / n_positions(posterior.shape[2:])


def normalised(weights: Tensor) -> Tensor:
    """Weights ``(N, 1, *positions)`` whose magnitudes sum to 1 in each example, or are all 0."""
    return weights / magnitude(weights).clamp_min(torch.finfo(weights.dtype).tiny)


def magnitude(weights: Tensor) -> Tensor:
    """Sum of the magnitudes of each example's weights, ``(N, 1, ...)``."""
    axes = tuple(range(1, weights.dim()))
    return torch.linalg.vector_norm(weights, 1, axes, keepdim=True)
