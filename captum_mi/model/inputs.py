"""Checks of inputs: that they look as they did during the fit, and are finite."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from captum_mi.model.modules import dtype_of

__all__ = ["Signature", "all_finite", "check_finite", "check_inputs", "check_types"]


@dataclass(frozen=True)
class Signature:
    """What inputs looked like during the fit: per input its dtype and all but the free sizes.

    Args:
        dtypes: names such as ``"float32"``.
        ranks: numbers of axes.
        channels: sizes of the axes with channels, 0 where none is known to have them.
        channel_axes: which axes these are; ``None`` where none is known.
    """

    dtypes: tuple[str, ...]
    ranks: tuple[int, ...]
    channels: tuple[int, ...]
    channel_axes: tuple[int | None, ...]

    @classmethod
    def of(cls, inputs: tuple[Tensor, ...], channel_axes: Sequence[int | None]) -> Signature:
        return cls(
            tuple(str(x.dtype).removeprefix("torch.") for x in inputs),
            tuple(x.dim() for x in inputs),
            tuple(x.shape[axis] if axis is not None and x.dim() > axis else 0
                  for x, axis in zip(inputs, channel_axes)),
            tuple(channel_axes),
        )

    def check(self, inputs: tuple[Tensor, ...]) -> None:
        """Raise where inputs differ from the fit's in number, dtype, axes or channels.

        Floating-point inputs are to have the model's type, which may have changed since the fit.
        """
        if len(inputs) != len(self.dtypes):
            raise ValueError(f"got {len(inputs)} inputs; the fit saw {len(self.dtypes)}")
        now = Signature.of(inputs, self.channel_axes)
        for i in range(len(inputs)):
            if now.dtypes[i] != self.dtypes[i] and not (
                    inputs[i].is_floating_point() and "float" in self.dtypes[i]):
                raise TypeError(
                    f"input {i} has dtype {now.dtypes[i]}; the fit saw {self.dtypes[i]}. "
                    f"Convert it with .to(torch.{self.dtypes[i]})"
                )
            if now.ranks[i] != self.ranks[i]:
                raise ValueError(
                    f"input {i} has shape {tuple(inputs[i].shape)}; the fit saw inputs of "
                    f"{self.ranks[i]} axes, the batch first"
                )
            if now.channels[i] != self.channels[i]:
                raise ValueError(
                    f"input {i} has {now.channels[i]} channels (shape "
                    f"{tuple(inputs[i].shape)}); the fit saw {self.channels[i]}"
                )


def check_inputs(inputs: tuple[Tensor, ...], model: nn.Module) -> None:
    """Raise for inputs of no or different lengths, other types than the model's, NaN or Inf."""
    check_types(inputs, model)
    check_finite(inputs)


def check_types(inputs: tuple[Tensor, ...], model: nn.Module) -> None:
    """Raise for empty inputs, other numbers of examples or a type that no parameter has."""
    if len({x.shape[:1] for x in inputs}) > 1:
        raise ValueError(
            f"inputs have shapes {[tuple(x.shape) for x in inputs]}; expected as many examples "
            "in each, the batch first. What is the same for all examples is an additional "
            "forward argument"
        )
    for i, x in enumerate(inputs):
        if x.numel() == 0:
            raise ValueError(f"input {i} is empty: shape {tuple(x.shape)}")
        if x.is_floating_point() and x.dtype != (dtype := dtype_of(model)) and not any(
                x.dtype == parameter.dtype for parameter in model.parameters()):
            raise TypeError(
                f"input {i} has dtype {x.dtype}; the model's parameters are {dtype}. Convert "
                f"it with .to({dtype})"
            )


def check_finite(inputs: tuple[Tensor, ...]) -> None:
    """Raise for NaN or Inf."""
    for i, x in enumerate(inputs):
        if x.is_floating_point() and not all_finite(x):
            raise ValueError(f"input {i} holds NaN or Inf; expected finite values")


def all_finite(x: Tensor) -> bool:
    """Whether no element is NaN or Inf: mostly told by the sum, in one walk over them."""
    return bool(torch.isfinite(x.sum())) or bool(torch.isfinite(x).all())
