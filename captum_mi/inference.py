"""The inference network: features of the first forward pass -> a map, such as alpha's logit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_mi.bottleneck import bounded_logit, logit_of
from captum_mi.grid import n_positions, resize

__all__ = ["FixedAlpha", "InferenceKind", "InferenceNetwork"]

InferenceKind = Literal["conv", "mlp"]

_CONV: dict[int, type[nn.Module]] = {0: nn.Conv1d, 1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_POINTWISE: dict[int, Callable[..., Tensor]] = {
    0: F.linear, 1: F.conv1d, 2: F.conv2d, 3: F.conv3d,
}
_GROUPS = 8
_INITIAL_LOGIT = -3.0  # alpha starts at 0.05: nearly untouched features


class _Reduce(nn.Module):
    """One layer, reduced to fewer channels on another grid.

    A linear map of each position's channels, group normalisation, which works within an example
    so that no example depends on its batch, and GELU. A grid with fewer positions is gone to
    first, one with more last: the work is done on the smaller of the two.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, width)
        self.norm = nn.GroupNorm(_GROUPS, width)

    def forward(self, z: Tensor, positions: Sequence[int]) -> Tensor:
        if n_positions(positions) < n_positions(z.shape[2:]):
            z = resize(z, positions)
        axes = z.dim() - 2
        weight = self.linear.weight.view(*self.linear.weight.shape, *[1] * axes)
        reduced = F.gelu(self.norm(_POINTWISE[axes](z, weight, self.linear.bias)))
        return resize(reduced, positions)


class InferenceNetwork(nn.Module):
    """Reads several layers, reduced to one grid and concatenated, and returns a map.

    They pass two 3x3 convolutions and a last 1x1, which starts at one value everywhere.

    Args:
        channels: channels of each layer that is read.
        position_axes: number of position axes of the grid that alpha lives on, 0 to 3.
        kind: ``"conv"`` sees neighbours, ``"mlp"`` (kernel size 1) one position at a time.
        width: channels that each layer is reduced to, a multiple of 8.
        hidden: channels of the two convolutions.
    """

    def __init__(
        self,
        channels: Sequence[int],
        position_axes: int,
        kind: InferenceKind = "conv",
        width: int = 32,
        hidden: int = 64,
    ) -> None:
        super().__init__()
        self.position_axes = position_axes
        kernel = 3 if kind == "conv" and position_axes else 1
        self.reduce = nn.ModuleList(_Reduce(c, width) for c in channels)
        # Zeros beyond the edges would tell the outermost positions from others.
        padding: Any = {"padding": kernel // 2, "padding_mode": "replicate"}
        conv = _CONV[position_axes]
        last = conv(hidden, 1, 1)
        self.combine = nn.Sequential(
            conv(width * len(channels), hidden, kernel, **padding),
            nn.GELU(),
            conv(hidden, hidden, kernel, **padding),
            nn.GELU(),
            last,
        )
        nn.init.zeros_(last.weight)  # type: ignore[arg-type]
        nn.init.constant_(last.bias, _INITIAL_LOGIT)  # type: ignore[arg-type]

    def forward(self, context: Sequence[Tensor], positions: Sequence[int]) -> Tensor:
        """Logit of alpha ``(N, 1, *positions)`` from standardised ``(N, C_l, *positions_l)``."""
        reduced = [reduce(z, positions) for reduce, z in zip(self.reduce, context)]
        stacked = torch.cat(reduced, 1)
        if self.position_axes:
            logits: Tensor = self.combine(stacked)
        else:
            logits = self.combine(stacked[..., None])[..., 0]
        return logits


class FixedAlpha(nn.Module):
    """An alpha set by hand: a number, or a tensor that is resized to each layer's grid.

    Args:
        alpha: a tensor of shape ``()`` or of the grid ``(*positions)``, values in [0, 1].
    """

    logit: Tensor

    def __init__(self, alpha: Tensor) -> None:
        super().__init__()
        self.register_buffer("logit", logit_of(alpha))

    def forward(self, context: Sequence[Tensor], positions: Sequence[int]) -> Tensor:
        """Logit ``(N, 1, *positions)``; of the context, only its batch size is used."""
        logit = self.logit[None, None]
        if self.logit.dim() and self.logit.shape != tuple(positions):  # alpha is what is averaged
            logit = bounded_logit(resize(torch.sigmoid(logit), positions).clamp(0, 1))
        return resize(logit, positions).expand(len(context[0]), 1, *positions)
