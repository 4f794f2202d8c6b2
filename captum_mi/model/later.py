"""Numbers on their way from the device, which the CPU need not wait for before it wants them."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Later"]


class Later:
    """A copy of a vector on the CPU. On CUDA, waits for what came before the copy, not for more.

    Args:
        values: the vector, on any device.
    """

    def __init__(self, values: Tensor) -> None:
        self._values = values.to("cpu", non_blocking=values.is_cuda)  # into pinned memory
        self._copied: torch.cuda.Event | None = None
        if values.is_cuda:
            self._copied = torch.cuda.Event()
            self._copied.record(torch.cuda.current_stream(values.device))

    def tolist(self) -> list[float]:
        """The numbers."""
        if self._copied is not None:
            self._copied.synchronize()
        numbers: list[float] = self._values.tolist()
        return numbers
