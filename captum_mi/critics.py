"""Critics ``f(x, y)`` that score whether a local and a global representation belong together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

__all__ = [
    "ConcatenatedCritic", "Critic", "CriticKind", "SeparableCritic", "make_critic", "mlp",
]

CriticKind = Literal["separable", "concatenated"]


def mlp(n_in: int, hidden: Sequence[int], n_out: int) -> nn.Sequential:
    """GELU network over the last axis; ``hidden=()`` is a single linear layer."""
    layers: list[nn.Module] = []
    for width in hidden:
        layers += [nn.Linear(n_in, width), nn.GELU()]
        n_in = width
    return nn.Sequential(*layers, nn.Linear(n_in, n_out))


class _Embedding(nn.Module):
    """A network beside a linear map, over coordinates that tame heavy tails.

    Each coordinate enters as ``x`` and as ``asinh(s x) / asinh(s)`` at three scales: near zero
    they resolve small values, far out they grow like a logarithm. The linear map gives a critic
    of Gaussians its exact form at once, which a network alone finds slowly.
    """

    _SCALES = (1.0, 10.0, 100.0)

    def __init__(self, n_in: int, hidden: Sequence[int], n_out: int) -> None:
        super().__init__()
        n_in *= 1 + len(self._SCALES)
        self.linear = nn.Linear(n_in, n_out)
        self.network = mlp(n_in, hidden, n_out) if hidden else None

    def forward(self, x: Tensor) -> Tensor:
        tamed = [torch.asinh(s * x) / math.asinh(s) for s in self._SCALES]
        x = torch.cat([x, *tamed], -1)
        out: Tensor = self.linear(x)
        return out if self.network is None else out + self.network(x)


class Critic(nn.Module):
    """Base class. Locals are ``(..., C)`` and globals ``(..., D)``, both standardised.

    Scoring goes through two embeddings, so that a large set of locals can be embedded once and
    kept: ``score(local_embedding, global_embedding)``.

    Attributes:
        numbers_per_pair: how many scoring holds at once for each pair.
    """

    numbers_per_pair = 1

    def embed_local(self, x: Tensor) -> Tensor:
        """``(..., C) -> (..., E)``."""
        raise NotImplementedError

    def embed_global(self, y: Tensor) -> Tensor:
        """``(..., D) -> (..., E')``."""
        raise NotImplementedError

    def score(self, local: Tensor, global_: Tensor) -> Tensor:
        """Scores of all pairs of ``(..., M, E)`` and ``(..., B, E')``: ``(..., M, B)``."""
        raise NotImplementedError

    def paired(self, local: Tensor, global_: Tensor) -> Tensor:
        """Scores of aligned embeddings ``(..., E)`` and ``(..., E')``: ``(...)``."""
        return self.score(local[..., None, :], global_[..., None, :])[..., 0, 0]

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Scores of all pairs of locals ``(M, C)`` and globals ``(B, D)``: ``(M, B)``."""
        return self.score(self.embed_local(x), self.embed_global(y))

    def log_partition(self, x: Tensor, y: Tensor, chunk: int = 2**22) -> Tensor:
        """``log mean exp f`` over all pairs of ``(M, C)`` and ``(B, D)``.

        Args:
            x: locals.
            y: globals.
            chunk: numbers in memory at a time.

        Returns:
            Scalar tensor.
        """
        local, global_ = self.embed_local(x), self.embed_global(y)
        rows = max(1, chunk // (len(global_) * self.numbers_per_pair))
        total = torch.full((), -math.inf, dtype=torch.double, device=x.device)
        for part in local.split(rows):
            scores = self.score(part, global_).double()
            total = torch.logaddexp(total, scores.flatten().logsumexp(0))
        total = total - math.log(len(local) * len(global_))
        return total.to(x.dtype)


class _JointlyGaussian(_Embedding):
    """An embedding ``g`` and an offset ``a``, whose quadratic part is diagonal in ``g``.

    The log density ratio of jointly Gaussian ``g`` and ``h`` is ``g . A h`` and a quadratic form
    of each. A network alone is far from a square at the tails, where the rare pairs lie that
    decide an estimate of many nats.
    """

    def __init__(self, n_in: int, hidden: Sequence[int], embedding_size: int) -> None:
        super().__init__(n_in, hidden, embedding_size + 1)
        self.scale = 1 / math.sqrt(embedding_size)
        self.quadratic = nn.Parameter(torch.zeros(embedding_size))

    def forward(self, x: Tensor) -> Tensor:
        """``(..., n_in) -> (..., embedding_size + 1)``, the offset last."""
        g, offset = super().forward(x).split([len(self.quadratic), 1], -1)
        quadratic = self.scale * (self.quadratic * g.square()).sum(-1, keepdim=True)
        return torch.cat([g, offset - quadratic], -1)


class SeparableCritic(Critic):
    r"""``f(x, y) = g(x) . h(y) / sqrt(E) + a(x) + b(y)``, with ``g, a`` and ``h, b`` networks.

    All pairs of a bank cost one matrix product. The offsets ``a`` and ``b`` let the dot product
    stand for a log density ratio, whose marginal terms are not inner products; they hold a
    quadratic form of ``g`` and ``h``, with which the critic of Gaussians is exact.

    Args:
        local_size: ``C``.
        global_size: ``D``.
        hidden: widths of the hidden layers; ``()`` is a single-layer critic.
        embedding_size: length of the dot product.
    """

    def __init__(
        self,
        local_size: int,
        global_size: int,
        hidden: Sequence[int] = (256,),
        embedding_size: int = 64,
    ) -> None:
        super().__init__()
        self.local = _JointlyGaussian(local_size, hidden, embedding_size)
        self.global_ = _JointlyGaussian(global_size, hidden, embedding_size)

    def embed_local(self, x: Tensor) -> Tensor:
        out: Tensor = self.local(x)
        return out

    def embed_global(self, y: Tensor) -> Tensor:
        out: Tensor = self.global_(y)
        return out

    def score(self, local: Tensor, global_: Tensor) -> Tensor:
        product = local[..., :-1] @ global_[..., :-1].transpose(-1, -2)
        return product * self.local.scale + local[..., -1:] + global_[..., None, :, -1]


class ConcatenatedCritic(Critic):
    r"""``f(x, y) = MLP([x, y])``: any interaction, at the price of one evaluation per pair.

    The first layer is split into a part for ``x`` and one for ``y``, which is the same function
    and lets the parts be computed once per local and once per global.

    Args:
        local_size: ``C``.
        global_size: ``D``.
        hidden: widths of the hidden layers; ``()`` is a single-layer critic (whose scores are a
            sum of a term of ``x`` and one of ``y``, and can find no dependence).
    """

    def __init__(
        self, local_size: int, global_size: int, hidden: Sequence[int] = (256,)
    ) -> None:
        super().__init__()
        first = hidden[0] if hidden else 1
        self.numbers_per_pair = max(hidden, default=1)
        self.local = _Embedding(local_size, (), first)
        self.global_ = _Embedding(global_size, (), first)
        self.rest = (
            nn.Sequential(nn.GELU(), mlp(first, hidden[1:], 1)) if hidden else nn.Identity()
        )

    def embed_local(self, x: Tensor) -> Tensor:
        out: Tensor = self.local(x)
        return out

    def embed_global(self, y: Tensor) -> Tensor:
        out: Tensor = self.global_(y)
        return out

    def score(self, local: Tensor, global_: Tensor) -> Tensor:
        out: Tensor = self.rest(local[..., :, None, :] + global_[..., None, :, :])
        return out[..., 0]


def make_critic(
    kind: CriticKind,
    local_size: int,
    global_size: int,
    hidden: Sequence[int],
) -> Critic:
    """Critic of a kind."""
    made = {"separable": SeparableCritic, "concatenated": ConcatenatedCritic}
    return made[kind](local_size, global_size, hidden)
