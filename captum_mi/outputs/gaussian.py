"""Vectors of numbers, such as embeddings."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from captum_mi.bounds import gaussian_kl
from captum_mi.outputs.output import Output

__all__ = ["GaussianOutput"]

_MAX_WHITENED = 4096


class GaussianOutput(Output):
    """A continuous vector, whitened with the fitting data's mean and covariance.

    In whitened coordinates ``r(y)`` is N(0, I) and ``q(y | x')`` a diagonal Gaussian. Directions
    that hardly vary (dead units, or more of them than examples) can tell nothing and are left
    out: there y is 0 and q is r. It has no classes of its own: evidence for a class needs a
    downstream function.
    """

    mean: Tensor
    whiten: Tensor
    colour: Tensor

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__(shape)
        if self.size > _MAX_WHITENED:
            raise ValueError(
                f"the global representation has {self.size} numbers per example (shape "
                f"{self.shape}); at most {_MAX_WHITENED} can be whitened. Choose a pooled layer"
            )
        self.head_size = 2 * self.size
        self.register_buffer("mean", torch.zeros(self.size))
        self.register_buffer("whiten", torch.eye(self.size))
        self.register_buffer("colour", torch.eye(self.size))

    def encode(self, raw: Tensor) -> Tensor:
        return (raw.reshape(len(raw), -1).to(self.mean.dtype) - self.mean) @ self.whiten

    def decode(self, y: Tensor) -> Tensor:
        """Whitened ``(..., size)`` back to the representation's own coordinates."""
        return y @ self.colour + self.mean

    def critic_input(self, raw: Tensor) -> Tensor:
        return self.encode(raw)

    def fit_marginal(self, raw: Tensor) -> None:
        rows = raw.reshape(len(raw), -1).double()
        mean = rows.mean(0)
        covariance = (rows - mean).T @ (rows - mean) / len(rows)
        variance, axes = torch.linalg.eigh(covariance)
        varies = variance > 1e-4 * variance.mean().clamp_min(1e-12)
        scale = torch.where(varies, variance, 0.0).sqrt()
        inverse = torch.where(varies, 1 / scale, 0.0)
        # Near the representation's own coordinates, unless directions are to be left out.
        back = axes.T if bool(varies.all()) else torch.eye(self.size, dtype=axes.dtype)
        self.mean.copy_(mean)
        self.whiten.copy_((axes * inverse) @ back)
        self.colour.copy_(back.T @ (axes * scale).T)

    @property
    def _varies(self) -> Tensor:
        """Which whitened coordinates are used, ``(size,)``."""
        return self.whiten.any(0)

    def _split(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_var = (part * self._varies for part in parameters.chunk(2, -1))
        return mean, 8 * torch.tanh(log_var / 8)  # a variance within exp(+-8): finite always

    def expectation(self, parameters: Tensor) -> Tensor:
        """``E_q[y]`` in the representation's own coordinates."""
        return self.decode(self._split(parameters)[0])

    def negative_log_likelihood(self, parameters: Tensor, y: Tensor) -> Tensor:
        mean, log_var = self._split(parameters)
        terms = (y - mean).square() * torch.exp(-log_var) + log_var + math.log(2 * math.pi)
        return 0.5 * terms.sum(-1)

    def marginal_negative_log_likelihood(self, y: Tensor) -> Tensor:
        return 0.5 * (y.square() + math.log(2 * math.pi)).sum(-1)

    def kl(self, parameters: Tensor) -> Tensor:
        return gaussian_kl(*self._split(parameters))

    def metric(self, changes: Tensor) -> Tensor:
        mean, log_var = changes.chunk(2)
        return torch.cat([mean, log_var / math.sqrt(2)]) * self._varies.repeat(2)[:, None]

    def evidence(self, parameters: Tensor) -> Tensor:
        raise ValueError(
            f"y is a continuous representation of shape {self.shape}, which has no classes; pass "
            "downstream= (a callable from representations to logits) for evidence of a class, or "
            "target=None for the information about the representation itself"
        )

    def evidence_for(self, parameters: Tensor, index: Tensor) -> Tensor:
        return self.evidence(parameters)

    def log_odds_ratio(self, parameters: Tensor, index: Tensor) -> Tensor:
        return self.evidence(parameters)

    def distortion(self, first: Tensor, second: Tensor) -> Tensor:
        """Half the squared whitened distance per dimension: 1/2 for an unrelated constant."""
        return self._per_dimension(self.encode(first) - self.encode(second))

    def uninformed(self, raw: Tensor) -> Tensor:
        return self._per_dimension(self.encode(raw)).mean()

    def _per_dimension(self, y: Tensor) -> Tensor:
        return 0.5 * y.square().sum(-1) / self._varies.sum().clamp_min(1)

    def label_loss(self, raw: Tensor, labels: Tensor) -> Tensor:
        """Labels are values of the representation, ``(N, *shape)``."""
        return self.distortion(labels, raw)
