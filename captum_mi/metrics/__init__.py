"""Figures of merit of attribution maps. They take maps and a callable, never a method."""

from captum_mi.metrics.localization import (
    effective_heat_ratio,
    grid_pointing,
    inside_box,
    pointing,
)
from captum_mi.metrics.perturbation import Curves, degradation

__all__ = [
    "Curves",
    "degradation",
    "effective_heat_ratio",
    "grid_pointing",
    "inside_box",
    "pointing",
]
