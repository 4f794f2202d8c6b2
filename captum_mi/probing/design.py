"""The user's choices, which are saved with a fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from captum_mi.choices import check_choice
from captum_mi.critics import CriticKind
from captum_mi.inference import InferenceKind
from captum_mi.model.hooks import OnRepeat
from captum_mi.model.strides import ChannelAxis
from captum_mi.outputs import OutputKind, PredictionKind

__all__ = ["Design", "MarginalKind", "Noise", "widths"]

Noise = Literal["matched", "standard"]
MarginalKind = Literal["data", "uniform"]


@dataclass(frozen=True)
class Design:
    """The choices that shape the networks.

    See :class:`captum_mi.InfoBottleneckAttribution` for what each one means.
    """

    noise: Noise
    inference: InferenceKind
    critic: CriticKind
    head_hidden: tuple[int, ...]
    critic_hidden: tuple[int, ...]
    output: OutputKind | None
    prediction: PredictionKind | None
    marginal: MarginalKind
    on_repeat: OnRepeat
    map_input: int | None
    channel_axis: ChannelAxis | None
    input_channel_axis: ChannelAxis | None

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


def widths(name: str, value: Sequence[int]) -> tuple[int, ...]:
    """Widths of hidden layers, which may be none.

    Raises:
        ValueError: for anything but integers of at least 1.
    """
    if not isinstance(value, Sequence) or not all(isinstance(n, int) and n > 0 for n in value):
        raise ValueError(
            f"{name} must be a sequence of widths of at least 1, such as (256,), or () for a "
            f"single layer; got {value!r}")
    return tuple(value)
