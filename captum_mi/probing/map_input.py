"""The input that maps belong to, and which of its axes positions lie along."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from captum_mi.model.arguments import replaced
from captum_mi.model.strides import ChannelAxis, channels_are_last

__all__ = ["MapInput", "check_map_input", "find_map_input", "first_spatial_axis", "unmatched"]


@dataclass(frozen=True)
class MapInput:
    """One of several inputs.

    Told once, while fitting: an input of another size might be taken for one of another layout.

    Attributes:
        index: which one.
        first_axis: where its positions begin: 2, or 1 if channels come last or there are none.
    """

    index: int
    first_axis: int

    def of(self, inputs: Sequence[Tensor]) -> Tensor:
        """The input itself."""
        return inputs[self.index]

    def replaced(self, inputs: tuple[Tensor, ...], x: Tensor) -> tuple[Tensor, ...]:
        """All inputs, with another one in its place."""
        return replaced(inputs, self.index, x)


def find_map_input(
    inputs: Sequence[Tensor], grid: Sequence[int], map_input: int | None,
    channel_axis: ChannelAxis | None, input_channel_axis: ChannelAxis | None,
) -> MapInput | None:
    """The input that a grid's positions belong to.

    Inputs ``(N, C, *spatial)`` with as many spatial axes as the grid match; failing those, inputs
    ``(N, *spatial)`` without a channel axis. ``None`` if none matches, or several do, or the grid
    has no positions.

    Args:
        inputs: one batch.
        grid: positions of the finest chosen layer.
        map_input: which input, if it is known.
        channel_axis: where features have their channels, if it is known.
        input_channel_axis: where the input has them, if it is known.
    """
    matching = _matching([x.dim() for x in inputs], len(grid), map_input)
    if not grid or len(matching) != 1:
        return None
    axis = first_spatial_axis(inputs[matching[0]], grid, channel_axis, input_channel_axis)
    return MapInput(matching[0], axis)


def first_spatial_axis(
    like: Tensor, grid: Sequence[int], channel_axis: ChannelAxis | None,
    input_channel_axis: ChannelAxis | None,
) -> int:
    """Where the axes begin that maps of a grid belong to, in an input: 2, or 1 if no channels
    come before them."""
    if like.dim() < len(grid) + 2:
        return 1
    if input_channel_axis is not None:
        return 1 if input_channel_axis == "last" else 2
    return 1 if channels_are_last(tuple(grid), tuple(like.shape), channel_axis) else 2


def _matching(ranks: Sequence[int], axes: int, map_input: int | None) -> list[int]:
    chosen = range(len(ranks)) if map_input is None else [map_input]
    for rank in (axes + 2, axes + 1):
        matching = [i for i in chosen if ranks[i] == rank]
        if matching:
            return matching
    return []


def check_map_input(map_input: int, n_inputs: int) -> None:
    """Whether there is such an input.

    Raises:
        ValueError: if there is none.
    """
    if not 0 <= map_input < n_inputs:
        raise ValueError(f"map_input={map_input} is out of range for {n_inputs} inputs")


def unmatched(ranks: Sequence[int], axes: int, map_input: int | None) -> ValueError:
    """The error where no single input is the one that maps belong to.

    Args:
        ranks: number of axes of each input.
        axes: of positions.
        map_input: which input was asked for.
    """
    matching = _matching(ranks, axes, map_input)
    if matching:
        return ValueError(
            f"inputs {matching} all match the features' {axes} position axes; say which one the "
            f"map belongs to where the attribution is made, as with map_input={matching[0]}"
        )
    if map_input is not None:
        return ValueError(
            f"map_input={map_input} has {ranks[map_input]} axes, which does not match features of "
            f"{axes} position axes"
        )
    return ValueError(
        f"no input matches features of {axes} position axes; inputs have {list(ranks)} axes, the "
        "batch first. LayerInfoBottleneckAttribution gives the maps at the layer's own "
        "resolution, without refine_steps, which removes parts of an input"
    )
