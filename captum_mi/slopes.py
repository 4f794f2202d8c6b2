r"""How fast a decision loses information as noise grows, position by position.

Both are derivatives by alpha, from a backward pass through what lies above the bottleneck. The
slope at no noise comes with the first pass; the slope at a level of noise needs a second one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from captum_mi.networks import Networks
from captum_mi.outputs import Output
from captum_mi.passes import Passes
from captum_mi.sites import Site

__all__ = ["Dials", "slope_at"]

_EDGE = 1e-3  # levels of noise keep away from 0 and 1


class Dials:
    """Alphas of a first pass, all zero, that its prediction can be differentiated by.

    Each position of the layers from the deepest bottleneck on has one. They leave the features
    as they are: what lies below is not differentiated.

    Args:
        networks: moments of the features, and which layers.
    """

    def __init__(self, networks: Networks) -> None:
        self.networks = networks
        self._alphas: dict[Site, Tensor] = {}

    def functions(self) -> dict[Site, Callable[[Tensor], Tensor]]:
        """What the features of each site pass through, for :meth:`Passes.first`."""
        return {site: partial(self._turn, site) for site in self.networks.sloped}

    def _turn(self, site: Site, features: Tensor) -> Tensor:
        alpha = torch.zeros_like(features[:, :1]).requires_grad_()
        self._alphas[site] = alpha
        signal = self.networks.moments_of(site).centre(features.detach())
        return features - alpha * signal.to(features.dtype)

    def slopes(
        self, classes: Output, prediction: Tensor, index: Tensor, keep_graph: bool = False
    ) -> list[Tensor]:
        """What ``log p(index) / r(index)`` loses by each alpha.

        The logarithm is followed by its mean gradient from the marginal to the prediction: its
        gradient at a confident prediction is next to nothing.

        Args:
            classes: what predictions are.
            prediction: of the first pass.
            index: classes ``(N, S)``.
            keep_graph: leave the pass's graph for another backward pass.

        Returns:
            ``(N, 1, *positions)`` of each site, in nats.
        """
        with torch.enable_grad():
            coordinates = classes.coordinates(prediction)
            gradient = classes.mean_gradient(coordinates.detach(), index)
            total = (coordinates * gradient).sum()
        alphas = [self._alphas[site] for site in self.networks.sloped]
        return [-slope for slope in _gradients(total, alphas, keep_graph)]


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
    return -_gradients(total, [alpha])[0]


def _gradients(total: Tensor, by: list[Tensor], keep_graph: bool = False) -> list[Tensor]:
    """Gradients of a sum; zero by what it does not depend on, for all that can be told."""
    if not total.requires_grad:
        return [torch.zeros_like(one) for one in by]
    return list(
        torch.autograd.grad(total, by, retain_graph=keep_graph, materialize_grads=True))
