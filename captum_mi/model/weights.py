"""Recognise a model's weights: by a digest, and cheaply from call to call."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from captum_mi.model.later import Later
from captum_mi.model.modules import held_by

__all__ = ["WeightWatch", "check_shapes", "fingerprint", "shapes"]

_SAMPLES = 16


class _Sample(NamedTuple):
    """Where some elements of a tensor are: which one, and size, stride and offset of a view."""

    tensor: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int


def shapes(model: nn.Module) -> dict[str, list[int]]:
    """Name and shape of every tensor in the model's state."""
    return {name: list(value.shape) for name, value in _tensors(model).items()}


def check_shapes(expected: dict[str, list[int]], model: nn.Module) -> None:
    """Raise ``ValueError`` naming the first tensor that is missing, extra or of another shape."""
    found = shapes(model)
    for name, shape in expected.items():
        if name not in found:
            raise ValueError(
                f"the fit's model has {name!r} of shape {tuple(shape)}; this "
                f"{type(model).__name__} has no such tensor"
            )
        if found[name] != shape:
            raise ValueError(
                f"{name!r} has shape {tuple(found[name])} in this {type(model).__name__}; the "
                f"fit's model has {tuple(shape)}"
            )
    extra = [name for name in found if name not in expected]
    if extra:
        raise ValueError(
            f"this {type(model).__name__} has {extra[0]!r}, which the fit's model lacks"
        )


def fingerprint(model: nn.Module) -> str:
    """SHA-256 of names, types, shapes and contents of the model's parameters and buffers."""
    digest = hashlib.sha256()
    for name, value in _tensors(model).items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        dense = value.detach().cpu().to_dense() if value.layout is not torch.strided else (
            value.detach().cpu())
        flat = dense.contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    state = model.state_dict(keep_vars=True)
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


class WeightWatch:
    """Tells whether a model still has the weights of a fingerprint.

    The digest is computed anew only after addresses, version counters or some of the elements
    have changed.

    Args:
        model: the model.
        expected: fingerprint that it should have; ``None`` takes the present one.
    """

    def __init__(self, model: nn.Module, expected: str | None = None) -> None:
        self.model = model
        self.expected = fingerprint(model) if expected is None else expected
        self._glance: tuple[list[int], list[int], list[Tensor]] | None = None
        self._samples: list[list[_Sample]] = []
        self._unchanged = True

    @torch.no_grad()
    def look(self) -> Callable[[], bool]:
        """Look at the weights: addresses, versions, and some elements of each tensor.

        Returns:
            Tells whether the weights are those of the fingerprint, and waits until it can.
        """
        tensors = held_by(self.model)
        addresses = [tensor.data_ptr() for tensor in tensors]
        versions = [0 if tensor.is_inference() else tensor._version for tensor in tensors]
        before = self._glance
        moved = before is None or addresses != before[0]
        if moved:
            self._samples = _samples_of(tensors)
        sampled = [
            torch.cat([tensors[i].as_strided(size, stride, offset)
                       for i, size, stride, offset in samples]).view(torch.uint8)
            for samples in self._samples
        ]
        differs: list[Later] = []
        if before is not None and not moved:
            differs = [Later((old != new).any()[None]) for old, new in zip(before[2], sampled)]

        def unchanged() -> bool:
            same = not moved and before is not None and versions == before[1]
            if not same or any(flag.tolist() != [False] for flag in differs):
                self._unchanged = fingerprint(self.model) == self.expected
                self._glance = addresses, versions, sampled
            return self._unchanged

        return unchanged

    def __reduce__(self) -> tuple[type[WeightWatch], tuple[nn.Module, str]]:
        return WeightWatch, (self.model, self.expected)


def _samples_of(tensors: Sequence[Tensor]) -> list[list[_Sample]]:
    """Some elements of each tensor, evenly spaced in memory, by type and device."""
    groups: dict[tuple[torch.device, torch.dtype], list[_Sample]] = {}
    for i, tensor in enumerate(tensors):
        stored = _as_stored(tensor)
        if stored.data_ptr() != tensor.data_ptr():  # a copy, of a tensor with gaps or repetitions
            stored = (tensor[(0,) * tensor.dim()][None] if tensor.numel()
                      else tensor.flatten()[:0])
        some = stored[:: max(1, stored.numel() // _SAMPLES)]
        sample = _Sample(i, tuple(some.shape), some.stride(), int(some.storage_offset()))
        groups.setdefault((tensor.device, tensor.dtype), []).append(sample)
    return list(groups.values())


def _as_stored(tensor: Tensor) -> Tensor:
    """All elements in the order that they have in memory, so that none need be copied."""
    axes = sorted(range(tensor.dim()), key=tensor.stride, reverse=True)
    return tensor.permute(axes).reshape(-1)
