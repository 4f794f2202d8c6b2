"""What the global representation ``y`` is: a class, labels, or a continuous vector.

An output knows how a head's numbers describe ``q(y | x')``, what the marginal ``r(y)`` of the
fitting data is, and how far the predictions of two passes are from each other.
"""

from captum_mi.outputs.bernoulli import BernoulliOutput
from captum_mi.outputs.categorical import CategoricalOutput
from captum_mi.outputs.gaussian import GaussianOutput
from captum_mi.outputs.kinds import (
    OutputKind,
    PredictionKind,
    make_output,
    make_prediction,
    resolve_kind,
)
from captum_mi.outputs.output import Output

__all__ = [
    "BernoulliOutput",
    "CategoricalOutput",
    "GaussianOutput",
    "Output",
    "OutputKind",
    "PredictionKind",
    "make_output",
    "make_prediction",
    "resolve_kind",
]
