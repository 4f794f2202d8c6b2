r"""Shares of positions in a decision: what the prediction loses without them.

A share of position j in class c is :math:`\phi_j(c)`, in nats, such that without a set R of
positions the model's prediction is

.. math:: p(c \mid x_{\setminus R}) \propto p(c \mid x)\, e^{-\sum_{j \in R} \phi_j(c)},
          \qquad \sum_j \phi_j(c) = \log \frac{p(c \mid x)}{r(c)},

so that without any position the marginal r is left. They are learnt by likelihood from inputs
with random parts removed, one pass for each example, and so amortise what occlusion (Zeiler and
Fergus, 2014, https://arxiv.org/abs/1311.2901) and Shapley values (Lundberg and Lee, 2017,
https://arxiv.org/abs/1705.07874) ask the model for again and again.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_mi.grid import n_positions, resize

__all__ = ["apportion", "share_out"]

_PRIOR = 1.0  # nats that are divided as the evidence itself lies


def share_out(scores: Tensor, total: Tensor, evidence: Sequence[Tensor]) -> Tensor:
    r"""Share a total out among positions.

    .. math:: \phi_j = w_j\,\Phi + \sum_l \bigl(g_{lj} e_{lj} - \overline{g_l e_l}\bigr)

    with weights w that sum to 1 and gates g, neither of which depends on the class: what is
    specific of a class comes from the total and from the evidence at each position.

    Args:
        scores: ``(N, 1 + L, *positions)``: logits of w, then of each layer's gate.
        total: ``(N, M)``, in nats.
        evidence: of each of L layers, ``(N, M, *positions_l)``, in nats.

    Returns:
        ``(N, M, *positions)``; sums to the total over the positions.

    Example::

        >>> scores = torch.zeros(1, 2, 4)
        >>> evidence = torch.tensor([[[1.0, 1.0, 1.0, 5.0]]])
        >>> shares = share_out(scores, torch.tensor([[2.0]]), [evidence])
        >>> shares.sum().item(), shares.argmax().item()
        (2.0, 3)
    """
    positions = scores.shape[2:]
    axes = tuple(range(2, scores.dim()))
    weight = scores[:, :1].flatten(2).softmax(2).view_as(scores[:, :1])
    gates = F.softplus(scores[:, 1:]) / n_positions(positions)
    shares = weight * total[(..., *[None] * len(positions))]
    for i, one in enumerate(evidence):
        local = gates[:, i : i + 1] * resize(one, positions)
        shares = shares + local - local.mean(axes, keepdim=True)
    return shares


def apportion(maps: Tensor, shares: Tensor, posterior: Tensor) -> Tensor:
    """Evidence where positions have a share in the decision.

    Each example's evidence for the class is divided among the positions in proportion to the
    posterior times the positive part of the share, its evidence against the class in proportion
    to the negative part: both totals stay. To the shares of either sign comes one nat that lies
    as the evidence does, so that nothing hangs on shares of next to nothing.

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
