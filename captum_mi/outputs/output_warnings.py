"""Warnings about outputs that look like something else than what they are taken for."""

from __future__ import annotations

from torch import Tensor

from captum_mi.outputs.bernoulli import BernoulliOutput
from captum_mi.outputs.categorical import CategoricalOutput
from captum_mi.outputs.output import Output
from captum_mi.warn import warn

__all__ = ["warn_if_probabilities", "warn_if_values"]

_CERTAIN = 15.0  # nats: a logit that is hardly ever smaller is none


def warn_if_probabilities(output: Output, raw: Tensor, advice: str) -> None:
    """Probabilities that are taken for logits: what is made of them is nearly uniform."""
    if not isinstance(output, (CategoricalOutput, BernoulliOutput)) or output.probabilities:
        return
    if float(raw.min()) < 0 or float(raw.max()) > 1 + 1e-3:
        return
    if isinstance(output, BernoulliOutput):
        like = "lie between 0 and 1, as if they came from a sigmoid"
    elif bool(((raw.flatten(1).float().sum(1) - 1).abs() < 1e-3).all()):
        like = "are positive and sum to 1, as if they came from a softmax"
    else:
        like = "lie between 0 and 1, as if they were independent labels, from a sigmoid"
        advice = "For independent labels return their logits, and pass output='bernoulli'"
    warn(f"the model's predictions {like}; they are taken for logits. {advice}")


def warn_if_values(output: Output, raw: Tensor) -> None:
    """A value that is taken for a logit: what is made of it is always certain."""
    if not isinstance(output, BernoulliOutput) or float(raw.abs().median()) < _CERTAIN:
        return
    warn(
        f"the model's output goes from {float(raw.min()):.4g} to {float(raw.max()):.4g} and is "
        "taken for the logit of a label, by which the model is certain of every example. If it "
        "is a value, as of a regression, pass output='gaussian'"
    )
