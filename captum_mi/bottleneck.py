r"""The noise bottleneck: ``x' = alpha * eps + (1 - alpha) * x``, and its capacity.

``alpha`` is kept as a logit throughout, so that everything here is finite at any logit, in any
floating-point precision.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["MAX_LOGIT", "antithetic_draws", "bounded_logit", "capacity", "denoised",
           "inject_noise", "keep", "logit_of", "shared_noise"]

#: Bound on the logits of an alpha that is set by hand. ``sigmoid(50)`` rounds to 1 in float64.
MAX_LOGIT = 50.0


def logit_of(alpha: Tensor) -> Tensor:
    """Logit of an ``alpha`` set by hand, 0 and 1 included (as ``-MAX_LOGIT`` and ``MAX_LOGIT``).

    Raises:
        ValueError: if an element is outside of [0, 1] or is NaN.
    """
    if not bool(((alpha >= 0) & (alpha <= 1)).all()):
        raise ValueError(
            f"alpha must lie in [0, 1]; got values from {alpha.min():.4g} to {alpha.max():.4g}"
        )
    return bounded_logit(alpha)


def bounded_logit(alpha: Tensor) -> Tensor:
    """Logit of an ``alpha`` in [0, 1]."""
    return torch.logit(alpha).clamp(-MAX_LOGIT, MAX_LOGIT)


def keep(alpha_logit: Tensor) -> Tensor:
    """Share of the signal that is kept, ``1 - alpha``, computed without cancellation."""
    return torch.sigmoid(-alpha_logit)


def inject_noise(z: Tensor, alpha_logit: Tensor, noise: Tensor) -> Tensor:
    r"""``z' = (1 - alpha) z + alpha eps``.

    Args:
        z: ``(N, C, *positions)``, standardised features.
        alpha_logit: broadcastable to ``z``.
        noise: broadcastable to ``z``, standard normal.
    """
    return keep(alpha_logit) * z + torch.sigmoid(alpha_logit) * noise


def denoised(z_noised: Tensor, alpha_logit: Tensor) -> Tensor:
    r"""Posterior mean of the clean features: what is expected of z where z' is seen.

    .. math:: E[z \mid z'] = \frac{1 - \alpha}{(1 - \alpha)^2 + \alpha^2} \, z'

    if z is standard normal, as it nearly is. It is 0 where alpha is 1.

    Args:
        z_noised: ``(N, C, *positions)``, noised features z'.
        alpha_logit: broadcastable to them.
    """
    kept, alpha = keep(alpha_logit), torch.sigmoid(alpha_logit)
    return kept / (kept.square() + alpha.square()) * z_noised


def shared_noise(z: Tensor, generator: torch.Generator) -> Tensor:
    """One draw ``(1, C, *positions)``, the same for every example of z and on every device."""
    shape = 1, *z.shape[1:]
    return torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu").to(z)


def antithetic_draws(z: Tensor, alpha_logit: Tensor, pairs: int) -> Iterator[Tensor]:
    """Pairs of z' whose noise is opposite, the same for every example and on every call."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(pairs):
        noise = shared_noise(z, generator)
        yield inject_noise(z, alpha_logit, noise)
        yield inject_noise(z, alpha_logit, -noise)


def capacity(z: Tensor, alpha_logit: Tensor) -> Tensor:
    r"""Information that can pass the noise, in nats per element.

    .. math:: KL\bigl(\mathcal{N}((1-\alpha) z, \alpha^2) \,\|\, \mathcal{N}(0, 1)\bigr)
              = \tfrac12\bigl(\alpha^2 + (1-\alpha)^2 z^2 - 1\bigr) - \log \alpha

    Its expectation, summed over the channels of a position, is an upper bound on the information
    between the clean and the noised features there, and so on what the noised features can tell
    about anything else, provided that alpha does not itself depend on that other thing (Schulz
    et al., 2020, https://arxiv.org/abs/2001.00396).

    Args:
        z: ``(N, C, *positions)``, standardised features.
        alpha_logit: broadcastable to ``z``.

    Returns:
        Tensor of the broadcast shape, never negative; 0 where alpha is 1.
    """
    kept = keep(alpha_logit)
    # alpha^2 - 1 = -kept (2 - kept), and -log(alpha) = softplus(-logit): no cancellation at 1.
    return (
        0.5 * ((kept * z).square() - kept * (2 - kept)) + F.softplus(-alpha_logit)
    ).clamp_min(0)
