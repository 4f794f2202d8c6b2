"""What a model consists of, in lists: PyTorch's own walk spends most of its time on names, which a
call of one image would notice."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["held_by", "modules_of"]


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
    """Parameters and buffers."""
    return [
        tensor for module in modules_of(model)
        for tensor in (*module._parameters.values(), *module._buffers.values())
        if tensor is not None
    ]
