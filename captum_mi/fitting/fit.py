"""A fit: what was found in a model, and what was learned on its data."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from captum_mi.fitting.history import History
from captum_mi.model.graphs import Recorder
from captum_mi.model.modules import device_of, dtype_of
from captum_mi.model.passes import Passes
from captum_mi.model.precision import own_dtype, surrounding_amp
from captum_mi.model.weights import WeightWatch
from captum_mi.networks import Networks
from captum_mi.probing.design import Design
from captum_mi.probing.structure import Structure

__all__ = ["Fit", "networks_for"]


@dataclass(frozen=True)
class Fit:
    """What ``fit`` or ``load`` leaves behind.

    Attributes:
        structure: what was found in the model.
        networks: what was learned.
        history: the course of the fit.
        watch: tells whether the model's weights are still those of the fit.
        base: the copy of the model that was fine-tuned, if one was.
        recorder: records of what the networks make of features, on CUDA.
    """

    structure: Structure
    networks: Networks
    history: History
    watch: WeightWatch
    base: nn.Module | None
    recorder: Recorder = field(default_factory=Recorder)

    @classmethod
    def restored(
        cls, tensors: dict[str, Tensor], state: dict[str, Any], model: nn.Module, design: Design,
        alpha: Tensor | None,
    ) -> Fit:
        """The fit that :meth:`tensors` and :meth:`state` were taken of.

        Args:
            tensors: its tensors.
            state: the rest.
            model: the model that it was made on.
            design: the choices that it was made with.
            alpha: set by hand, or ``None``.
        """
        structure = Structure.from_dict(state["structure"])
        networks = networks_for(model, design, structure, alpha, state["bank_sizes"])
        networks.load_state_dict(_with_prefix(tensors, "networks."))
        base = None
        if state["base"]:
            base = copy.deepcopy(model)
            base.load_state_dict(_with_prefix(tensors, "base."))
        watch = WeightWatch(model if base is None else base)
        return cls(
            structure, networks.requires_grad_(False), History(**state["history"]), watch, base)

    @property
    def beta2(self) -> float:
        """The last multiplier of the information in x'."""
        return self.history.beta2[-1]

    def tensors(self) -> dict[str, Tensor]:
        """Networks, moments and banks, and a base that was fine-tuned."""
        tensors = {f"networks.{k}": v for k, v in self.networks.state_dict().items()}
        if self.base is not None:
            tensors |= {f"base.{k}": v for k, v in self.base.state_dict().items()}
        return tensors

    def state(self) -> dict[str, Any]:
        """All that is not a tensor, as JSON takes it."""
        return {
            "structure": self.structure.to_dict(),
            "bank_sizes": self.networks.bank_sizes,
            "history": vars(self.history),
            "base": self.base is not None,
        }

    def passes(self, model: nn.Module, downstream: Callable[..., Tensor] | None) -> Passes:
        """Passes of the model that is explained, in the precision that surrounds the call."""
        on_repeat = self.networks.design.on_repeat
        return self.structure.passes(model, on_repeat, downstream, surrounding_amp(model))

    def move_to(self, model: nn.Module) -> None:
        """Move the networks to where a model is, in its precision, unless they are there: moving
        them in every call would cost more than a map."""
        device, dtype = device_of(model), own_dtype(model)
        if device_of(self.networks) != device or dtype_of(self.networks) != dtype:
            self.networks.to(device, dtype)


def networks_for(
    model: nn.Module, design: Design, structure: Structure, alpha: Tensor | None,
    bank_sizes: Sequence[int],
) -> Networks:
    """Networks where a model is, in its precision."""
    networks = Networks(design, structure, alpha, bank_sizes)
    return networks.to(device_of(model), own_dtype(model))


def _with_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
