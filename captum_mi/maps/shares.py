r"""Shares of positions in a decision: integrated gradients through the features.

The share of position j in class c, in nats, is

.. math:: \phi_j(c) = -\int_0^1 \frac{\partial}{\partial \alpha_j}\, l_c(x'_\alpha)\, d\alpha ,
          \qquad x'_\alpha = (1 - \alpha)\, x + \alpha\, b ,

where :math:`l_c` is the logit of the class, x are the features of an example, b those of its
baseline, and alpha, the same at all positions, grows from 0 to 1. Over the positions it adds up
to what the logit loses on the way:
these are integrated gradients (Sundararajan et al., 2017, https://arxiv.org/abs/1703.01365), the
shares of Aumann and Shapley, of features instead of pixels (Captum's
``LayerIntegratedGradients``), summed over the channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from captum_mi.maps.readout import Readout
from captum_mi.model.gradients import gradients_of, no_gradient
from captum_mi.model.passes import Pass, Passes
from captum_mi.model.replay import Replay
from captum_mi.model.sites import Site

__all__ = ["LEVELS", "Decision"]

#: Where slopes are measured: the middles of two halves of the way.
LEVELS = (0.25, 0.75)


@dataclass(frozen=True)
class Decision:
    """A batch's decision for a class each.

    Attributes:
        passes: passes of the model.
        readout: tells the probability of classes in a pass.
        inputs: one batch.
        args: additional forward arguments of the batch.
        index: classes ``(N, S)``.
        before: what the first pass kept for second ones.
    """

    passes: Passes
    readout: Readout
    inputs: tuple[Tensor, ...]
    args: tuple[Any, ...]
    index: Tensor
    before: Replay = field(default_factory=Replay)

    def log_probability(self, one: Pass) -> Tensor:
        """``log p(c)`` of a pass, ``(N,)``."""
        return self.readout.log_probability(one, self.index)

    def shares(
        self, site: Site, baselines: tuple[Tensor, ...], levels: Sequence[float] = LEVELS
    ) -> Tensor:
        """Shares of a site's positions: their mean slope over levels of alpha.

        Args:
            site: whose features are taken to those of the baselines.
            baselines: of the inputs' shapes.
            levels: alphas, in [0, 1].

        Returns:
            ``(N, 1, *positions)``, in nats.

        Raises:
            RuntimeError: if the prediction cannot be differentiated by the features.
        """
        blank = site.of(self.passes.features(baselines, self.args, [site.layer]))
        return torch.stack([self._slope_at(level, site, blank) for level in levels]).mean(0)

    def _slope_at(self, level: float, site: Site, blank: Tensor) -> Tensor:
        """What the logit loses at each position as alpha grows there, at one level of it."""

        def mix(features: Tensor) -> Tensor:
            return (features + alpha * (blank - features)).to(features.dtype)

        with torch.enable_grad():
            shape = (len(blank), 1, *blank.shape[2:])
            dtype = torch.promote_types(blank.dtype, torch.float32)
            alpha = torch.full(shape, level, dtype=dtype, device=blank.device).requires_grad_()
            second = self.passes.second(self.inputs, self.args, {site: mix}, self.before)
            total = self.readout.logit(second, self.index).sum()
        slope = gradients_of(total, [alpha])[0] if total.requires_grad else None
        if slope is None:
            raise no_gradient(
                "shares in it cannot be measured", "leave out refine_steps")
        return -slope
