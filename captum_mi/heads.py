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

_PRECISION = 4.0  # of the prior of a weight
_RIDGE = 0.03  # of the mean square of the channels' weights
_ROUNDS = 10


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

    def negative_log_prior(self) -> Tensor:
        """Of the weights, each Gaussian with a standard deviation of 1/2, up to a constant."""
        weights = [layer.weight for layer in self if isinstance(layer, nn.Linear)]
        return 0.5 * _PRECISION * torch.stack([one.square().sum() for one in weights]).sum()

    @torch.no_grad()
    def choose_noise(self, metric: Callable[[Tensor], Tensor], each: bool = False) -> None:
        """Choose the noise of :meth:`pair`, a typical draw: one standard deviation along every
        axis by which channels would move the parameters, were all layers linear, and signs drawn
        once across these axes.

        Args:
            metric: from changes of the parameters ``(size, n)`` to rows of which the squares are
                to be told apart.
            each: move each row by about its own standard deviation, as far as channels can, and
                not only all rows together: for parameters that are read one by one.
        """
        first, *others = [layer.weight for layer in self if isinstance(layer, nn.Linear)]
        above = metric(reduce(lambda a, b: b @ a, others)) if others else None
        rows = metric(first) if above is None else torch.linalg.qr(above, mode="r").R @ first
        axes = torch.linalg.svd(rows.cpu().double(), full_matrices=False).Vh
        generator = torch.Generator().manual_seed(0)
        signs = 1.0 - 2.0 * torch.randint(2, self.noise.shape, generator=generator).double()
        noise = signs + (1.0 - axes @ signs) @ axes
        if each:
            noise = _moving_each((rows if above is None else above @ first).cpu().double(), noise)
        self.noise.copy_(noise)

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


def _moving_each(rows: Tensor, noise: Tensor) -> Tensor:
    """Noise near a draw that moves each of the rows ``(n, C)`` by about its standard deviation.

    What each row lacks, of whatever sign it moved by, is added by least squares, several times, as
    signs may change with that; a ridge keeps the noise about as small as draws are. What all rows
    move by in all is that of draws.
    """
    tiny = torch.finfo(rows.dtype).tiny
    std, square = rows.norm(dim=1), rows.T @ rows
    square.diagonal().add_(_RIDGE * square.diagonal().mean().clamp_min(tiny))
    for _ in range(_ROUNDS):
        moved = rows @ noise
        noise = noise + torch.linalg.solve(square, (moved.sign() * std - moved) @ rows)
    return noise * (std.norm().clamp_min(tiny) / (rows @ noise).norm().clamp_min(tiny))


def _expected_gelu(mean: Tensor, variance: Tensor) -> Tensor:
    r"""``E[h Phi(h)]`` of a Gaussian h, by Stein's lemma, with :math:`s^2 = 1 + \sigma^2`:
    :math:`\mu\,\Phi(\mu/s) + \sigma^2 \varphi(\mu/s) / s`."""
    scale = (1 + variance).sqrt()
    at = mean / scale
    density = torch.exp(-0.5 * at.square()) * (1 / math.sqrt(2 * math.pi))
    return scale * F.gelu(at) + (scale - 1 / scale) * density
