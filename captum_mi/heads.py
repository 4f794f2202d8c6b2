"""Heads: posteriors of y that a position's features tell, and what noise makes of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import reduce

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

    noise: Tensor

    def __init__(self, channels: int, hidden: Sequence[int], size: int) -> None:
        super().__init__(*mlp(channels, hidden, size))
        nn.init.zeros_(self[-1].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self[-1].bias)  # type: ignore[arg-type]
        self.register_buffer("noise", torch.zeros(channels))

    @torch.no_grad()
    def choose_noise(self, metric: Callable[[Tensor], Tensor]) -> None:
        """Choose the noise of :meth:`pair`, a typical draw: one standard deviation along every
        axis by which channels would move the parameters, were all layers linear, and signs drawn
        once across these axes.

        Args:
            metric: from changes of the parameters ``(size, n)`` to rows of which the squares are
                to be told apart.
        """
        first, *others = [layer.weight for layer in self if isinstance(layer, nn.Linear)]
        rows = metric(first) if not others else (
            torch.linalg.qr(metric(reduce(lambda a, b: b @ a, others)), mode="r").R @ first)
        axes = torch.linalg.svd(rows.cpu().double(), full_matrices=False).Vh
        generator = torch.Generator().manual_seed(0)
        signs = 1.0 - 2.0 * torch.randint(2, self.noise.shape, generator=generator).double()
        self.noise.copy_(signs + (1.0 - axes @ signs) @ axes)

    def pair(self, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
        """Parameters of two typical draws of ``mean + std * eps``, whose noise is opposite.

        Their mean is that over all of a standard normal eps, in closed form: exactly for at most
        one hidden layer. Two such sigma points (Julier and Uhlmann, 1997,
        https://doi.org/10.1117/12.280797) also have nearly the variance of all, by the metric
        that their noise was chosen with, so that means of functions that are curved by it are
        close to those over the noise.

        Args:
            mean: ``(..., C)``.
            std: ``(..., 1)``.

        Returns:
            Two tensors ``(..., size)``.

        Example::

            >>> head = Head(2, (8,), 3)
            >>> x = torch.randn(4, 5, 2)
            >>> one, other = head.pair(x, torch.zeros(4, 5, 1))
            >>> torch.equal(one, head(x)) and torch.equal(other, head(x))
            True
        """
        first, *rest = self
        out: Tensor = first(mean)
        step: Tensor = std * F.linear(self.noise, first.weight)  # type: ignore[arg-type]
        if rest:
            variance = std.square() * first.weight.square().sum(1)  # type: ignore[operator]
            step = (F.gelu(out + step) - F.gelu(out - step)) / 2
            out = _expected_gelu(out, variance)
        one, other = out + step, out - step
        for layer in rest[1:]:
            one, other = layer(one), layer(other)
        return one, other


def _expected_gelu(mean: Tensor, variance: Tensor) -> Tensor:
    r"""``E[h Phi(h)]`` of a Gaussian h, by Stein's lemma, with :math:`s^2 = 1 + \sigma^2`:
    :math:`\mu\,\Phi(\mu/s) + \sigma^2 \varphi(\mu/s) / s`."""
    scale = (1 + variance).sqrt()
    at = mean / scale
    density = torch.exp(-0.5 * at.square()) * (1 / math.sqrt(2 * math.pi))
    return scale * F.gelu(at) + (scale - 1 / scale) * density
