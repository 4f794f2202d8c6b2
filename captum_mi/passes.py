"""The two forward passes of the user's model: the first is read, the second continues from x'."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from captum_mi.batches import device_of
from captum_mi.hooks import LayerOutput, OnRepeat, capture, capture_only, observe, replace_output

__all__ = ["Pass", "Passes", "Site", "find_sites", "stage_layers"]

_MAX_STAGES = 4


@dataclass(frozen=True)
class Site:
    """One feature tensor ``(N, channels, *positions)``: a layer's output, or a part of it.

    Args:
        layer: dotted name.
        part: index in the layer's output if that is a tuple, else ``None``.
        channels: size of axis 1.
        position_axes: number of axes after it.
    """

    layer: str
    part: int | None
    channels: int
    position_axes: int

    @property
    def name(self) -> str:
        return self.layer if self.part is None else f"{self.layer}[{self.part}]"

    def of(self, outputs: dict[str, LayerOutput]) -> Tensor:
        """This site's features among captured outputs."""
        output = outputs[self.layer]
        features = output if isinstance(output, Tensor) else output[self.part or 0]
        if features.dim() - 2 != self.position_axes or features.shape[1] != self.channels:
            raise ValueError(
                f"layer {self.name!r} returned features of shape {tuple(features.shape)}; the "
                f"fit saw {self.channels} channels and {self.position_axes} position axes"
            )
        return features


def find_sites(layer: str, output: LayerOutput) -> list[Site]:
    """Sites of a layer's captured output.

    Raises:
        ValueError: for features without a channel axis, or with more than three position axes.
    """
    parts = enumerate(output) if isinstance(output, tuple) else [(None, output)]
    sites = []
    for part, features in parts:
        if not 2 <= features.dim() <= 5 or not features.is_floating_point():
            raise ValueError(
                f"layer {layer!r} returned a {features.dtype} tensor of shape "
                f"{tuple(features.shape)}; expected floating-point features (N, C), (N, C, L), "
                "(N, C, H, W) or (N, C, D, H, W)"
            )
        sites.append(Site(layer, part, features.shape[1], features.dim() - 2))
    return sites


@dataclass(frozen=True)
class Pass:
    """What a forward pass gave.

    Attributes:
        layers: captured outputs by name.
        y: the global representation.
        output: what the model returned; y itself without a global layer.
        prediction: what the task loss compares: the downstream function of y, else the output.
    """

    layers: dict[str, LayerOutput]
    y: Tensor
    output: Tensor
    prediction: Tensor


class Passes:
    """Runs the model with hooks at the chosen layers.

    Args:
        model: the user's model.
        layers: names of the layers that are captured.
        global_layer: name of the layer that returns y; ``None`` for the model's output.
        on_repeat: which call counts of a layer that runs several times.
        downstream: function from y and the additional forward arguments to logits.
        amp: what the model runs in by ``torch.autocast``; ``None`` for its own precision.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[str],
        global_layer: str | None = None,
        on_repeat: OnRepeat = "error",
        downstream: Callable[..., Tensor] | None = None,
        amp: torch.dtype | None = None,
    ) -> None:
        self.model = model
        self.amp = amp
        self.downstream = downstream
        self.layers = list(layers)
        self.global_layer = global_layer
        self.on_repeat: OnRepeat = on_repeat
        self._calls: dict[str, int] | None = None

    def first(self, inputs: tuple[Tensor, ...], args: tuple[Any, ...]) -> Pass:
        """Run the model untouched and return what was captured."""
        wanted = self.layers + ([self.global_layer] if self.global_layer is not None else [])
        with self._precision(), capture(self.model, wanted, self.on_repeat) as captured:
            output = self.model(*inputs, *args)
            return self._result(captured, output, len(inputs[0]), args)

    def features(
        self, inputs: tuple[Tensor, ...], args: tuple[Any, ...]
    ) -> dict[str, LayerOutput]:
        """Captured layers of the first pass, which ends after the deepest of them."""
        with self._precision():
            return capture_only(
                self.model, self.layers, lambda: self.model(*inputs, *args), self.on_repeat
            )

    def second(
        self,
        inputs: tuple[Tensor, ...],
        args: tuple[Any, ...],
        noised: dict[Site, Callable[[Tensor], Tensor]],
    ) -> Pass:
        """Run the model with the features of sites passed through functions."""
        transforms = {}
        for layer in dict.fromkeys(site.layer for site in noised):
            of_layer = {site.part: noise for site, noise in noised.items() if site.layer == layer}
            transforms[layer] = _on_parts(of_layer)
        if self.on_repeat == "last" and self._calls is None:
            self._calls = self._count_calls(list(transforms), inputs, args)
        only_global = [self.global_layer] if self.global_layer is not None else []
        with (
            self._precision(),
            replace_output(self.model, transforms, self.on_repeat, self._calls),
            capture(self.model, only_global, self.on_repeat) as captured,
        ):
            output = self.model(*inputs, *args)
            return self._result(captured, output, len(inputs[0]), args)

    def _precision(self) -> AbstractContextManager[Any]:
        if self.amp is None:
            return nullcontext()
        return torch.autocast(device_of(self.model).type, dtype=self.amp)

    def _count_calls(
        self, layers: Sequence[str], inputs: tuple[Tensor, ...], args: tuple[Any, ...]
    ) -> dict[str, int]:
        calls = dict.fromkeys(layers, 0)

        def count(layer: str, output: Any) -> None:
            calls[layer] += 1

        with torch.no_grad(), observe(self.model, layers, count):
            self.model(*inputs, *args)
        return calls

    def _result(
        self, captured: dict[str, LayerOutput], output: Any, n: int, args: tuple[Any, ...]
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
        return Pass(captured, y, output, prediction)


def _on_parts(
    transforms: dict[int | None, Callable[[Tensor], Tensor]],
) -> Callable[[LayerOutput], LayerOutput]:
    def apply(output: LayerOutput) -> LayerOutput:
        if isinstance(output, Tensor):
            return transforms[None](output)
        return tuple(
            transforms[i](part) if i in transforms else part for i, part in enumerate(output)
        )

    return apply


def stage_layers(
    model: nn.Module, inputs: tuple[Tensor, ...], args: tuple[Any, ...], position_axes: int
) -> list[str]:
    """The last block of every stage: of each grid of positions, the outermost last layer.

    At most the four deepest stages whose features have ``position_axes`` position axes and more
    than one position. Layers that run more than once are passed over, and so are features whose
    last axis is their channels: where the inputs have positions, a stage's grid must be theirs,
    divided by the same stride along each axis.

    Args:
        model: the model, in eval mode.
        inputs: one batch.
        args: additional forward arguments.
        position_axes: number of position axes of the chosen layers.
    """
    runs: dict[str, int] = {}
    grids: dict[str, tuple[int, ...]] = {}

    def note(name: str, output: Any) -> None:
        runs[name] = runs.get(name, 0) + 1
        if not isinstance(output, Tensor) or not output.is_floating_point():
            return
        if output.dim() == position_axes + 2 and max(output.shape[2:], default=1) > 1:
            grids[name] = tuple(output.shape[2:])

    names = [name for name, _ in model.named_modules() if name]
    with torch.no_grad(), observe(model, names, note):
        model(*inputs, *args)
    sizes = [tuple(x.shape[2:]) for x in inputs if x.dim() == position_axes + 2]
    last: dict[tuple[int, ...], str] = {}
    for name, grid in grids.items():
        if sizes and not any(_downsampled(grid, size) for size in sizes):
            continue
        if runs[name] == 1 and _depth(name) <= _depth(last.get(grid, name)):
            last.pop(grid, None)
            last[grid] = name
    return list(last.values())[-_MAX_STAGES:]


def _downsampled(grid: tuple[int, ...], size: tuple[int, ...]) -> bool:
    """Whether a grid is that of a size at a common stride, up to two positions of rounding."""
    shares = [positions / length for positions, length in zip(grid, size)]
    return max(shares) <= 1 and max(shares) - min(shares) <= 2 / min(size)


def _depth(name: str) -> int:
    return name.count(".")
