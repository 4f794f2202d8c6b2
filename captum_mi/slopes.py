"""How fast a decision loses information as noise grows, position by position."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from captum_mi.networks import Networks
from captum_mi.outputs import Output
from captum_mi.passes import Passes
from captum_mi.sites import Site

__all__ = ["slope_at"]

_EDGE = 1e-3  # levels of noise keep away from 0 and 1


def slope_at(
    passes: Passes,
    networks: Networks,
    classes: Output,
    inputs: tuple[Tensor, ...],
    args: tuple[Any, ...],
    z: dict[Site, Tensor],
    index: Tensor,
    level: Tensor,
    noise: dict[Site, Tensor] | None = None,
) -> Tensor:
    r"""What the decision for a class loses at each position at one level of noise.

    .. math:: -\frac{\partial}{\partial \alpha_j} \log p(c \mid x'_\alpha)
              \quad \text{where all } \alpha_j \text{ are the level.}

    Its mean over levels and noise adds up, over the positions, to what the decision loses from no
    noise to noise alone: integrated gradients (Sundararajan et al., 2017,
    https://arxiv.org/abs/1703.01365) through the bottleneck.

    Args:
        passes: passes of the model.
        networks: the fit.
        classes: what predictions are.
        inputs: one batch.
        args: additional forward arguments of the batch.
        z: standardised features of the first pass.
        index: classes ``(N, S)``.
        level: alpha everywhere, ``(N, 1)``, in [0, 1].
        noise: the draw for each site; ``None`` draws afresh.

    Returns:
        ``(N, 1, *positions)`` on the finest grid, in nats.
    """
    positions = networks.positions(z)
    level = level.clamp(_EDGE, 1 - _EDGE).view(-1, 1, *[1] * len(positions))
    level = level.to(next(iter(z.values())).dtype)
    with torch.enable_grad():
        alpha = level.expand(-1, 1, *positions).clone().requires_grad_()
        noised = networks.injections(networks.spread(torch.logit(alpha), z), noise)
        prediction = passes.second(inputs, args, noised).prediction
        total = classes.log_probability(prediction, index).sum()
    if not total.requires_grad:  # it does not depend on these layers, for all that can be told
        return torch.zeros_like(alpha)
    return -torch.autograd.grad(total, alpha, materialize_grads=True)[0]
