"""Numbers that tell examples apart by their own bits, whatever batch they come in."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["example_bits", "example_keys"]

_GOLDEN = -0x61C8864680B583EB  # 2^64 / golden ratio, as a signed integer


def example_bits(*inputs: Tensor) -> Tensor:
    """An integer per example ``(N,)`` made of the inputs' own bits.

    It is the same whatever batch the example comes in, so that a share of the data can be set
    aside from any loader, shuffled or not. Never negative, and evenly spread: a multiplicative
    hash (Knuth, 1973), each position with an odd factor of its own.
    """
    rows = torch.cat([_bits(x) for x in inputs], 1)
    odd = 2 * torch.arange(rows.shape[1], device=rows.device) + 1
    return ((rows * odd).sum(1) * _GOLDEN >> 32) & 0x7FFFFFFF


def example_keys(x: Tensor) -> Tensor:
    """64 bits per example ``(N,)`` that tell it from others, whatever batch it comes in.

    As :func:`example_bits`, with factors that look random, so that inputs of few values have as
    many keys: mixed as by SplitMix64 (Steele, Lea and Flood, 2014).
    """
    rows = _bits(x)
    factors = torch.arange(1, rows.shape[1] + 1, device=x.device) * _GOLDEN
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        factors = (factors ^ (factors >> shift)) * factor
    return (rows * (factors | 1)).sum(1)


def _bits(x: Tensor) -> Tensor:
    """Rows ``(N, elements)`` of integers; floating-point numbers by their 32 bits, doubles by two
    halves of theirs, complex ones by their two parts."""
    rows = (torch.view_as_real(x.resolve_conj()) if x.is_complex() else x).reshape(len(x), -1)
    if not rows.is_floating_point():
        return rows.long()
    rows = rows if rows.dtype == torch.float64 else rows.float()
    return rows.contiguous().view(torch.int32).long()
