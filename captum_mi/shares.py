r"""Shares of positions in a decision: what it loses at each of them as noise grows.

The share of position j in class c, in nats, is

.. math:: \phi_j(c) = -\int_0^1 \mathbb{E}\,
          \frac{\partial}{\partial \alpha_j} \log p(c \mid x'_\alpha)\, d\alpha ,

where alpha, the same at all positions, grows from no noise to noise alone. Over the positions it
adds up to :math:`\log p(c \mid x) - \mathbb{E} \log p(c \mid \text{noise})`: these are
integrated gradients (Sundararajan et al., 2017, https://arxiv.org/abs/1703.01365), the shares of
Aumann and Shapley, through the bottleneck instead of the input. A network learns them from one
level of noise for each example and step, and so amortises what would take many passes each.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_mi.grid import n_positions, resize

__all__ = ["agreement", "apportion", "clues", "disagreement"]

_PRIOR = 1.0  # nats that are divided as the evidence itself lies
_NOWHERE = 0.2  # probability that no one position shows the class
_OUTLIER = 5.0  # nats per position, times positions, from which errors count linearly


def clues(
    evidence: Sequence[Tensor],
    posterior: Tensor,
    positions: Sequence[int],
) -> list[Tensor]:
    """What the network reads about a class, as maps of one grid.

    All are signed logarithms: of the evidence in nats, and of the posterior relative to a uniform
    one.

    Args:
        evidence: evidence for the class of each layer, ``(N, 1, *positions_l)``.
        posterior: over positions, ``(N, 1, *grid)``.
        positions: the grid.

    Returns:
        Maps ``(N, 1, *positions)``.
    """
    density = posterior.to(evidence[0].dtype) * n_positions(posterior.shape[2:])
    return [_signed_log(resize(maps, positions)) for maps in (*evidence, density)]


def _signed_log(values: Tensor) -> Tensor:
    return values.sign() * values.abs().log1p()


def disagreement(inferred: Tensor, measured: Tensor) -> Tensor:
    """What the network minimises: squared errors, and absolute ones where they are large.

    Its minimum is at the mean of what is measured, but for levels of noise where a slope is
    extreme. Both are ``(N, 1, *positions)``, in nats; the result is ``(N,)``.
    """
    n = n_positions(inferred.shape[2:])
    errors = F.huber_loss(n * inferred, n * measured, delta=_OUTLIER, reduction="none")
    return errors.flatten(1).mean(1)


def agreement(inferred: Tensor, measured: Tensor) -> Tensor:
    """Correlation over positions of each example, ``(N,)``; 0 where either is constant."""
    a, b = (maps.flatten(1) - maps.flatten(1).mean(1, keepdim=True)
            for maps in (inferred, measured))
    return F.cosine_similarity(a, b)


def apportion(maps: Tensor, shares: Tensor, posterior: Tensor) -> Tensor:
    """Evidence where positions have a share in the decision.

    Each example's evidence for the class is divided among the positions in proportion to the
    posterior times the positive part of the share, its evidence against the class in proportion
    to the negative part: both totals stay. The posterior allows for a class that no one position
    shows, with a probability of 1/5. To the shares of either sign comes one nat that lies as the
    evidence does, so that nothing hangs on shares of next to nothing.

    Args:
        maps: evidence for a class, ``(N, 1, *positions)``.
        shares: ``(N, 1, *grid)``, in nats.
        posterior: ``(N, 1, *grid)``, of any scale.

    Returns:
        Tensor of the shape of ``maps``.

    Example::

        >>> evidence = torch.tensor([[[3.0, 3.0, -1.0, -1.0]]])
        >>> shares = torch.tensor([[[0.0, 2.0, 1.0, -1.0]]])
        >>> apportion(evidence, shares, torch.ones(1, 1, 4)).round(decimals=2)
        tensor([[[ 0.7500,  3.7500,  1.0000, -1.5000]]])
    """
    shares = _resized(shares.double(), maps.shape[2:])
    posterior = resize(posterior.double(), maps.shape[2:])
    posterior = posterior / _at_least(_over_positions(posterior))
    posterior = (1 - _NOWHERE) * posterior + _NOWHERE / n_positions(maps.shape[2:])
    evidence = maps.double()
    in_favour = _divided(evidence.clamp_min(0), shares.clamp_min(0), posterior)
    against = _divided((-evidence).clamp_min(0), (-shares).clamp_min(0), torch.ones_like(shares))
    return (in_favour - against).to(maps.dtype)


def _resized(shares: Tensor, positions: Sequence[int]) -> Tensor:
    """Shares on another grid, with the same total."""
    factor = n_positions(shares.shape[2:]) / n_positions(positions)
    return resize(shares, positions) * factor


def _divided(amounts: Tensor, shares: Tensor, weight: Tensor) -> Tensor:
    """The total of the amounts, divided anew; the amounts where nothing has a weight."""
    total = _over_positions(amounts)
    parts = weight * (shares + _PRIOR * amounts / _at_least(total))
    whole = _over_positions(parts)
    return torch.where(whole > 0, parts * (total / _at_least(whole)), amounts)


def _over_positions(maps: Tensor) -> Tensor:
    return maps.sum(tuple(range(1, maps.dim())), keepdim=True)


def _at_least(values: Tensor) -> Tensor:
    """Away from zero, to divide by."""
    return values.clamp_min(torch.finfo(values.dtype).tiny)
