"""How the networks are trained."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from captum_mi.choices import check_choice
from captum_mi.model.batches import Batch

__all__ = ["Settings", "Task"]

Task = Literal["prediction", "labels"]


@dataclass(frozen=True)
class Settings:
    """How the networks are trained; see :meth:`captum_mi.InfoBottleneckAttribution.fit`."""

    steps: int
    lr: float
    weight_decay: float
    task: Task
    beta1: float
    beta2: float | None
    kappa: float | None
    bank_size: int
    locals_per_example: int
    base_lr: float
    cache_bytes: int
    amp: bool | None
    seed: int
    progress: bool

    def __post_init__(self) -> None:
        for name in ("steps", "locals_per_example"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}")
        for name in ("lr", "base_lr"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be a number > 0; got {getattr(self, name)}")
        check_choice("task", self.task, Task)
        if self.beta2 is not None and self.kappa is not None:
            raise ValueError("beta2 and kappa exclude each other: kappa holds beta2; pass one")
        for name in ("beta1", "beta2"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"{name} must be a number >= 0; got {value}")
        if self.kappa is not None and not 0 < self.kappa < math.inf:
            raise ValueError(f"kappa must be a number of nats > 0; got {self.kappa}")
        if self.beta1 and self.bank_size < 1:
            raise ValueError(
                f"bank_size must be at least 1; got {self.bank_size}. Pass beta1=0 for no critics")
        if self.cache_bytes < 0:
            raise ValueError(f"cache_bytes must be at least 0; got {self.cache_bytes}")

    def labels_of(self, batch: Batch) -> list[Tensor]:
        """The labels, if the second pass is held to them.

        Raises:
            ValueError: if there are none.
        """
        if self.task != "labels":
            return []
        if not isinstance(batch.labels, Tensor):
            got = "inputs alone" if batch.labels is None else (
                f"labels that are a {type(batch.labels).__name__} and no tensor")
            raise ValueError(
                f"task='labels' needs labels; the loader yielded {got}. Yield (inputs, labels), "
                "or use task='prediction'"
            )
        return [batch.labels]
