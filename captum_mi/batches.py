"""What loaders yield, turned into batches on the model's device; and checks of inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, count
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset

__all__ = [
    "Batch", "Signature", "all_finite", "batches", "check_finite", "check_inputs", "check_types",
    "chunks", "copied", "device_of", "dtype_of", "epochs_of", "example_bits", "example_keys",
    "explained_calls", "has_rows", "move", "rebuilt",
]


_GOLDEN = -0x61C8864680B583EB  # 2^64 / golden ratio, as a signed integer


@dataclass(frozen=True)
class Batch:
    """One batch as the model takes it.

    Args:
        inputs: input tensors, batch first.
        labels: labels ``(N, ...)``, or ``None``.
        additional_forward_args: further arguments of the model for this batch.
    """

    inputs: tuple[Tensor, ...]
    labels: Tensor | None = None
    additional_forward_args: tuple[Any, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.inputs, tuple):
            raise TypeError(
                f"Batch expects inputs as a tuple of tensors; got a {type(self.inputs).__name__}. "
                "One input is Batch((images,), labels)"
            )


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


def move(value: Any, device: torch.device) -> Any:
    """Tensors to a device; tuples and lists element by element; anything else as it is.

    Tensors made in inference mode are copied, so that what is made of them can have gradients.
    """
    if isinstance(value, Tensor):
        moved = value.to(device, non_blocking=True)
        return moved.clone() if moved.is_inference() else moved
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
    size = n if internal_batch_size is None else internal_batch_size
    if size < 1:
        raise ValueError(f"internal_batch_size must be at least 1; got {internal_batch_size}")
    for start in range(0, n, size):
        part = slice(start, start + size)
        yield (
            tuple(x[part] for x in inputs),
            tuple(arg[part] if has_rows(arg, n) else arg for arg in args),
            None if index is None else index[part],
        )


def rebuilt(value: Any, parts: Sequence[Any]) -> Any:
    """A tuple or list, of which there are named ones, with other parts."""
    return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)


def batches(
    loader: Iterable[Any],
    device: torch.device,
    prepare_batch: Callable[[Any], Any] | None,
    additional_forward_args: tuple[Any, ...],
) -> Iterator[Batch]:
    """Walk a loader once.

    A bare tensor is the inputs, a pair is (inputs, labels), a sequence of three or more tensors
    is several inputs; ``prepare_batch`` may turn anything else into one of these or a
    :class:`Batch`.

    Raises:
        TypeError: for a tensor, a dataset or a one-shot iterator, or an item of another form.
        ValueError: if the loader yields nothing.
    """
    if isinstance(loader, (Tensor, Dataset)) and not isinstance(loader, IterableDataset):
        raise TypeError(
            f"expected a loader that yields batches; got a {type(loader).__name__}, which yields "
            "single examples. Pass DataLoader(dataset, batch_size), DataLoader(dataset, "
            "batch_size=None) if its items are batches, or [images] for one batch"
        )
    iterator = iter(loader)
    if iterator is loader:
        raise TypeError(
            f"the loader is walked several times, and a {type(loader).__name__} can be walked "
            "only once; pass a DataLoader, a list, or another iterable that starts afresh"
        )
    empty = True
    for item in iterator:
        empty = False
        batch = _to_batch(prepare_batch(item) if prepare_batch else item)
        inputs = move(batch.inputs, device)
        yield Batch(
            _channels_last(inputs) if device.type == "cuda" else inputs,
            move(batch.labels, device),
            move(batch.additional_forward_args or additional_forward_args, device),
        )
    if empty:
        raise ValueError("the loader is empty: it yielded no batch")


@contextmanager
def epochs_of(loader: Iterable[Any]) -> Iterator[Callable[[], None]]:
    """What is to be called before each walk over a loader inside.

    Samplers such as ``DistributedSampler`` give the same order in every walk unless they are told
    the epoch. The loader's own sampler is told, and put back to the epoch that it was in.
    """
    sampler = getattr(loader, "sampler", None)
    if not callable(getattr(sampler, "set_epoch", None)):
        yield lambda: None
        return
    start = getattr(sampler, "epoch", 0)
    walks = count(start)
    try:
        yield lambda: sampler.set_epoch(next(walks))  # type: ignore[union-attr]
    finally:
        sampler.set_epoch(start)  # type: ignore[union-attr]


def _channels_last(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Images in the memory format that convolutions on CUDA are fastest in."""
    return tuple(
        x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x for x in inputs
    )


@contextmanager
def explained_calls(batch: Batch) -> Iterator[None]:
    """Where the model is called with too few or too many inputs, say which a loader's item gives.

    Raises:
        TypeError: the model's, with that added.
    """
    try:
        yield
    except TypeError as error:
        if "positional argument" not in str(error):
            raise
        labels = "" if batch.labels is None else " and labels"
        raise TypeError(
            f"{error}. What the loader yielded was taken for {len(batch.inputs)} input(s)"
            f"{labels}: a pair is (inputs, labels), a longer tuple is inputs, and ((a, b), "
            "labels) or ((a, b), None) has two inputs. Pass prepare_batch= to turn it into one "
            "of these"
        ) from error


def _to_batch(item: Any) -> Batch:
    if isinstance(item, Batch):
        return item
    if isinstance(item, Tensor):
        return Batch((item,))
    if isinstance(item, (tuple, list)) and item:
        if len(item) == 2:
            return Batch(_inputs(item[0]), item[1])
        return Batch(_inputs(item))
    raise TypeError(
        f"the loader yielded a {type(item).__name__}; expected a tensor, a pair (inputs, "
        "labels), or a tuple of inputs. Pass prepare_batch= to turn it into one of these"
    )


def _inputs(value: Any) -> tuple[Tensor, ...]:
    parts = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    if not all(isinstance(part, Tensor) for part in parts):
        raise TypeError(
            f"inputs must be tensors; got {[type(part).__name__ for part in parts]}. Pass "
            "prepare_batch= to convert what the loader yields"
        )
    return parts


@dataclass(frozen=True)
class Signature:
    """What inputs looked like during the fit: per input its dtype and all but the free sizes.

    Args:
        dtypes: names such as ``"float32"``.
        ranks: numbers of axes.
        channels: sizes of the axes with channels, or 0 for inputs of one axis.
        channel_axes: which axes these are; none given: 1 for all.
    """

    dtypes: tuple[str, ...]
    ranks: tuple[int, ...]
    channels: tuple[int, ...]
    channel_axes: tuple[int, ...] = ()

    @classmethod
    def of(cls, inputs: tuple[Tensor, ...], channel_axes: Sequence[int] = ()) -> Signature:
        axes = tuple(channel_axes) or (1,) * len(inputs)
        return cls(
            tuple(str(x.dtype).removeprefix("torch.") for x in inputs),
            tuple(x.dim() for x in inputs),
            tuple(x.shape[axis] if x.dim() > axis else 0 for x, axis in zip(inputs, axes)),
            axes,
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
            # With two axes, axis 1 is a length, which may change.
            if now.ranks[i] > 2 and now.channels[i] != self.channels[i]:
                raise ValueError(
                    f"input {i} has {now.channels[i]} channels (shape "
                    f"{tuple(inputs[i].shape)}); the fit saw {self.channels[i]}"
                )


def check_inputs(inputs: tuple[Tensor, ...], dtype: torch.dtype) -> None:
    """Raise for inputs of no or different lengths, other types than the model's, NaN or Inf."""
    check_types(inputs, dtype)
    check_finite(inputs)


def check_types(inputs: tuple[Tensor, ...], dtype: torch.dtype) -> None:
    """Raise for empty inputs, other numbers of examples or floating-point types than expected."""
    if len({x.shape[:1] for x in inputs}) > 1:
        raise ValueError(
            f"inputs have shapes {[tuple(x.shape) for x in inputs]}; expected as many examples "
            "in each, the batch first. What is the same for all examples is an additional "
            "forward argument"
        )
    for i, x in enumerate(inputs):
        if x.numel() == 0:
            raise ValueError(f"input {i} is empty: shape {tuple(x.shape)}")
        if x.is_floating_point() and x.dtype != dtype:
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
    """Rows ``(N, elements)`` of integers; floating-point numbers by their 32 bits."""
    rows = x.reshape(len(x), -1)
    return (rows.float().view(torch.int32) if rows.is_floating_point() else rows).long()
