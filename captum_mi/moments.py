"""Mean and standard deviation of each feature channel over the fitting data."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from captum_mi import ranks

__all__ = ["Moments", "StreamingMoments", "channel_view"]

_FLOOR = 0.01  # of a layer's mean standard deviation


def channel_view(values: Tensor, like: Tensor) -> Tensor:
    """View a ``(C,)`` tensor so that it broadcasts along axis 1 of ``like``: ``(N, C, ...)``."""
    return values.view(1, -1, *([1] * (like.dim() - 2)))


class StreamingMoments:
    """Accumulates count, sum and sum of squares per channel, in float64, batch by batch.

    The squares are taken around the first batch's mean, so that features with a large offset
    keep their digits.
    """

    def __init__(self) -> None:
        self.count = 0
        self._shift: Tensor | None = None
        self._sum = torch.zeros(())
        self._square = torch.zeros(())

    def update(self, features: Tensor) -> None:
        """Add a batch of features ``(N, C, *positions)``."""
        rows = features.detach().transpose(0, 1).flatten(1).double()  # (C, N * positions)
        if self._shift is None:
            self._shift = rows.mean(1)
            self._sum = torch.zeros_like(self._shift)
            self._square = torch.zeros_like(self._shift)
        rows = rows - self._shift[:, None]
        self.count += rows.shape[1]
        self._sum += rows.sum(1)
        self._square += rows.square().sum(1)

    def result(self) -> tuple[Tensor, Tensor]:
        """Mean and (population) standard deviation over all processes: ``(C,)``, float64."""
        if self._shift is None:
            raise RuntimeError("no features were seen: call update first")
        mean = self._sum / self.count
        variance = (self._square / self.count - mean.square()).clamp_min(0)
        return _pooled(self.count, self._shift + mean, variance)


def _pooled(count: int, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Moments of the data of all processes, by the law of total variance."""
    own = torch.stack([torch.full_like(mean, count), mean, variance])
    counts, means, variances = ranks.gather_rows(own[None]).unbind(1)
    shares = counts / counts.sum(0)
    overall = (shares * means).sum(0)
    spread = (shares * (variances + (means - overall).square())).sum(0)
    return overall, spread.sqrt()


class Moments(nn.Module):
    """Standardises features channel by channel, and maps them back.

    A channel's standard deviation is floored at a hundredth of the mean one of its layer: a
    dead channel stays at 0 instead of being blown up.

    Args:
        channels: ``C``.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("std", torch.ones(channels))

    @torch.no_grad()
    def set(self, mean: Tensor, std: Tensor) -> None:
        """Store moments ``(C,)``, with the floor applied."""
        lowest = _FLOOR * std.mean()
        self.mean.copy_(mean)
        self.std.copy_(std.clamp_min(lowest) if lowest > 0 else torch.ones_like(std))

    def standardise(self, features: Tensor) -> Tensor:
        """``(N, C, *positions)`` features to zero mean and unit variance per channel."""
        features, scale = features.to(self.mean.dtype), self.std.reciprocal()
        shift = channel_view(-self.mean * scale, features)
        return torch.addcmul(shift, features, channel_view(scale, features))  # in one walk

    def restore(self, z: Tensor) -> Tensor:
        """Inverse of :meth:`standardise`."""
        return z * channel_view(self.std, z) + channel_view(self.mean, z)
