"""The last walk over the fitting data: the banks of locals that critics score against."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from captum_mi import ranks
from captum_mi.bottleneck import inject_noise
from captum_mi.fitting.first_passes import FirstPasses
from captum_mi.fitting.settings import Settings
from captum_mi.fitting.survey import Survey, Walk
from captum_mi.grid import locals_of
from captum_mi.model.sites import Site
from captum_mi.networks import LOCALS, Locals, Networks
from captum_mi.progress import bar

__all__ = ["even_rows", "fill_bank"]


@torch.no_grad()
def fill_bank(
    firsts: FirstPasses, networks: Networks, walk: Walk, surveyed: Survey, settings: Settings
) -> None:
    """Last walk: fill the reference banks with locals drawn evenly over the examples."""
    sites = networks.sites if networks.has_critics else ()
    if not sites:
        return
    kept: dict[Site, dict[Locals, list[Tensor]]] = {
        site: {kind: [] for kind in LOCALS} for site in sites}
    seen = surveyed.first
    shown = bar(walk(), "fit 3/3: bank", "batch", settings.progress, firsts.batches, stays=False)
    for batch in shown:
        z = networks.standardise(firsts.layers(batch))
        logits = networks.alpha_logits(z)
        n = len(batch.inputs[0])
        for site in sites:
            rows = even_rows(z[site], seen, surveyed.examples, len(networks.bank(site)))
            features: dict[Locals, Tensor] = {
                "clean": z[site],
                "noised": inject_noise(z[site], logits[site], torch.randn_like(z[site])),
            }
            for kind, one in features.items():
                local = networks.critic(site, kind).embed_local(locals_of(one)[rows])
                kept[site][kind].append(local)
        seen += n
    for site in sites:
        bank = networks.bank(site)
        size = len(bank)
        for kind, rows_of in kept[site].items():
            setattr(bank, kind, ranks.gather_rows(torch.cat(rows_of))[:size])


def even_rows(z: Tensor, seen: int, examples: int, size: int) -> tuple[Tensor, Tensor]:
    """Which (example, position) pairs of a batch go to a bank of ``size`` locals."""
    n = len(z)
    order = torch.rand(n, math.prod(z.shape[2:]), device=z.device).argsort(1)
    index = torch.arange(seen, seen + n + 1, device=z.device)
    quota = (index * size // max(examples, 1)).diff()
    taken = torch.arange(order.shape[1], device=z.device) < quota[:, None]
    return taken.nonzero()[:, 0], order[taken]
