"""Heads: posteriors of y that a position's features tell, and their mean over the noise."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_mi.critics import mlp

__all__ = ["Head"]


class Head(nn.Sequential):
    """GELU network from locals ``(..., C)`` to parameters of ``q(y | x)``, which starts as r.

    Args:
        channels: C.
        hidden: widths of hidden layers; ``()`` is a single linear layer.
        size: number of parameters.
    """

    def __init__(self, channels: int, hidden: Sequence[int], size: int) -> None:
        super().__init__(*mlp(channels, hidden, size))
        nn.init.zeros_(self[-1].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self[-1].bias)  # type: ignore[arg-type]

    def expected(self, mean: Tensor, std: Tensor) -> Tensor:
        """Mean parameters over ``mean + std * eps``, eps standard normal.

        Exact for at most one hidden layer; further ones are evaluated at the mean of the first.

        Args:
            mean: ``(..., C)``.
            std: ``(..., 1)``.

        Returns:
            Tensor ``(..., size)``.

        Example::

            >>> head = Head(2, (8,), 3)
            >>> x = torch.randn(4, 5, 2)
            >>> torch.equal(head.expected(x, torch.zeros(4, 5, 1)), head(x))
            True
        """
        first, *rest = self
        out: Tensor = first(mean)
        if rest:
            out = _expected_gelu(out, std.square() * first.weight.square().sum(1))  # type: ignore[operator]
        for layer in rest[1:]:
            out = layer(out)
        return out


def _expected_gelu(mean: Tensor, variance: Tensor) -> Tensor:
    r"""``E[h Phi(h)]`` of a Gaussian h, by Stein's lemma, with :math:`s^2 = 1 + \sigma^2`:
    :math:`\mu\,\Phi(\mu/s) + \sigma^2 \varphi(\mu/s) / s`."""
    scale = (1 + variance).sqrt()
    at = mean / scale
    density = torch.exp(-0.5 * at.square()) / math.sqrt(2 * math.pi)
    return scale * F.gelu(at) + variance / scale * density
