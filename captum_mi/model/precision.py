"""Mixed precision: the model's passes may run under ``torch.autocast``, our networks never do."""

from __future__ import annotations

import torch
from torch import nn

from captum_mi.model.modules import device_of, dtype_of

__all__ = ["chosen_amp", "full_precision", "own_dtype", "surrounding_amp"]


def surrounding_amp(model: nn.Module) -> torch.dtype | None:
    """What the ``torch.autocast`` that the caller is in would run the model in, if any."""
    device = device_of(model).type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


def chosen_amp(model: nn.Module, amp: bool | None) -> torch.dtype | None:
    """What a fit runs the model in.

    By default bfloat16 for float32 models on CUDA devices that have it: others emulate it, slowly.
    """
    if amp is None:
        surrounding = surrounding_amp(model)
        if surrounding is not None:
            return surrounding
        device = device_of(model)
        amp = device.type == "cuda" and dtype_of(model) == torch.float32 and _has_bfloat16(device)
    return torch.bfloat16 if amp else None


def _has_bfloat16(device: torch.device) -> bool:
    with torch.cuda.device(device):
        return torch.cuda.is_bf16_supported(including_emulation=False)


def full_precision(model: nn.Module) -> torch.autocast:
    """Leave the surrounding ``torch.autocast`` for a while."""
    return torch.autocast(device_of(model).type, enabled=False)


def own_dtype(model: nn.Module) -> torch.dtype:
    """What our networks compute in beside a model."""
    return torch.promote_types(dtype_of(model), torch.float32)
