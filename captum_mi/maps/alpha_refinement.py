"""Per-sample refinement: a few steps on the alpha that was inferred for given examples."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from captum_mi.bottleneck import inject_noise
from captum_mi.model.gradients import gradients_of
from captum_mi.model.passes import Pass, Passes
from captum_mi.model.sites import Site
from captum_mi.networks import Networks
from captum_mi.outputs import Output, make_prediction

__all__ = ["refine_alpha"]

_LR = 0.2
_EPS = 1e-6  # in nats: Adam would blow up the rounding of smaller gradients


def refine_alpha(
    passes: Passes,
    networks: Networks,
    inputs: tuple[Tensor, ...],
    args: tuple[Any, ...],
    first: Pass,
    z: dict[Site, Tensor],
    beta2: float,
    steps: int,
) -> Tensor:
    """Adam steps on each example's own objective, all examples at once.

    The objective is that of the fit, with the fit's last beta2: distortion of the second pass
    plus information in x'. One draw of noise serves all examples and steps, so that an example's
    result depends neither on its batch nor on the call.

    Returns:
        Refined map of logits on the finest grid, ``(N, 1, *positions)``.
    """
    noise = networks.shared_noise(z)
    task_output = _task_output(networks, first)
    with torch.enable_grad():
        alpha_map = networks.alpha_map(z).detach().clone().requires_grad_()
        optimizer = torch.optim.Adam([alpha_map], lr=_LR, eps=_EPS)
        for _ in range(steps):
            logits = networks.spread(alpha_map, z)
            noised = networks.injections(logits, noise)
            second = passes.second(inputs, args, noised, first.before)
            task = task_output.distortion(first.prediction, second.prediction)
            loss = task + beta2 * _information(networks, z, logits, noise)
            (alpha_map.grad,) = gradients_of(loss.sum() / (1 + beta2), [alpha_map])
            optimizer.step()
    return alpha_map.detach()


def _task_output(networks: Networks, first: Pass) -> Output:
    if first.prediction is first.y:
        return networks.output
    output = make_prediction(networks.design.prediction, first.prediction.shape[1:])
    return output.to(first.prediction.device)


def _information(
    networks: Networks,
    z: dict[Site, Tensor],
    logits: dict[Site, Tensor],
    noise: dict[Site, Tensor],
) -> Tensor:
    """Variational term plus capacity of each example ``(N,)``, as in the fit's objective."""
    terms = []
    sizes = networks.capacity(z, logits)
    for site in networks.sites:
        noised = inject_noise(z[site], logits[site], noise[site])
        parameters = networks.noised_head(site, noised, logits[site].detach())
        bound = networks.output.kl(parameters).mean(1)
        terms.append(bound + sizes[site].flatten(1).mean(1))
    return torch.stack(terms).mean(0)
