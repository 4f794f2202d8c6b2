"""Which output a model has."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from captum_mi.outputs.bernoulli import BernoulliOutput
from captum_mi.outputs.categorical import CategoricalOutput
from captum_mi.outputs.gaussian import GaussianOutput
from captum_mi.outputs.output import Output

__all__ = ["OutputKind", "PredictionKind", "make_output", "make_prediction", "resolve_kind"]

PredictionKind = Literal["categorical", "bernoulli", "probabilities"]
OutputKind = Literal[PredictionKind, "gaussian"]


def resolve_kind(
    kind: OutputKind | None, shape: Sequence[int], is_model_output: bool
) -> OutputKind:
    """The kind that was asked for, or the usual one.

    Args:
        kind: ``None`` chooses Gaussian for a global layer, and for the model's own output
            Bernoulli if it is a single number, categorical otherwise.
        shape: shape of one example's raw output.
        is_model_output: whether y is what the model returns.

    Raises:
        ValueError: if a single number is to be categorical.
    """
    single = math.prod(shape) == 1
    if kind is None:
        return "gaussian" if not is_model_output else "bernoulli" if single else "categorical"
    if kind == "categorical" and single:
        raise ValueError(
            f"'categorical' needs more than one class; got shape {tuple(shape)} for each example. "
            "Use 'bernoulli' for a single logit"
        )
    return kind


def make_output(kind: OutputKind, shape: Sequence[int]) -> Output:
    """Output of a kind, for raw outputs of a shape."""
    if kind == "gaussian":
        return GaussianOutput(shape)
    if kind == "bernoulli":
        return BernoulliOutput(shape)
    probabilities = kind == "probabilities"
    if math.prod(shape) == 1:
        return BernoulliOutput(shape, probabilities)
    return CategoricalOutput(shape, probabilities)


def make_prediction(kind: PredictionKind | None, shape: Sequence[int]) -> Output:
    """What the second pass is held to, where that is not y: raw predictions of a shape."""
    return make_output(resolve_kind(kind, shape, is_model_output=True), shape)
