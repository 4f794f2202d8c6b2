"""Warnings about layers that were named, and whose maps may not be what the user expects."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from captum_mi.model.batches import Batch
from captum_mi.model.hooks import LayerOutput, OnRepeat
from captum_mi.model.passes import Passes
from captum_mi.model.sites import Site
from captum_mi.probing.deciding import deciding
from captum_mi.probing.design import Design
from captum_mi.probing.following import following, seeing
from captum_mi.warn import warn

__all__ = [
    "warn_of_guesses",
    "warn_of_layers_beside",
    "warn_of_layers_of_other_inputs",
    "warn_of_other_places",
]


def warn_of_layers_beside(passes: Passes, layers: Sequence[str], batch: Batch) -> None:
    """What a layer knows that the prediction does not rest on is no reason for the decision."""
    found = deciding(passes, layers, batch.inputs, batch.additional_forward_args)
    for layer in layers:
        if layer not in found:
            warn(
                f"the prediction is the same whatever layer {layer!r} returns, so that a map read "
                "there tells nothing about the decision; choose a layer that the output is "
                "computed from"
            )


def warn_of_layers_of_other_inputs(
    model: nn.Module, layers: Sequence[str], batch: Batch, map_input: int, on_repeat: OnRepeat
) -> None:
    """A map of an input can only be read off layers that see it, in the call that counts."""
    seen = seeing(
        model, layers, batch.inputs, batch.additional_forward_args, map_input, on_repeat)
    for layer in dict.fromkeys(layers):
        if layer not in seen:
            warn(
                f"layer {layer!r} returned the same features for input {map_input} turned round, "
                "so that a map read there tells nothing about that input, which map_input "
                "chooses; choose a layer that comes after it, or another map_input"
            )


def warn_of_other_places(
    model: nn.Module, sites: Sequence[Site], batch: Batch, design: Design
) -> None:
    """Positions of a layer that was named may be units, or lie along other axes of an input."""
    if design.on_repeat != "error":  # of several runs each may return something else
        return
    args = batch.additional_forward_args
    placed = {site.layer: site for site in sites if site.position_axes}
    found = following(model, placed, batch.inputs, args, design.map_input)
    for layer, site in placed.items():
        if layer not in found:
            warn(
                f"positions of layer {layer!r} ({site.layout.replace('_', ' ')}) do not follow an "
                "input's: where half of the input changes, the same half of the layer does not. "
                "They may be units instead of places, which channel_axis= tells apart, or lie "
                "along axes that the input has in another order, as clips (N, T, C, H, W) do: "
                "permute these inside of the model"
            )


def warn_of_guesses(
    model: nn.Module, sites: Sequence[Site], layers: dict[str, LayerOutput],
    inputs: Sequence[Tensor],
) -> None:
    """Numbers ``(N, L)`` may be a sequence or one channel's samples; words are a sequence, but
    features of a convolution may have as many channels as there are words."""
    numbers = [tuple(x.shape) for x in inputs if x.dim() == 2 and x.is_floating_point()]
    words = [tuple(x.shape) for x in inputs if x.dim() == 2 and not x.is_floating_point()]
    for site in sites:
        n, channels, *positions = site.of(layers).shape
        if site.layout != "channels_last":
            continue
        convolved = any(isinstance(module, nn.Conv1d)
                        for module in model.get_submodule(site.layer).modules())
        if (n, *positions) in numbers or (convolved and (n, *positions) in words):
            warn(
                f"layer {site.name!r} returned features {(n, *positions, channels)} of inputs "
                f"{(n, *positions)}: axis 1 is taken for positions and the last for channels. Say "
                "channel_axis='last' if that is right, channel_axis='first' if not"
            )
