"""CUDA graphs: work on tensors of the same shapes, recorded once, then launched as a whole.

Small networks on CUDA cost less to compute than to launch, one kernel after another. What was
recorded runs without Python, on the addresses that it was recorded with.
"""

from __future__ import annotations

import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, nullcontext, suppress

import torch
from torch import Tensor, nn

from captum_mi.model.modules import held_by, modules_of

__all__ = ["Recorder"]

Results = tuple[Tensor | None, ...]
Work = Callable[..., Results]

_MOST_KEYS = 64  # of work that was not recorded yet


class Recorder:
    """Runs work, and records what comes again, on CUDA, with tensors of the same shapes.

    The first time work runs as it is. The second time it is recorded, and run both ways from the
    same random state; if results differ, as of work that Python has a part in, the record is not
    used. A copy of a recorder starts without records.

    Args:
        may_wait: whether work may wait for the device, and then cannot be recorded: the first
            time PyTorch is told to raise if it does, in any thread.
        most: records that are kept. Each holds the memory that its work needs.
        most_bytes: of the tensors of a call; with more, launching costs little beside computing.
    """

    def __init__(
        self, may_wait: bool = False, most: int = 4, most_bytes: int = 2**27
    ) -> None:
        self.may_wait, self.most, self.most_bytes = may_wait, most, most_bytes
        self._records: OrderedDict[Hashable, _Record | None] = OrderedDict()

    def __call__(self, name: Hashable, owner: nn.Module, work: Work, *tensors: Tensor) -> Results:
        """What ``work(*tensors)`` returns.

        Args:
            name: of the work: of the same name is what differs in its tensors alone.
            owner: what else the work reads: its parameters and buffers.
            work: from tensors to tensors, or ``None``, by operations that shapes decide.
            tensors: all that changes from call to call.

        Returns:
            Tensors that the next call with the same name may overwrite.
        """
        if not _recordable(tensors) or sum(x.nbytes for x in tensors) > self.most_bytes:
            return work(*tensors)
        key = (name, _conditions(tensors[0].device), tuple(x.data_ptr() for x in held_by(owner)),
               *((x.shape, x.stride(), x.dtype, x.device) for x in tensors))
        if key not in self._records:
            return self._first(key, work, tensors)
        self._records.move_to_end(key)
        record = self._records[key]
        if record is None:
            return work(*tensors)
        if record.graph is None:
            return self._second(key, owner, work, tensors)
        return record.replay(tensors)

    def clear(self) -> None:
        """Forget all records."""
        self._records.clear()

    def __reduce__(self) -> tuple[type[Recorder], tuple[bool, int, int]]:
        return Recorder, (self.may_wait, self.most, self.most_bytes)

    def _first(self, key: Hashable, work: Work, tensors: tuple[Tensor, ...]) -> Results:
        self._records[key] = None
        if len(self._records) > _MOST_KEYS:
            self._records.popitem(last=False)
        device = tensors[0].device
        before = _random_state(device)
        try:
            with _error_if_waiting() if self.may_wait else nullcontext():
                results = work(*tensors)
        except RuntimeError:
            if not self.may_wait:
                raise
            _set_random_state(before, device)
            return work(*tensors)  # and if it was another error, it comes again
        self._records[key] = _Record()
        return results

    def _second(
        self, key: Hashable, owner: nn.Module, work: Work, tensors: tuple[Tensor, ...]
    ) -> Results:
        self._records[key] = None
        device = tensors[0].device
        before = _random_state(device)
        expected = work(*tensors)
        after = _random_state(device)
        record = _Record()
        try:
            record.record(owner, work, tensors)
            _set_random_state(before, device)
            results = record.replay(tensors)
        except Exception:  # of whatever cannot be captured: it has just run as it is
            return expected
        finally:
            _set_random_state(after, device)
        if not all(map(_same, results, expected)):
            return expected
        self._records[key] = record
        kept = [old for old, one in self._records.items() if one is not None and one.graph]
        for old in kept[: -self.most]:  # or they would be recorded again, and again let go
            self._records[old] = None
        return results


class _Record:
    """Work on tensors of its own, empty before it is recorded."""

    def __init__(self) -> None:
        self.graph: torch.cuda.CUDAGraph | None = None
        self.read: tuple[Tensor, ...] = ()
        self.results: Results = ()
        self._alive: list[Tensor] = []

    def record(self, owner: nn.Module, work: Work, tensors: tuple[Tensor, ...]) -> None:
        self.read = tuple(x.detach().clone() for x in tensors)
        device = tensors[0].device
        graph = torch.cuda.CUDAGraph()
        try:
            with _captured(graph, device):
                self.results = work(*self.read)
        except Exception:
            with suppress(Exception), _captured(torch.cuda.CUDAGraph(), device):
                torch.zeros((), device=device)  # PyTorch 2.11 goes on capturing until one ends
            raise
        # Beside what is registered, modules may hold caches, and let go of them.
        self._alive = held_by(owner) + [
            x for module in modules_of(owner) for x in vars(module).values()
            if isinstance(x, Tensor)
        ]
        self.graph = graph

    def replay(self, tensors: tuple[Tensor, ...]) -> Results:
        assert self.graph is not None
        for own, given in zip(self.read, tensors):
            own.copy_(given)
        self.graph.replay()
        return self.results


@contextmanager
def _captured(graph: torch.cuda.CUDAGraph, device: torch.device) -> Iterator[None]:
    """Work inside is recorded, and not run."""
    # Workspaces of cuBLAS belong to a stream: each graph is to have its own.
    torch._C._cuda_clearCublasWorkspaces()
    try:
        with (
            torch.cuda.device(device),
            torch.cuda.stream(torch.cuda.current_stream()),  # to come back to if it fails
            # Other threads, as of a DataLoader, may do what recorded work may not.
            torch.cuda.graph(
                graph, stream=torch.cuda.Stream(device), capture_error_mode="thread_local"),
        ):
            yield
    finally:
        torch._C._cuda_clearCublasWorkspaces()


def _recordable(tensors: tuple[Tensor, ...]) -> bool:
    return all(x.is_cuda for x in tensors)


def _conditions(device: torch.device) -> tuple[Hashable, ...]:
    """What else decides which kernels are recorded, and who runs them."""
    return (
        threading.get_ident(), torch.cuda.current_stream(device).cuda_stream,
        torch.backends.cuda.matmul.fp32_precision,
        torch.backends.cudnn.conv.fp32_precision,  # type: ignore[attr-defined]
        torch.backends.cudnn.enabled, torch.backends.cudnn.deterministic,
        torch.are_deterministic_algorithms_enabled(),
    )


def _random_state(device: torch.device) -> Tensor:
    return torch.cuda.get_rng_state(device)


def _set_random_state(state: Tensor, device: torch.device) -> None:
    torch.cuda.set_rng_state(state, device)


@contextmanager
def _error_if_waiting() -> Iterator[None]:
    """PyTorch raises where the CPU would wait for the device."""
    mode = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():  # that not all waiting is found: results are compared too
        warnings.simplefilter("ignore")
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(mode)


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    """Up to rounding that depends on the order of sums."""
    if one is None or other is None:
        return one is other
    largest = float(other.abs().nan_to_num().max()) if other.numel() else 0.0
    return torch.allclose(one, other, rtol=0, atol=1e-2 * largest, equal_nan=True)
