"""Beta2, the multiplier of the information in x', moved so that the distortion is held."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from captum_mi.warn import warn

__all__ = ["Multiplier"]

_KAPPA_SHARE = 1 / 4  # of the distortion of knowing nothing
_ASCENT_RATE = 0.03
_DESCENT = 5.0  # beta2 may shrink this many times faster than it grows
_EMA = 0.9
_REACHED = 0.05  # of kappa: less was on its way
_CONSTANT = 1e-3  # nats: less tells no two predictions apart
_DROWNED = 0.95  # alpha above which features are all but noise


class Multiplier:
    """Beta2: fixed, or moved so that the distortion stays at kappa.

    Dual ascent on the logarithm: a distortion below kappa leaves room for more noise, so beta2
    grows; above, it shrinks, and faster the further above: drowned features give hardly any
    gradient to come back by. It starts where giving up all information would be worth a
    distortion of kappa.

    Args:
        beta2: fixed by hand, or ``None``.
        kappa: distortion to hold, or ``None``.
        uninformed: distortion of predicting the marginal, of which a share is held if neither is
            given; ``None`` where there is nothing to hold, as with an alpha set by hand.
        varied: divergence of one example's prediction from another's.
    """

    def __init__(
        self, beta2: float | None, kappa: float | None, uninformed: float | None,
        varied: float = math.inf,
    ) -> None:
        self.kappa, self.value = kappa, beta2
        if beta2 is None and kappa is None and uninformed is not None:
            self.kappa = max(_KAPPA_SHARE * uninformed, 1e-6)
        self.constant = kappa is None and varied < _CONSTANT
        self.average = 0.0
        self.seen = 0.0  # weight of the distortions in the average

    def started(self, value: Tensor, information: Tensor) -> Tensor:
        """The multiplier; where it is NaN, before the first step, chosen from the information."""
        start = torch.ones_like(value) if self.kappa is None else (
            self.kappa / information.clamp_min(1e-6))
        return torch.where(value.isnan(), start, value)

    def update(self, distortion: float) -> None:
        """Move it, after a step of this distortion."""
        if self.kappa is None or self.value is None:
            return
        self.seen = _EMA * self.seen + 1 - _EMA
        self.average += (1 - _EMA) / self.seen * (distortion - self.average)
        gap = (self.kappa - self.average) / self.kappa
        self.value *= math.exp(_ASCENT_RATE * min(1.0, max(-_DESCENT, gap)))

    def warn_if_missed(self, alpha: float) -> None:
        """Warn if the distortion ended far from kappa, with this alpha in the mean."""
        if self.kappa is None or abs(self.average - self.kappa) <= 0.5 * self.kappa:
            return
        ended = (f"at the end of the fit the noise changes the prediction by {self.average:.3g} "
                 f"nats, and its target, kappa, is {self.kappa:.3g}")
        if self.constant:
            warn(
                f"{ended}: the model predicts nearly the same for all of the data, so that there "
                "is hardly any information to find. Fit on data that it tells apart, or explain "
                "an output that differs"
            )
        elif self.average < self.kappa and alpha > _DROWNED:
            warn(
                f"{ended}, although hardly anything of the chosen layers is left (alpha is "
                f"{alpha:.2f} in the mean): what the prediction rests on lies at very few "
                "positions, or passes beside these layers, as through another branch of the "
                "model. In a model with branches choose layers that together lie on every path "
                "from the input to the output"
            )
        elif self.average < self.kappa:
            smaller = f", or pass a smaller kappa, such as {self.average:.2g}"
            warn(f"{ended}: the maps keep more than the decision needs. Fit for more steps"
                 f"{smaller if self.average > _REACHED * self.kappa else ''}")
        else:
            warn(f"{ended}: the maps lack some of what the decision needs. Fit for more steps, or "
                 f"pass a larger kappa, such as {self.average:.2g}")
