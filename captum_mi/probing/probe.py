"""One batch through the user's model: which layers there are to read, and their shapes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from captum_mi.grid import finest
from captum_mi.model.arguments import has_rows
from captum_mi.model.batches import Batch
from captum_mi.model.inputs import Signature, check_inputs
from captum_mi.model.modules import modules_of
from captum_mi.model.passes import Pass, Passes
from captum_mi.model.replay import Replay
from captum_mi.model.sites import Site, find_sites, layers_of
from captum_mi.outputs import OutputKind, resolve_kind
from captum_mi.probing.design import Design
from captum_mi.probing.layer_warnings import (
    warn_of_guesses,
    warn_of_layers_beside,
    warn_of_layers_of_other_inputs,
    warn_of_other_places,
)
from captum_mi.probing.map_input import find_map_input, first_spatial_axis
from captum_mi.probing.named import Named, check_named
from captum_mi.probing.sequences import reads_last_axis
from captum_mi.probing.stages import stage_layers
from captum_mi.probing.structure import Structure

__all__ = ["probe"]


def _default_layers(stages: list[str]) -> list[str]:
    """The last blocks of the two stages before the deepest, which a head alone reads.

    Earlier stages tell little about the class, the deepest one little about where: on
    photographs the two between them localised best. Fewer stages give fewer layers.
    """
    return stages[-3:-1] or stages


def _default_stages(passes: Passes, batch: Batch, design: Design) -> tuple[list[str], Design]:
    """Stages with the position axes of the inputs, or of the one that the map belongs to.

    Features of sequences ``(N, L, C)`` may look like those of signals ``(N, C, L)``. Where they
    keep the inputs' length, channels are last if layers normalise or attend along the last axis,
    or if more stages follow the inputs that way.

    Returns:
        The stages, and the design with what they say about channels.

    Raises:
        ValueError: if no layer has the position axes of the inputs.
    """
    mapped = batch.inputs if design.map_input is None else (batch.inputs[design.map_input],)
    axes = max(_position_axes(x) for x in mapped)
    model = passes.model
    stages = _stages(passes, batch, axes, design) if axes > 0 else []
    lengths = {x.shape[1] for x in mapped if x.dim() == 3}
    if design.channel_axis is None and lengths:
        last = dataclasses.replace(design, channel_axis="last")
        others = _stages(passes, batch, axes, last)
        if (len(others) > len(stages) or reads_last_axis(model, others)) and (
                _keep_length(model, batch, last, others, lengths)):
            return others, last
    if not stages:
        shapes = [tuple(x.shape) for x in batch.inputs]
        if axes == 0:
            several = isinstance(batch.labels, Tensor) and batch.labels.dim() > 2
            pair = (". (The second of a pair is taken for labels: two inputs are ((a, b), None))"
                    if several else "")
            raise ValueError(
                f"found no stage with positions in {type(model).__name__} for inputs {shapes}: "
                "inputs (N, features) have none. Use LayerInfoBottleneckAttribution(model, "
                "layer=...) with the name of a layer, which gives one value per example; for a "
                f"value per feature, Captum's IntegratedGradients or ShapleyValueSampling{pair}"
            )
        raise ValueError(
            f"found no stage with positions in {type(model).__name__} for inputs {shapes}; "
            "layers that run more than once in a pass are not looked at, nor are those whose "
            "positions do not follow the inputs'. Name the layers to read, as in "
            "layer=['layer2', 'layer3'], and where their channels are, with channel_axis="
        )
    return stages, design


def _stages(passes: Passes, batch: Batch, axes: int, design: Design) -> list[str]:
    return stage_layers(
        passes.model, batch.inputs, batch.additional_forward_args, axes, design.channel_axis,
        design.map_input, passes)


def _keep_length(
    model: nn.Module, batch: Batch, design: Design, layers: list[str], lengths: set[int]
) -> bool:
    """Whether layers return tensors as long as an input, along their axis after the examples."""
    passes = Passes(model, layers, None, design.on_repeat)
    found = passes.first(batch.inputs, batch.additional_forward_args).layers.values()
    return all(isinstance(one, Tensor) and one.shape[1] in lengths for one in found)


def _named_design(model: nn.Module, batch: Batch, design: Design, layers: list[str]) -> Design:
    """The design, with channels last where layers that were named normalise or attend along the
    last axis of sequences, and keep the inputs' length."""
    lengths = {x.shape[1] for x in batch.inputs if x.dim() == 3 and x.is_floating_point()}
    if design.channel_axis is None and lengths and reads_last_axis(model, layers) and (
            _keep_length(model, batch, design, layers, lengths)):
        return dataclasses.replace(design, channel_axis="last")
    return design


def _position_axes(x: Tensor) -> int:
    """Of an input: those after examples and channels; indices ``(N, T)`` have no channels."""
    return 1 if x.dim() == 2 and not x.is_floating_point() else x.dim() - 2


class _Look:
    """The first pass of one batch, with some layers captured, and the sites found in them."""

    def __init__(
        self, model: nn.Module, batch: Batch, design: Design, named: Named,
        downstream: Callable[..., Tensor] | None, layers: Sequence[str],
    ) -> None:
        passes = Passes(model, layers, named.global_layer, design.on_repeat, downstream)
        self.first = passes.first(batch.inputs, batch.additional_forward_args)
        shapes = [tuple(x.shape) for x in batch.inputs]
        self._found = {
            name: find_sites(name, self.first.layers[name], shapes, design.channel_axis)
            for name in layers
        }

    def sites(self, layers: Sequence[str]) -> tuple[Site, ...]:
        return tuple(site for name in layers for site in self._found[name][0])

    def tokens(self, layers: Sequence[str]) -> tuple[Site, ...]:
        return tuple(token for name in layers for token in self._found[name][1])

    def check_rows(self, n: int) -> None:
        for site in self.sites(list(self._found)):
            site.check_rows(self.first.layers, n)

    def check_axes(self, axes: int) -> None:
        for site in self.sites(list(self._found)):
            if site.position_axes not in (0, axes):
                raise ValueError(
                    f"layer {site.name!r} has {site.position_axes} position axes and others have "
                    f"{axes}; choose layers with the same axes, or with none"
                )

    def grid(self, sites: Sequence[Site]) -> tuple[int, ...]:
        """The finest of the sites' grids."""
        return finest([tuple(site.of(self.first.layers).shape[2:]) for site in sites])


@torch.no_grad()
def probe(
    model: nn.Module, batch: Batch, design: Design, named: Named,
    downstream: Callable[..., Tensor] | None,
) -> Structure:
    """Run one batch through the model, find the layers that are not named, and note shapes.

    A global layer whose output is the model's own output is taken for that output.

    Raises:
        ValueError: if no layer with positions is found, or layers do not suit one another or the
            inputs.
    """
    inputs = batch.inputs
    check_inputs(inputs, model)

    def look_at(*layers: str) -> _Look:
        return _Look(model, batch, design, named, downstream, layers)

    stages: list[str] | None = None
    whole = Passes(model, [], named.global_layer, design.on_repeat, downstream)
    if named.layers:
        design = _named_design(model, batch, design, named.layers)
    else:
        stages, design = _default_stages(whole, batch, design)
    layers = named.layers or _default_layers(stages or [])
    check_named(layers, named.head_layers or [])
    look = look_at(*layers, *(named.head_layers or ()), *(named.context_layers or ()))
    look.check_rows(len(inputs[0]))
    sites = look.sites(layers)
    _warn_of(look, whole, batch, design, named, sites)
    axes = max(site.position_axes for site in sites)
    heads, context = named.head_layers, named.context_layers
    if heads is None or context is None:
        if stages is None:
            stages = _stages(whole, batch, axes, design)
        if heads is None:
            heads = [name for name in stages[-1:] if axes and name not in layers]
        if context is None:
            context = [*stages, *(name for name in layers if name not in stages)]
        look = look_at(*layers, *heads, *context)
    look.check_axes(axes)
    first, grid = look.first, look.grid(sites)
    if downstream is not None:
        _check_downstream(first.prediction, len(inputs[0]))
    is_output = first.y.shape == first.output.shape and torch.equal(first.y, first.output)
    passes = Passes(model, [site.layer for site in sites], None, design.on_repeat)
    replays, resumes = _replays(passes, batch, sites)
    return Structure(
        sites=sites,
        head_sites=look.sites(heads),
        context=look.sites(context),
        tokens=look.tokens(layers),
        global_layer=None if is_output else named.global_layer,
        output=_output_kind(design, first, is_output and downstream is None),
        y_shape=tuple(first.y.shape[1:]),
        output_shape=tuple(first.output.shape[1:]),
        n_classes=0 if downstream is None else first.prediction.shape[1],
        signature=Signature.of(inputs, [_channel_axis(x, grid, design) for x in inputs]),
        mapped=find_map_input(
            inputs, grid, design.map_input, design.channel_axis, design.input_channel_axis),
        replays=replays,
        resumes=resumes,
    )


def _warn_of(
    look: _Look, whole: Passes, batch: Batch, design: Design, named: Named,
    sites: Sequence[Site],
) -> None:
    """Of layers that were named, and whose maps may not be what the user expects."""
    model = whole.model
    if design.channel_axis is None:
        warn_of_guesses(model, sites, look.first.layers, batch.inputs)
    if design.map_input is not None and len(batch.inputs) > 1:
        warn_of_layers_of_other_inputs(
            model, layers_of(sites), batch, design.map_input, design.on_repeat)
    if named.layers is not None:
        warn_of_other_places(model, sites, batch, design)
    if design.on_repeat == "error":
        asked = [*(named.layers or ()), *(named.head_layers or ())]
        warn_of_layers_beside(whole, asked, batch)


def _check_downstream(prediction: Tensor, n: int) -> None:
    if prediction.dim() != 2 or prediction.shape[1] < 2:
        raise ValueError(
            f"downstream returned {tuple(prediction.shape)}; expected logits ({n}, classes) of at "
            "least two classes"
        )


def _output_kind(design: Design, first: Pass, is_prediction: bool) -> OutputKind:
    """What y is; ``is_prediction`` if it is what the model predicts."""
    asked = design.output or (design.prediction if is_prediction else None)
    return resolve_kind(asked, tuple(first.y.shape[1:]), is_prediction)


def _channel_axis(x: Tensor, grid: tuple[int, ...], design: Design) -> int | None:
    """Which axis of an input holds channels, if one does: others may be longer than in the fit."""
    if not grid or x.dim() != len(grid) + 2:
        return None
    first = first_spatial_axis(x, grid, design.channel_axis, design.input_channel_axis)
    return x.dim() - 1 if first == 1 else 1


def _replays(passes: Passes, batch: Batch, sites: Sequence[Site]) -> tuple[bool, bool]:
    """Whether second passes that skip what runs before the sites return what whole ones do.

    Not so if modules hand things to one another beside what they return, as by an attribute:
    then no pass may be cut short either, since what was left behind would stay there. The second
    answer is for passes that know nothing of it but what the last of the skipped returned.
    """
    inputs, args = batch.inputs, batch.additional_forward_args
    first = passes.first(inputs, args, sites)

    def same(n: int, before: Replay) -> bool:
        try:
            second = passes.second(tuple(x[:n] for x in inputs), args, {}, before)
        except Exception:  # of the user's code: whatever a module raises that lacks something
            return False
        return _are_close(first.output[:n], second.output)

    if not same(len(inputs[0]), first.before) or not _can_be_cut_short(passes, batch, first):
        return False, False
    layer = passes.resumed(first)
    if layer is None or args or _is_watched(passes.model):
        return True, False
    last = first.layers[layer]
    assert isinstance(last, Tensor)
    return True, same(1, first.before.resume(last[:1]))


def _is_watched(model: nn.Module) -> bool:
    """Whether hooks of the user see what modules return, and so would see what stands for it."""
    return any(
        not getattr(hook, "__module__", "").startswith("torch.nn.utils")  # as of spectral_norm
        for module in modules_of(model)
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    )


def _can_be_cut_short(passes: Passes, batch: Batch, first: Pass) -> bool:
    """Whether a pass is the same after one of other inputs that ended after the sites.

    Not so if the model's own ``forward`` leaves something in an attribute meanwhile.
    """
    n = len(batch.inputs[0])
    turned = tuple(x.flip(0) for x in batch.inputs)
    args = tuple(arg.flip(0) if has_rows(arg, n) else arg
                 for arg in batch.additional_forward_args)
    try:
        passes.features(turned, args)
        again = passes.first(batch.inputs, batch.additional_forward_args)
    except Exception:  # of the user's code
        return False
    return _are_close(first.output, again.output)


def _are_close(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).abs().amax() <= 1e-4 * one.abs().amax())
