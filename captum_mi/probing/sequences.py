"""What the modules inside of a layer tell about the axes of sequences."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

__all__ = ["reads_last_axis"]


def reads_last_axis(model: nn.Module, layers: Sequence[str]) -> bool:
    """Whether modules in layers take the last axis for channels, and none takes axis 1."""
    modules = [module for name in layers for module in model.get_submodule(name).modules()]

    def any_of(*kinds: type[nn.Module]) -> bool:
        return any(isinstance(module, kinds) for module in modules)

    if any_of(nn.Conv1d, nn.BatchNorm1d):
        return False
    return any_of(nn.MultiheadAttention) or (any_of(nn.LayerNorm) and any_of(nn.Linear))
