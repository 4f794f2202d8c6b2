"""What loaders yield, turned into batches on the model's device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from captum_mi.model.arguments import move

__all__ = ["Batch", "Data", "epochs_of", "explained_calls"]


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


@dataclass(frozen=True)
class Data:
    """What is walked over: a loader, and what its items are turned into.

    An item that is a bare tensor is the inputs, a pair is (inputs, labels), a sequence of three
    or more tensors is several inputs.

    Attributes:
        loader: any iterable that can be walked again.
        prepare_batch: turns anything else into one of these or a :class:`Batch`.
        additional_forward_args: of the model, for batches that have none of their own.
    """

    loader: Iterable[Any]
    prepare_batch: Callable[[Any], Any] | None
    additional_forward_args: tuple[Any, ...]

    @property
    def n_batches(self) -> int | None:
        """How many batches a walk has, if the loader knows."""
        try:
            return len(self.loader)  # type: ignore[arg-type]
        except TypeError:  # as a DataLoader over a stream
            return None

    def batches(self, device: torch.device) -> Iterator[Batch]:
        """Walk once.

        Raises:
            TypeError: for a tensor, a dataset or a one-shot iterator, or an item of another form.
            ValueError: if the loader yields nothing.
        """
        empty = True
        for item in self._iterator():
            empty = False
            batch = _to_batch(self.prepare_batch(item) if self.prepare_batch else item)
            inputs = move(batch.inputs, device)
            yield Batch(
                _channels_last(inputs) if device.type == "cuda" else inputs,
                move(batch.labels, device),
                move(batch.additional_forward_args or self.additional_forward_args, device),
            )
        if empty:
            raise ValueError(
                "the loader is empty: it yielded no batch. (It is walked several times, each time "
                "from its start: a dataset that can be streamed only once is empty then)")

    def _iterator(self) -> Iterator[Any]:
        loader = self.loader
        if isinstance(loader, (Tensor, Dataset)) and not isinstance(loader, IterableDataset):
            raise TypeError(
                f"expected a loader that yields batches; got a {type(loader).__name__}, which "
                "yields single examples. Pass DataLoader(dataset, batch_size), DataLoader("
                "dataset, batch_size=None) if its items are batches, or [images] for one batch"
            )
        if not hasattr(loader, "__iter__") and not hasattr(loader, "__getitem__"):
            raise TypeError(
                f"expected a loader that yields batches, such as a DataLoader; got a "
                f"{type(loader).__name__}, which cannot be walked. A function that makes the "
                "loader is to be called"
            )
        iterator = iter(loader)
        if iterator is loader:
            raise TypeError(
                f"the loader is walked several times, and a {type(loader).__name__} can be walked "
                "only once; pass a DataLoader, a list, or another iterable that starts afresh"
            )
        return iterator

    @contextmanager
    def walks(self, device: torch.device) -> Iterator[Callable[[], Iterator[Batch]]]:
        """What starts a walk, each in an order of its own where the loader shuffles."""
        with epochs_of(self.loader) as begin:

            def walk() -> Iterator[Batch]:
                begin()
                return self.batches(device)

            yield walk


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
            if isinstance(item[1], (int, float)) or (
                    isinstance(item[1], Tensor) and item[1].dim() == 0):
                raise TypeError(
                    "the loader yielded a pair whose label is a single number: it yields examples "
                    "one by one. Pass DataLoader(dataset, batch_size)"
                )
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
