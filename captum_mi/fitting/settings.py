"""How the networks are trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from captum_mi.choices import check_choice, number, whole
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
        check_choice("task", self.task, Task)
        if self.beta2 is not None and self.kappa is not None:
            raise ValueError("beta2 and kappa exclude each other: kappa holds beta2; pass one")
        checked: dict[str, float | None] = {
            "steps": whole("steps", self.steps, 1),
            "lr": number("lr", self.lr, positive=True),
            "weight_decay": number("weight_decay", self.weight_decay),
            "beta1": number("beta1", self.beta1),
            "beta2": None if self.beta2 is None else number("beta2", self.beta2),
            "kappa": None if self.kappa is None else number("kappa", self.kappa, positive=True),
            "bank_size": whole("bank_size", self.bank_size, 0),
            "locals_per_example": whole("locals_per_example", self.locals_per_example, 1),
            "base_lr": number("base_lr", self.base_lr, positive=True),
            "cache_bytes": whole("cache_bytes", self.cache_bytes, 0),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)  # of a frozen dataclass
        if self.beta1 and not self.bank_size:
            raise ValueError(
                "bank_size must be at least 1; got 0. Pass beta1=0 for no critics")

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
        n, shape = len(batch.inputs[0]), tuple(batch.labels.shape)
        if shape[:1] != (n,):
            raise ValueError(
                f"labels of shape {shape} came with {n} examples; expected a label, or a row of "
                "labels, for each example"
            )
        return [batch.labels]
