r"""Estimators of mutual information as pure functions of scores and logits, in nats.

Lower bounds take the scores of a critic ``f(x, y)``; the variational estimate takes the
parameters of a head ``q(y | x')`` and of the marginal ``r(y)``.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "bernoulli_kl",
    "categorical_kl",
    "donsker_varadhan",
    "gaussian_kl",
    "info_nce",
    "log_mean_exp",
    "pointwise_info_nce",
]


def pointwise_info_nce(positive: Tensor, negatives_logsumexp: Tensor, n_negatives: int) -> Tensor:
    r"""InfoNCE of single pairs against a set of negatives, the positive counted among them.

    .. math:: \log(M + 1) + f^+ - \log\Bigl(e^{f^+} + \sum_{m=1}^{M} e^{f_m}\Bigr)

    Never above ``log(M + 1)``. Its mean over pairs is the InfoNCE lower bound (van den Oord et
    al., 2018, https://arxiv.org/abs/1807.03748).

    Args:
        positive: scores of the pairs, any shape.
        negatives_logsumexp: ``log sum exp`` of each pair's negative scores, broadcastable.
        n_negatives: how many negatives ``M`` that sum holds.

    Returns:
        Tensor of the broadcast shape, in nats.

    Example::

        >>> pointwise_info_nce(torch.tensor(0.0), torch.tensor(math.log(7.0)), 7).item()
        0.0
    """
    # log(e^f + e^l) = f + softplus(l - f), without the loss of digits at large scores.
    return math.log(n_negatives + 1) - F.softplus(negatives_logsumexp - positive)


def info_nce(scores: Tensor, negatives: Literal["local", "global"] = "local") -> Tensor:
    r"""InfoNCE lower bound on ``I(x_ij; y_i)`` from the scores of one batch.

    With ``negatives="local"`` the negatives of :math:`y_i` are the locals of the *other*
    examples; locals of the same example are neither positives nor negatives of each other:

    .. math:: \log\bigl((N-1)K+1\bigr) + \mathbb{E}\Bigl[f(x_{ij}, y_i) - \log\Bigl(
              e^{f(x_{ij}, y_i)} + \sum_{m \ne i,\, k} e^{f(x_{mk}, y_i)}\Bigr)\Bigr]

    With ``negatives="global"`` the negatives of :math:`x_{ij}` are the globals of the other
    examples. The first form leaves a function of ``y`` free in the optimal critic, the second
    a function of ``x``; trained on both, the critic tends to the log density ratio plus a
    constant, which is what :func:`donsker_varadhan` needs.

    Source: Deep InfoMax (Hjelm et al., 2019, https://arxiv.org/abs/1808.06670) and CPC (van den
    Oord et al., 2018, https://arxiv.org/abs/1807.03748).

    Args:
        scores: ``(N, K, N)``; ``scores[m, k, i] = f(x_mk, y_i)``.
        negatives: which side the negatives are drawn from.

    Returns:
        Scalar tensor, in nats.

    Raises:
        ValueError: if the shape is not ``(N, K, N)`` or ``N < 2``, where no negative exists.

    Example::

        >>> info_nce(torch.zeros(4, 3, 4)).item()
        0.0
    """
    if scores.dim() != 3 or scores.shape[0] != scores.shape[2] or scores.shape[0] < 2:
        raise ValueError(
            "scores must be (N, K, N) with N >= 2, scores[m, k, i] = f(x_mk, y_i); "
            f"got {tuple(scores.shape)}"
        )
    n, k, _ = scores.shape
    own = torch.eye(n, dtype=torch.bool, device=scores.device)[:, None, :]
    positive = scores.diagonal(dim1=0, dim2=2)  # (K, N)
    others = scores.masked_fill(own, -math.inf)
    if negatives == "local":
        return pointwise_info_nce(positive, others.logsumexp(dim=(0, 1)), (n - 1) * k).mean()
    return pointwise_info_nce(positive, others.logsumexp(dim=2).T, n - 1).mean()


def log_mean_exp(scores: Tensor) -> Tensor:
    """``log(mean(exp(scores)))`` over all elements, without overflow."""
    return scores.flatten().logsumexp(0) - math.log(scores.numel())


def donsker_varadhan(positive: Tensor, log_partition: Tensor) -> Tensor:
    r"""Donsker-Varadhan lower bound, pooled over all pairs of a bank.

    .. math:: \mathbb{E}_{p(x, y)}[f(x, y)] - \log \mathbb{E}_{p(x) p(y)}\bigl[e^{f(x, y)}\bigr]

    With independent pairs of two banks its ceiling grows with their product, where that of
    InfoNCE grows with the batch.
    Source: Belghazi et al., 2018, https://arxiv.org/abs/1801.04062.

    Args:
        positive: scores of joint pairs, any shape.
        log_partition: scalar, ``log mean exp`` of the scores of independent pairs
            (:func:`log_mean_exp`, or :meth:`captum_mi.critics.Critic.log_partition` in chunks).

    Returns:
        Scalar tensor, in nats.

    Example::

        >>> donsker_varadhan(torch.full((8,), 2.0), log_mean_exp(torch.zeros(8, 8))).item()
        2.0
    """
    return positive.mean() - log_partition


def categorical_kl(log_q: Tensor, log_r: Tensor) -> Tensor:
    r"""``KL(q || r)`` of categoricals given as log-probabilities over the last axis.

    The summand of the variational information bottleneck's upper bound
    :math:`\mathbb{E}[KL(q(y|x') \,\|\, r(y))]` (Alemi et al., 2017,
    https://arxiv.org/abs/1612.00410).

    Args:
        log_q: ``(..., K)``, normalised.
        log_r: ``(K,)`` or broadcastable, normalised.

    Returns:
        ``(...)``, in nats, never negative.
    """
    apart = torch.where(log_q == -torch.inf, 0.0, log_q - log_r)  # 0 log 0 is 0
    return (log_q.exp() * apart).sum(-1).clamp_min(0)


def bernoulli_kl(q_logits: Tensor, r_logits: Tensor) -> Tensor:
    """``KL(q || r)`` of independent Bernoullis given as logits, summed over the last axis.

    Args:
        q_logits: ``(..., K)``.
        r_logits: ``(K,)`` or broadcastable.

    Returns:
        ``(...)``, in nats, never negative.
    """
    on = torch.sigmoid(q_logits) * (F.logsigmoid(q_logits) - F.logsigmoid(r_logits))
    off = torch.sigmoid(-q_logits) * (F.logsigmoid(-q_logits) - F.logsigmoid(-r_logits))
    return (on + off).sum(-1).clamp_min(0)


def gaussian_kl(mean: Tensor, log_var: Tensor) -> Tensor:
    """``KL(N(mean, exp(log_var)) || N(0, 1))``, summed over the last axis.

    Args:
        mean: ``(..., D)``.
        log_var: ``(..., D)``.

    Returns:
        ``(...)``, in nats, never negative.
    """
    return 0.5 * (mean.square() + torch.expm1(log_var) - log_var).sum(-1).clamp_min(0)
