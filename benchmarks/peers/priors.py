"""What needs no model: the middle of the image, and chance."""

from __future__ import annotations

import torch
from torch import Tensor

from peers.method import Method, per_channel


def methods(seed: int) -> dict[str, Method]:
    """Centre prior and random heat."""

    def centre(x: Tensor, t: Tensor) -> Tensor:
        axes = (torch.linspace(-1, 1, length, device=x.device) for length in x.shape[2:])
        y, x_ = torch.meshgrid(*axes, indexing="ij")
        heat = torch.exp(-2 * (y.square() + x_.square()))
        return per_channel(heat.expand(len(x), -1, -1), x)

    generator = torch.Generator().manual_seed(seed)
    return {
        "centre prior": Method(centre),
        "random": Method(lambda x, t: torch.rand(x.shape, generator=generator).to(x)),
    }
