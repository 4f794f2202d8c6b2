"""The two forward passes of the user's model: the first is read, the second continues from x'."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from captum_mi.model.arguments import copied, rebuilt
from captum_mi.model.hooks import (
    LayerOutput,
    OnRepeat,
    capture,
    capture_only,
    observe,
    replace_output,
)
from captum_mi.model.modules import device_of
from captum_mi.model.replay import Replay
from captum_mi.model.sites import Site, layers_of

__all__ = ["Pass", "Passes"]


@dataclass(frozen=True)
class Pass:
    """What a forward pass gave.

    Attributes:
        layers: captured outputs by name.
        y: the global representation.
        output: what the model returned; y itself without a global layer.
        prediction: what the task loss compares: the downstream function of y, else the output.
        before: what second passes of the same inputs need not compute again.
    """

    layers: dict[str, LayerOutput]
    y: Tensor
    output: Tensor
    prediction: Tensor
    before: Replay


class Passes:
    """Runs the model with hooks at the chosen layers.

    Args:
        model: the user's model.
        layers: names of the layers that are captured.
        global_layer: name of the layer that returns y; ``None`` for the model's output.
        on_repeat: which call counts of a layer that runs several times.
        downstream: function from y and the additional forward arguments to logits.
        amp: what the model runs in by ``torch.autocast``; ``None`` for its own precision.
        replays: whether passes may skip what runs before the first of their sites, or after the
            last layer that is read.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[str],
        global_layer: str | None = None,
        on_repeat: OnRepeat = "error",
        downstream: Callable[..., Tensor] | None = None,
        amp: torch.dtype | None = None,
        replays: bool = True,
    ) -> None:
        self.model = model
        self.amp, self.replays = amp, replays
        self.downstream = downstream
        self.layers = list(layers)
        self.global_layer = global_layer
        self._global = [] if global_layer is None else [global_layer]
        self.on_repeat: OnRepeat = on_repeat

    def first(
        self, inputs: tuple[Tensor, ...], args: tuple[Any, ...], continued: Sequence[Site] = ()
    ) -> Pass:
        """Run the model untouched and return what was captured.

        Args:
            inputs: one batch.
            args: additional forward arguments of the batch.
            continued: where second passes will replace features; without gradients, what runs
                before is kept for them.
        """
        before = Replay()
        recorded: AbstractContextManager[None] = nullcontext()
        replayed = self.replays and self.on_repeat != "last" and not torch.is_grad_enabled()
        if continued and replayed:
            recorded = before.record(self.model, [site.layer for site in continued] + self._global)
        with (
            self._precision(),
            capture(self.model, self.layers + self._global, self.on_repeat) as captured,
            recorded,
            self._counted(layers_of(continued)) as before.calls,
        ):
            output = self._run(inputs, args)
            return self._result(captured, output, len(inputs[0]), args, before)

    def features(
        self, inputs: tuple[Tensor, ...], args: tuple[Any, ...],
        layers: Sequence[str] | None = None,
    ) -> dict[str, LayerOutput]:
        """Captured layers of the first pass, which ends after the deepest of them if it may.

        Args:
            inputs: one batch.
            args: additional forward arguments of the batch.
            layers: those of the captured ones that are wanted. Default: all.
        """
        if not self.replays:
            return self.first(inputs, args).layers
        with self._precision():
            return capture_only(
                self.model, layers or self.layers, lambda: self._run(inputs, args),
                self.on_repeat,
            )

    def second(
        self,
        inputs: tuple[Tensor, ...],
        args: tuple[Any, ...],
        noised: dict[Site, Callable[[Tensor], Tensor]],
        before: Replay | None = None,
    ) -> Pass:
        """Run the model with the features of sites passed through functions.

        Args:
            inputs: one batch.
            args: additional forward arguments of the batch.
            noised: a function for each site.
            before: of a first pass of the same inputs, so that the model need not run anew up
                to the first of the sites.
        """
        transforms = {
            layer: _on_parts({site: noised[site] for site in noised if site.layer == layer})
            for layer in layers_of(noised)
        }
        return self.replaced(inputs, args, transforms, before)

    def replaced(
        self,
        inputs: tuple[Tensor, ...],
        args: tuple[Any, ...],
        transforms: dict[str, Callable[[LayerOutput], LayerOutput]],
        before: Replay | None = None,
    ) -> Pass:
        """Run the model with outputs of layers passed through functions.

        Args:
            inputs: one batch.
            args: additional forward arguments of the batch.
            transforms: a function for each layer.
            before: as for :meth:`second`.
        """
        before = before or Replay()
        calls = before.calls
        if self.on_repeat == "last" and not calls:
            with torch.no_grad(), self._counted(list(transforms)) as calls:
                self._run(inputs, args)
        with (
            self._precision(),
            replace_output(self.model, transforms, self.on_repeat, calls),
            capture(self.model, self._global, self.on_repeat) as captured,
            before.play(),
        ):
            output = self._run(inputs, args)
            return self._result(captured, output, len(inputs[0]), args, before)

    def resumed(self, first: Pass) -> str | None:
        """Captured layer from whose output alone a second pass may go on, if there is one."""
        for name, output in first.layers.items():
            if isinstance(output, Tensor) and self.model.get_submodule(name) is first.before.end:
                return name
        return None

    def _run(self, inputs: tuple[Tensor, ...], args: tuple[Any, ...]) -> Any:
        return self.model(*copied(inputs), *copied(args))

    def _precision(self) -> AbstractContextManager[Any]:
        if self.amp is None:
            return nullcontext()
        # Casts that are kept outlive a pass inside another autocast, and with it weights' changes.
        return torch.autocast(device_of(self.model).type, dtype=self.amp, cache_enabled=False)

    @contextmanager
    def _counted(self, layers: Sequence[str]) -> Iterator[dict[str, int]]:
        """Count how often layers run, if that says which of their calls counts."""
        if self.on_repeat != "last":
            yield {}
            return
        calls = dict.fromkeys(layers, 0)

        def count(layer: str, output: Any) -> None:
            calls[layer] += 1

        with observe(self.model, layers, count):
            yield calls

    def _result(
        self, captured: dict[str, LayerOutput], output: Any, n: int, args: tuple[Any, ...],
        before: Replay,
    ) -> Pass:
        if not isinstance(output, Tensor):
            raise TypeError(
                f"the model returned a {type(output).__name__}; expected a tensor. Wrap the "
                "model in a module that returns the tensor to be explained"
            )
        y: Any = output if self.global_layer is None else captured[self.global_layer]
        if not isinstance(y, Tensor):
            raise TypeError(
                f"global layer {self.global_layer!r} returned a tuple; expected a single tensor"
            )
        prediction = output if self.downstream is None else self.downstream(y, *args)
        for name, tensor in (
            ("model's output", output),
            ("global representation", y),
            ("downstream function's result", prediction),
        ):
            if tensor.dim() == 0 or tensor.shape[0] != n:
                raise ValueError(
                    f"the {name} has shape {tuple(tensor.shape)}; expected one row for each of "
                    f"the {n} examples"
                )
        return Pass(captured, y, output, prediction, before)


def _on_parts(
    transforms: dict[Site, Callable[[Tensor], Tensor]],
) -> Callable[[LayerOutput], LayerOutput]:
    def apply_to(part: int | None, features: Tensor) -> Tensor:
        for site, transform in transforms.items():
            if site.part == part:
                features = site.put(features, transform(site.view(features)))
        return features

    def apply(output: LayerOutput) -> LayerOutput:
        if isinstance(output, Tensor):
            return apply_to(None, output)
        return rebuilt(output, [apply_to(i, part) for i, part in enumerate(output)])

    return apply
