r"""Shares of positions in a decision: what it loses at each of them as noise grows.

The share of position j in class c, in nats, is

.. math:: \phi_j(c) = -\int_0^1 \mathbb{E}\,
          \frac{\partial}{\partial \alpha_j} \log p(c \mid x'_\alpha)\, d\alpha ,

where alpha, the same at all positions, grows from no noise to noise alone. Over the positions it
adds up to :math:`\log p(c \mid x) - \mathbb{E} \log p(c \mid \text{noise})`: these are
integrated gradients (Sundararajan et al., 2017, https://arxiv.org/abs/1703.01365), the shares of
Aumann and Shapley, through the bottleneck instead of the input. Maps are weighted by the mean of
the slopes at two levels of noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from captum_mi.gradients import gradients_of, no_gradient
from captum_mi.networks import Networks
from captum_mi.passes import Pass, Passes
from captum_mi.readout import Readout
from captum_mi.refinement import shared_noise
from captum_mi.replay import Replay
from captum_mi.sites import Site

__all__ = ["LEVELS", "Decision"]

#: Where slopes are measured: a decision is hardly left at higher levels, and slopes are noise.
LEVELS = (0.25, 0.5)

_EDGE = 1e-3  # levels of noise keep away from 0 and 1


@dataclass(frozen=True)
class Decision:
    """A batch's decision for a class each, seen from the bottleneck.

    Attributes:
        passes: passes of the model.
        networks: the fit.
        readout: tells the probability of classes in a pass.
        inputs: one batch.
        args: additional forward arguments of the batch.
        z: standardised features of the first pass.
        index: classes ``(N, S)``.
        before: what the first pass kept for second ones.
    """

    passes: Passes
    networks: Networks
    readout: Readout
    inputs: tuple[Tensor, ...]
    args: tuple[Any, ...]
    z: dict[Site, Tensor]
    index: Tensor
    before: Replay = field(default_factory=Replay)

    def log_probability(self, one: Pass) -> Tensor:
        """``log p(c)`` of a pass, ``(N,)``."""
        return self.readout.log_probability(one, self.index)

    def shares(self, levels: Sequence[float] = LEVELS) -> Tensor:
        """Shares of the positions: their mean slope over levels of noise.

        The draw of noise at each level serves all examples, so that an example's shares depend
        neither on its batch nor on the call.

        Returns:
            ``(N, 1, *positions)`` on the finest grid, in nats.
        """
        slopes = []
        for i, level in enumerate(levels):
            noise = shared_noise({site: self.z[site] for site in self.networks.noised_sites}, i)
            slopes.append(self.slope_at(level, noise))
        return torch.stack(slopes).mean(0)

    def slope_at(self, level: float, noise: dict[Site, Tensor]) -> Tensor:
        r"""What the decision loses at each position at one level of noise.

        .. math:: -\frac{\partial}{\partial \alpha_j} \log p(c \mid x'_\alpha)
                  \quad \text{where all } \alpha_j \text{ are the level.}

        Args:
            level: alpha everywhere, in [0, 1].
            noise: the draw for each site.

        Returns:
            ``(N, 1, *positions)`` on the finest grid, in nats.

        Raises:
            RuntimeError: if the prediction cannot be differentiated by alpha.
        """
        networks, z = self.networks, self.z
        grid = z[networks.finest_site(z)][:, :1]
        with torch.enable_grad():
            alpha = torch.full_like(grid, min(max(level, _EDGE), 1 - _EDGE)).requires_grad_()
            noised = networks.injections(networks.spread(torch.logit(alpha), z), noise)
            second = self.passes.second(self.inputs, self.args, noised, self.before)
            total = self.log_probability(second).sum()
        slope = gradients_of(total, [alpha])[0] if total.requires_grad else None
        if slope is None:
            raise no_gradient(
                "shares in it cannot be measured", "refine alpha with weighting='posterior'")
        return -slope
