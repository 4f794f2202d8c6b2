"""How fast a decision loses information as noise grows, position by position."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from captum_mi.networks import Networks
from captum_mi.outputs import Output
from captum_mi.passes import Passes
from captum_mi.replay import Replay
from captum_mi.sites import Site

__all__ = ["Decision"]

_EDGE = 1e-3  # levels of noise keep away from 0 and 1


@dataclass(frozen=True)
class Decision:
    """A batch's decision for a class each, seen from the bottleneck.

    Attributes:
        passes: passes of the model.
        networks: the fit.
        classes: what predictions are.
        inputs: one batch.
        args: additional forward arguments of the batch.
        z: standardised features of the first pass.
        index: classes ``(N, S)``.
        before: what the first pass kept for second ones.
    """

    passes: Passes
    networks: Networks
    classes: Output
    inputs: tuple[Tensor, ...]
    args: tuple[Any, ...]
    z: dict[Site, Tensor]
    index: Tensor
    before: Replay = field(default_factory=Replay)

    def slope_at(self, level: Tensor, noise: dict[Site, Tensor] | None = None) -> Tensor:
        r"""What the decision loses at each position at one level of noise.

        .. math:: -\frac{\partial}{\partial \alpha_j} \log p(c \mid x'_\alpha)
                  \quad \text{where all } \alpha_j \text{ are the level.}

        Its mean over levels and noise adds up, over the positions, to what the decision loses
        from no noise to noise alone: integrated gradients (Sundararajan et al., 2017,
        https://arxiv.org/abs/1703.01365) through the bottleneck.

        Args:
            level: alpha everywhere, ``(N, 1)``, in [0, 1].
            noise: the draw for each site; ``None`` draws afresh.

        Returns:
            ``(N, 1, *positions)`` on the finest grid, in nats.
        """
        networks, z = self.networks, self.z
        positions = networks.positions(z)
        level = level.clamp(_EDGE, 1 - _EDGE).view(-1, 1, *[1] * len(positions))
        level = level.to(next(iter(z.values())).dtype)
        with torch.enable_grad():
            alpha = level.expand(-1, 1, *positions).clone().requires_grad_()
            noised = networks.injections(networks.spread(torch.logit(alpha), z), noise)
            second = self.passes.second(self.inputs, self.args, noised, self.before)
            total = self.classes.log_probability(second.prediction, self.index).sum()
        if not total.requires_grad:  # it does not depend on these layers, for all one can tell
            return torch.zeros_like(alpha)
        return -torch.autograd.grad(total, alpha, materialize_grads=True)[0]
