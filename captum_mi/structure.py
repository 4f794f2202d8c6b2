"""What is built: the user's choices, and the shapes found in their model. Both are saved."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from captum_mi.batches import Batch, Signature, check_inputs, dtype_of
from captum_mi.following import following, seeing
from captum_mi.grid import finest
from captum_mi.heatmap import first_spatial_axis
from captum_mi.hooks import LayerOutput, OnRepeat
from captum_mi.outputs import OutputKind, PredictionKind, resolve_kind
from captum_mi.passes import Passes
from captum_mi.replay import Replay
from captum_mi.sites import ChannelAxis, Site, find_sites, layers_of
from captum_mi.stages import stage_layers
from captum_mi.warn import warn

__all__ = ["Design", "Structure", "check_choice", "default_layers", "default_stages",
           "probe"]


Noise = Literal["matched", "standard"]
InferenceKind = Literal["conv", "mlp"]
CriticKind = Literal["separable", "concatenated"]
MarginalKind = Literal["data", "uniform"]


def check_choice(name: str, value: object, choices: Any) -> None:
    """Raise ``ValueError`` if a value is not among the choices of a ``Literal`` type."""
    if value not in get_args(choices):
        raise ValueError(f"{name} must be one of {get_args(choices)}; got {value!r}")


@dataclass(frozen=True)
class Design:
    """The choices that shape the networks.

    See :class:`captum_mi.InfoBottleneckAttribution` for what each one means.
    """

    noise: Noise = "matched"
    inference: InferenceKind = "conv"
    critic: CriticKind = "separable"
    head_hidden: tuple[int, ...] = (256, 256)
    critic_hidden: tuple[int, ...] = (256,)
    output: OutputKind | None = None
    prediction: PredictionKind | None = None
    marginal: MarginalKind = "data"
    on_repeat: OnRepeat = "error"
    map_input: int | None = None
    channel_axis: ChannelAxis | None = None
    input_channel_axis: ChannelAxis | None = None

    def __post_init__(self) -> None:
        for name, choices in (
            ("noise", Noise),
            ("inference", InferenceKind),
            ("critic", CriticKind),
            ("marginal", MarginalKind),
            ("on_repeat", OnRepeat),
        ):
            check_choice(name, getattr(self, name), choices)
        for name, optional in (
            ("output", OutputKind),
            ("prediction", PredictionKind),
            ("channel_axis", ChannelAxis),
            ("input_channel_axis", ChannelAxis),
        ):
            if getattr(self, name) is not None:
                check_choice(name, getattr(self, name), optional)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Design:
        hidden = {name: tuple(values[name]) for name in ("head_hidden", "critic_hidden")}
        return cls(**{**values, **hidden})


@dataclass(frozen=True)
class Structure:
    """Shapes and names found in the user's model.

    Attributes:
        sites: where noise is injected and information is read.
        head_sites: where information is read, but no noise injected.
        context: what the inference network reads.
        tokens: where noise is injected that belongs to no position, such as a class token.
        global_layer: name of the layer that returns y, ``None`` for the model's output.
        output: what y is.
        y_shape: shape of one example's y.
        output_shape: shape of one example's output of the model.
        n_classes: classes of the downstream function, 0 without one.
        signature: what inputs look like.
        replays: whether a pass may skip what runs before the first site or after the last one.
        offsets: how far each site's positions lie beyond the middles of their cells
            (:mod:`captum_mi.placing`); none: not at all.
        resumes: whether a second pass needs nothing of what runs before, but what the first site's
            layer returned.
    """

    sites: tuple[Site, ...]
    head_sites: tuple[Site, ...]
    context: tuple[Site, ...]
    tokens: tuple[Site, ...]
    global_layer: str | None
    output: OutputKind
    y_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    n_classes: int
    signature: Signature
    replays: bool = False
    resumes: bool = False
    offsets: tuple[tuple[float, ...], ...] = ()

    @property
    def layers(self) -> list[str]:
        """Names of all layers that a pass captures."""
        return layers_of(self.sites + self.head_sites + self.context)

    @property
    def position_axes(self) -> int:
        """Number of axes of the grid that alpha lives on."""
        return max(site.position_axes for site in self.sites)

    @property
    def has_shares(self) -> bool:
        """Whether positions can have a share in a decision: there are positions and classes."""
        return self.position_axes > 0 and (self.output != "gaussian" or self.n_classes > 0)

    @property
    def target_shape(self) -> tuple[int, ...]:
        """Shape that targets index: the downstream's classes, y, or (y continuous) the output."""
        if self.n_classes:
            return (self.n_classes,)
        return self.output_shape if self.output == "gaussian" else self.y_shape

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Structure:
        sites = {
            name: tuple(Site.from_dict(site) for site in values[name])
            for name in ("sites", "head_sites", "context", "tokens")
        }
        tuples = {name: tuple(values[name]) for name in ("y_shape", "output_shape")}
        tuples["offsets"] = tuple(map(tuple, values.get("offsets", ())))
        signature = Signature(**{k: tuple(v) for k, v in values["signature"].items()})
        return cls(**{**values, **sites, **tuples, "signature": signature})


def default_layers(stages: list[str]) -> list[str]:
    """The last blocks of the two stages before the deepest, which a head alone reads.

    Earlier stages tell little about the class, the deepest one little about where: on
    photographs the two between them localised best. Fewer stages give fewer layers.
    """
    return stages[-3:-1] or stages


def default_stages(
    model: nn.Module, batch: Batch, channel_axis: ChannelAxis | None = None,
    map_input: int | None = None,
) -> list[str]:
    """Stages with the position axes of the inputs, or of the one that the map belongs to.

    Raises:
        ValueError: if no layer has the position axes of the inputs.
    """
    mapped = batch.inputs if map_input is None else (batch.inputs[map_input],)
    axes = max(_position_axes(x) for x in mapped)
    args = batch.additional_forward_args
    stages = (stage_layers(model, batch.inputs, args, axes, channel_axis, map_input)
              if axes > 0 else [])
    if not stages:
        shapes = [tuple(x.shape) for x in batch.inputs]
        raise ValueError(
            f"found no stage with positions in {type(model).__name__} for inputs {shapes}; "
            "layers that run more than once in a pass are not looked at, nor are those whose "
            "positions do not follow the inputs'. Name the layers to read, as in "
            "layer=['layer2', 'layer3']"
        )
    return stages


def _position_axes(x: Tensor) -> int:
    """Of an input: those after examples and channels; indices ``(N, T)`` have no channels."""
    return 1 if x.dim() == 2 and not x.is_floating_point() else x.dim() - 2


@torch.no_grad()
def probe(
    model: nn.Module,
    batch: Batch,
    design: Design,
    layers: Sequence[str],
    head_layers: Sequence[str] | None,
    context_layers: Sequence[str] | None,
    global_layer: str | None,
    downstream: Callable[..., Tensor] | None,
    stages: Sequence[str] | None = None,
) -> Structure:
    """Run one batch through the model and note names and shapes.

    A global layer whose output is the model's own output is taken for that output. Stages, for
    heads and context that are not named, are looked for unless they are known.
    """
    inputs, args = batch.inputs, batch.additional_forward_args
    check_inputs(inputs, dtype_of(model))

    def run(names: Sequence[str]) -> Any:
        passes = Passes(model, names, global_layer, design.on_repeat, downstream)
        return passes.first(inputs, args)

    def found(names: Sequence[str]) -> list[tuple[list[Site], list[Site]]]:
        shapes = [tuple(x.shape) for x in inputs]
        return [
            find_sites(name, first.layers[name], shapes, design.channel_axis) for name in names
        ]

    def sites_of(names: Sequence[str]) -> tuple[Site, ...]:
        return tuple(site for sites, _ in found(names) for site in sites)

    named = [*layers, *(head_layers or ()), *(context_layers or ())]
    first = run(named)
    sites = sites_of(layers)
    for site in sites_of(named):
        rows = len(site.of(first.layers))
        if rows != len(inputs[0]):
            raise ValueError(
                f"layer {site.name!r} returned {rows} rows for {len(inputs[0])} examples; "
                "expected one row for each example, the batch first"
            )
    if design.channel_axis is None:
        _warn_of_guesses(model, sites, first.layers, inputs)
    if design.map_input is not None and len(inputs) > 1:
        _warn_of_layers_of_other_inputs(model, layers, batch, design.map_input)
    if stages is None:
        _warn_of_other_places(model, sites, batch, design)
    axes = max(site.position_axes for site in sites)
    if head_layers is None or context_layers is None:
        if stages is None:
            stages = stage_layers(
                model, inputs, args, axes, design.channel_axis, design.map_input)
        if head_layers is None:
            head_layers = [name for name in stages[-1:] if axes and name not in layers]
        if context_layers is None:
            context_layers = [*stages, *(name for name in layers if name not in stages)]
        first = run([*layers, *head_layers, *context_layers])
    for site in sites_of([*layers, *head_layers, *context_layers]):
        if site.position_axes not in (0, axes):
            raise ValueError(
                f"layer {site.name!r} has {site.position_axes} position axes and others have "
                f"{axes}; choose layers with the same axes, or with none"
            )
    if downstream is not None and (first.prediction.dim() != 2 or first.prediction.shape[1] < 2):
        raise ValueError(
            f"downstream returned {tuple(first.prediction.shape)}; expected logits "
            f"({len(inputs[0])}, classes) of at least two classes"
        )
    is_output = first.y.shape == first.output.shape and torch.equal(first.y, first.output)
    y_shape = tuple(first.y.shape[1:])
    is_prediction = is_output and downstream is None
    asked = design.output or (design.prediction if is_prediction else None)
    output_kind = resolve_kind(asked, y_shape, is_prediction)
    passes = Passes(model, [site.layer for site in sites], None, design.on_repeat)
    grid = finest([tuple(site.of(first.layers).shape[2:]) for site in sites])
    replays, resumes = _replays(passes, batch, sites)
    return Structure(
        sites=sites,
        head_sites=sites_of(head_layers),
        context=sites_of(context_layers),
        tokens=tuple(token for _, tokens in found(layers) for token in tokens),
        global_layer=None if is_output else global_layer,
        output=output_kind,
        y_shape=y_shape,
        output_shape=tuple(first.output.shape[1:]),
        n_classes=0 if downstream is None else first.prediction.shape[1],
        signature=Signature.of(inputs, [_channel_axis(x, grid, design) for x in inputs]),
        replays=replays,
        resumes=resumes,
    )


def _channel_axis(x: Tensor, grid: tuple[int, ...], design: Design) -> int:
    """Which axis of an input holds channels: another one may be longer than the fit saw it."""
    if not grid or x.dim() != len(grid) + 2:
        return 1
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
        gap = (first.output[:n] - second.output).abs().amax()
        return bool(gap <= 1e-4 * first.output[:n].abs().amax())

    if not same(len(inputs[0]), first.before):
        return False, False
    layer = passes.resumed(first)
    if layer is None or args:
        return True, False
    last = first.layers[layer]
    assert isinstance(last, Tensor)
    return True, same(1, first.before.resume(last[:1]))


def _warn_of_layers_of_other_inputs(
    model: nn.Module, layers: Sequence[str], batch: Batch, map_input: int
) -> None:
    """A map of an input can only be read off layers that see it."""
    seen = seeing(model, layers, batch.inputs, batch.additional_forward_args, map_input)
    for layer in dict.fromkeys(layers):
        if layer not in seen:
            warn(
                f"layer {layer!r} returned the same features for input {map_input} turned round, "
                "so that a map read there tells nothing about that input, which map_input "
                "chooses; choose a layer that comes after it, or another map_input"
            )


def _warn_of_other_places(
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


def _warn_of_guesses(
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
