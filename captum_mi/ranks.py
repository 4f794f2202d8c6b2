"""The processes of a ``torch.distributed`` group as one: each has its share of every batch.

Without an initialised group there is one process, and everything here is the identity.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = [
    "average_", "first_row", "gather_rows", "rand_rows", "randn_rows", "rank", "total",
    "weight_of", "world",
]


def world() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process; 0 for the one that speaks."""
    return dist.get_rank() if world() > 1 else 0


def total(value: Tensor) -> Tensor:
    """Sum over the processes."""
    if world() == 1:
        return value
    value = value.detach().clone()
    dist.all_reduce(value)
    return value


def gather_rows(rows: Tensor) -> Tensor:
    """Rows ``(n_r, ...)`` of all processes in their order; own rows keep their gradient."""
    if world() == 1:
        return rows
    sizes = _sizes(len(rows), rows.device)
    padded = rows.new_zeros(max(sizes), *rows.shape[1:])
    padded[: len(rows)] = rows.detach()
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    parts = [part[:n] for part, n in zip(parts, sizes)]
    parts[rank()] = rows
    return torch.cat(parts)


def first_row(n: int, device: torch.device) -> int:
    """How many rows the processes before this one have, if this one has ``n``."""
    return sum(_sizes(n, device)[: rank()]) if world() > 1 else 0


def weight_of(n: int, device: torch.device) -> float:
    """Weight by which a mean over own ``n`` rows enters the mean over processes."""
    return n * world() / sum(_sizes(n, device)) if world() > 1 else 1.0


def randn_rows(like: Tensor) -> Tensor:
    """Own rows of the normal draw that one process would make for the rows of all."""
    return _own(like, torch.randn) if world() > 1 else torch.randn_like(like)


def rand_rows(n: int, columns: int, device: torch.device) -> Tensor:
    """Own rows ``(n, columns)`` of the uniform draw that one process would make for all."""
    if world() == 1:
        return torch.rand(n, columns, device=device)
    return _own(torch.empty(n, columns, device=device), torch.rand)


def average_(gradients: Sequence[Tensor]) -> None:
    """Average gradients over the processes, in place."""
    if world() == 1 or not gradients:
        return
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    dist.all_reduce(flat)
    flat /= world()
    parts = flat.split([gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts):
        gradient.copy_(part.view_as(gradient))


def _own(like: Tensor, draw: object) -> Tensor:
    sizes = _sizes(len(like), like.device)
    start = sum(sizes[: rank()])
    every: Tensor = draw(  # type: ignore[operator]
        sum(sizes), *like.shape[1:], device=like.device, dtype=like.dtype)
    return every[start : start + len(like)]


def _sizes(n: int, device: torch.device) -> list[int]:
    own = torch.tensor([n], device=device)
    sizes = [torch.empty_like(own) for _ in range(world())]
    dist.all_gather(sizes, own)
    return [int(size) for size in sizes]
