"""What a model is called with: moved to a device, copied, and sliced into smaller batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from captum_mi.choices import whole

__all__ = ["chunks", "copied", "has_rows", "move", "of_few", "rebuilt", "replaced"]

T = TypeVar("T")


def move(value: Any, device: torch.device) -> Any:
    """Tensors to a device; tuples and lists element by element; anything else as it is.

    Tensors made in inference mode are copied, so that what is made of them can have gradients.
    """
    if isinstance(value, Tensor):
        moved = value.to(device, non_blocking=True)
        if not moved.is_inference():
            return moved
        with torch.inference_mode(False):
            return moved.clone()
    if isinstance(value, (tuple, list)):
        return rebuilt(value, [move(part, device) for part in value])
    return value


def copied(values: Sequence[Any]) -> tuple[Any, ...]:
    """Copies of tensors, for a model that may overwrite what it is given; the rest as it is."""
    return tuple(value.clone() if isinstance(value, Tensor) else value for value in values)


def has_rows(arg: Any, n: int) -> bool:
    """Whether a forward argument is a tensor with a row for each of ``n`` examples."""
    return isinstance(arg, Tensor) and arg.dim() > 0 and len(arg) == n


def chunks(
    inputs: tuple[Tensor, ...],
    args: tuple[Any, ...],
    index: Tensor | None,
    internal_batch_size: int | None,
) -> Iterator[tuple[tuple[Tensor, ...], tuple[Any, ...], Tensor | None]]:
    """Slices of a batch: inputs, tensor arguments with a row for each example, indices."""
    n = len(inputs[0])
    size = n
    if internal_batch_size is not None:
        size = whole("internal_batch_size", internal_batch_size, 1)
    for start in range(0, n, size):
        part = slice(start, start + size)
        yield (
            tuple(x[part] for x in inputs),
            tuple(arg[part] if has_rows(arg, n) else arg for arg in args),
            None if index is None else index[part],
        )


def of_few(
    call: Callable[[tuple[Tensor, ...], tuple[Any, ...]], T],
    inputs: tuple[Tensor, ...], args: tuple[Any, ...], most: int,
) -> tuple[tuple[Tensor, ...], tuple[Any, ...], T]:
    """A batch's first examples, and what a call gives for them; the whole batch if it takes no
    other."""
    few, few_args, _ = next(chunks(inputs, args, None, most))
    try:
        return few, few_args, call(few, few_args)
    except Exception:  # of the user's code
        return inputs, args, call(inputs, args)


def rebuilt(value: Any, parts: Sequence[Any]) -> Any:
    """A tuple (a named one too) or list of the same kind, with other parts."""
    return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)


def replaced(inputs: tuple[Tensor, ...], i: int, x: Tensor) -> tuple[Tensor, ...]:
    """All inputs, with another one in the place of one of them."""
    return (*inputs[:i], x, *inputs[i + 1 :])
