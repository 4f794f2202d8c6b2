"""What a model consists of, and the device and type of its parameters.

In lists: PyTorch's own walk spends most of its time on names, which a call of one image would
notice.
"""

from __future__ import annotations

from itertools import chain

import torch
from torch import Tensor, nn

__all__ = ["device_of", "dtype_of", "held_by", "modules_of"]


def modules_of(model: nn.Module) -> list[nn.Module]:
    """The model and every module inside of it, each once."""
    found, seen = [model], {model}
    for module in found:  # which grows meanwhile
        for child in module._modules.values():
            if child is not None and child not in seen:
                seen.add(child)
                found.append(child)
    return found


def held_by(model: nn.Module) -> list[Tensor]:
    """Parameters and buffers, but for sparse ones, whose elements have no place in memory."""
    return [
        tensor for module in modules_of(model)
        for tensor in (*module._parameters.values(), *module._buffers.values())
        if tensor is not None and tensor.layout is torch.strided
    ]


def device_of(model: nn.Module) -> torch.device:
    """Device of the model's first parameter or buffer; the CPU if it has none."""
    first = next(chain(model.parameters(), model.buffers()), None)
    return torch.device("cpu") if first is None else first.device


def dtype_of(model: nn.Module) -> torch.dtype:
    """Floating-point type of the model's first floating-point parameter; float32 if none."""
    for parameter in model.parameters():
        if parameter.is_floating_point():
            return parameter.dtype
    return torch.float32
