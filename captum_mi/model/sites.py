"""Features inside of layers' outputs, whatever their layout: channels first, last, or tokens."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from captum_mi.model.hooks import LayerOutput
from captum_mi.model.strides import ChannelAxis, downsampled

__all__ = ["Site", "find_sites", "layers_of"]

_PREFIXES = (0, 1, 2, 5)  # class, distillation and register tokens, as they come in practice


@dataclass(frozen=True)
class Site:
    """Features ``(N, channels, *positions)``: a layer's output, or a part of it, seen that way.

    Args:
        layer: dotted name.
        part: index in the layer's output if that is a tuple, else ``None``.
        channels: number of channels.
        position_axes: number of position axes.
        layout: of the output. ``"tokens"`` are ``(N, prefix + positions, C)``, and a single
            ``"token"`` of them, the one at index ``prefix``, is features ``(N, C)``.
        prefix: leading tokens that belong to no position, such as a class token.
        grid: positions of tokens.
    """

    layer: str
    part: int | None
    channels: int
    position_axes: int
    layout: Literal["channels_first", "channels_last", "tokens", "token"] = "channels_first"
    prefix: int = 0
    grid: tuple[int, ...] = ()

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Site:
        return cls(**{**values, "grid": tuple(values["grid"])})

    @property
    def name(self) -> str:
        name = self.layer if self.part is None else f"{self.layer}[{self.part}]"
        return f"{name} token {self.prefix}" if self.layout == "token" else name

    def of(self, outputs: dict[str, LayerOutput]) -> Tensor:
        """This site's features among captured outputs."""
        output = outputs[self.layer]
        return self.view(output if isinstance(output, Tensor) else output[self.part or 0])

    def view(self, features: Tensor) -> Tensor:
        """``(N, channels, *positions)`` of features as the layer returns them."""
        self._check(features)
        if self.layout == "channels_first":
            return features
        if self.layout == "token":
            return features[:, self.prefix]
        last = features[:, self.prefix :].movedim(-1, 1)
        return last.unflatten(2, self.grid) if self.layout == "tokens" else last

    def check_rows(self, outputs: dict[str, LayerOutput], n: int) -> None:
        """Raise ValueError if captured features do not have a row for each of n examples."""
        rows = len(self.of(outputs))
        if rows != n:
            raise ValueError(
                f"layer {self.name!r} returned {rows} rows for {n} examples; expected one row for "
                "each example, the batch first. A layer that returns a state too, such as "
                "nn.GRU, needs a module around it that returns its output alone"
            )

    def put(self, features: Tensor, new: Tensor) -> Tensor:
        """Features as the layer returns them, with this site's replaced: inverse of ``view``."""
        if self.layout == "channels_first":
            return new
        if self.layout == "channels_last":
            return new.movedim(1, -1)
        rows = new[:, None] if self.layout == "token" else new.flatten(2).movedim(1, -1)
        rest = features[:, self.prefix + rows.shape[1] :]
        return torch.cat([features[:, : self.prefix], rows, rest], 1)

    def _check(self, features: Tensor) -> None:
        shape = tuple(features.shape)
        if self.layout in ("tokens", "token"):
            same = len(shape) == 3 and shape[2] == self.channels
            expected = f"{self.channels} channels of tokens"
            if self.layout == "tokens":
                same = same and shape[1] == self.prefix + math.prod(self.grid)
                expected = (f"(N, {self.prefix} + {' x '.join(map(str, self.grid))} tokens, "
                            f"{self.channels})")
        else:
            axis = 1 if self.layout == "channels_first" else -1
            same = len(shape) == self.position_axes + 2 and shape[axis] == self.channels
            expected = f"{self.channels} channels and {self.position_axes} position axes"
        if not same:
            raise ValueError(
                f"layer {self.name!r} returned features of shape {shape}; the fit saw {expected}"
            )


def find_sites(
    layer: str,
    output: LayerOutput,
    inputs: Sequence[tuple[int, ...]] = (),
    channel_axis: ChannelAxis | None = None,
) -> tuple[list[Site], list[Site]]:
    """Sites of a layer's captured output, and its tokens that belong to no position.

    Where the channels are is told by the inputs' positions. Features ``(N, T, C)`` of images are
    tokens of square patches, row by row, after 0, 1, 2 or 5 others. Features have their channels
    last if their middle axes, and not their last ones, are the image's divided by a common
    stride, or, of more channels than positions along any axis, by a stride for each axis; if
    their axis 1, and not their axis 2, is a sequence's length; or if it is that of a sequence
    ``(N, L)`` without channels. Else, and where both would do, channels come first.

    Args:
        layer: dotted name.
        output: what it returned.
        inputs: shapes of the inputs.
        channel_axis: where the channels are, if it is known.

    Raises:
        ValueError: for features without a channel axis, with more than three position axes, or
            of tokens that are no square patches of the inputs.
    """
    parts = enumerate(output) if isinstance(output, tuple) else [(None, output)]
    sites, tokens = [], []
    for part, features in parts:
        if not 2 <= features.dim() <= 5 or not features.is_floating_point():
            raise ValueError(
                f"layer {layer!r} returned a {features.dtype} tensor of shape "
                f"{tuple(features.shape)}; expected floating-point features (N, C), (N, C, L), "
                "(N, C, H, W), (N, C, D, H, W), or with their channels last"
            )
        shape = tuple(features.shape[1:])
        found = _token_grid(shape, inputs, channel_axis)
        if found is not None:
            prefix, grid = found
            sites.append(Site(layer, part, shape[1], len(grid), "tokens", prefix, grid))
            tokens += [Site(layer, part, shape[1], 0, "token", i) for i in range(prefix)]
        elif len(shape) > 1 and _is_last(layer, shape, inputs, channel_axis):
            sites.append(Site(layer, part, shape[-1], len(shape) - 1, "channels_last"))
        else:
            sites.append(Site(layer, part, shape[0], len(shape) - 1))
    return sites, tokens


def layers_of(sites: Iterable[Site]) -> list[str]:
    """Names of the sites' layers, of which several may be parts, without repeats."""
    return list(dict.fromkeys(site.layer for site in sites))


def _token_grid(
    shape: tuple[int, ...], inputs: Sequence[tuple[int, ...]], channel_axis: ChannelAxis | None
) -> tuple[int, tuple[int, ...]] | None:
    """Leading tokens and grid of features ``(T, C)`` of images; ``None`` if they are not that."""
    images = [x[2:] for x in inputs if len(x) > 3]
    if len(shape) != 2 or not images or channel_axis == "first":
        return None
    for prefix in _PREFIXES:
        for size in images:
            for patch in range(1, min(size) + 1):
                grid = tuple(length // patch for length in size)
                exact = all(length % patch == 0 for length in size)
                if exact and math.prod(grid) == shape[0] - prefix:
                    return prefix, grid
    return None


def _is_last(
    layer: str, shape: tuple[int, ...], inputs: Sequence[tuple[int, ...]],
    channel_axis: ChannelAxis | None,
) -> bool:
    images = [x[2:] for x in inputs if len(x) > 3]
    if channel_axis is not None:
        if channel_axis == "last" and len(shape) == 2 and images:
            raise ValueError(
                f"layer {layer!r} returned {shape[0]} tokens; expected one for each square patch "
                f"of inputs {list(inputs)}, after {_PREFIXES} others"
            )
        return channel_axis == "last"
    first, last = shape[1:], shape[:-1]
    if len(shape) > 2:
        for common in (True, False):  # else a stride for each axis, as of a video
            is_first, is_last = (
                any(downsampled(axes, size, common) for size in images) for axes in (first, last))
            if is_first or is_last:
                return not is_first and (common or shape[-1] > max(last))
        return False
    if any(last == x[1:] for x in inputs):  # a sequence (N, L) of words
        return True
    return any(
        len(x) == 3 and last == x[1:2] and not downsampled(first, x[2:]) for x in inputs
    )
