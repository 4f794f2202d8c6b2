"""Fits that are made once, and read from their file ever after."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor, nn

from captum_mi import InfoBottleneckAttribution

__all__ = ["read_or_made"]


def read_or_made(
    path: Path | None, model: nn.Module, make: Callable[[], InfoBottleneckAttribution],
    downstream: Callable[..., Tensor] | None = None, writes: bool = True,
) -> InfoBottleneckAttribution:
    """The fit in a file; if there is none, what ``make`` returns, and the file with it.

    Args:
        path: the file; ``None`` for a fit that is not kept.
        model: the model that it was made on.
        make: makes the fit.
        downstream: the downstream function of a fit that has one.
        writes: whether this process writes the file.
    """
    if path and path.exists():
        return InfoBottleneckAttribution.load(path, model, downstream)
    attr = make()
    if path and writes:
        path.parent.mkdir(parents=True, exist_ok=True)
        attr.save(path)
    return attr
