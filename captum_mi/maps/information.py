"""Figures of a dataset: means of what positions tell, with their standard errors."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from captum_mi.bottleneck import inject_noise
from captum_mi.maps.evidence import Evidence

__all__ = ["Estimate", "dataset_rows", "estimates"]

_FIGURES = ("general", "sufficient", "redundant", "capacity")


class Estimate(NamedTuple):
    """A mean over a dataset and its standard error."""

    mean: float
    standard_error: float

    def __repr__(self) -> str:
        return f"{self.mean:.4g} ± {self.standard_error:.2g}"


def dataset_rows(evidence: Evidence) -> Tensor:
    """``(N, sites, 4)``: general, sufficient, redundant, capacity per position, in nats.

    Sufficient information is read off noised features, with noise of the global generator.
    """
    networks = evidence.networks
    capacities = networks.capacity(evidence.z, evidence.logits)
    rows = []
    for site in networks.sites:
        z = evidence.z[site]
        noised = inject_noise(z, evidence.logits[site], torch.randn_like(z))
        general = evidence.expected(site, z, "clean")
        silent = evidence.silent(site)[..., 0]
        sufficient = evidence.expected(site, noised, "noised").masked_fill(silent, 0.0)
        capacity = capacities[site].sum(1, keepdim=True).flatten(1)
        values = (general, sufficient, general - sufficient, capacity)
        rows.append(torch.stack([value.mean(1) for value in values], 1))
    return torch.stack(rows, 1)


def estimates(names: list[str], rows: Tensor) -> dict[str, dict[str, Estimate]]:
    """Means and standard errors over examples, from rows ``(n, layers, 4)``."""
    n = len(rows)
    mean = rows.double().mean(0)
    error = rows.double().std(0) / n**0.5 if n > 1 else torch.full_like(mean, float("nan"))
    return {
        name: {
            figure: Estimate(float(mean[i, j]), float(error[i, j]))
            for j, figure in enumerate(_FIGURES)
        }
        for i, name in enumerate(names)
    }
