"""Figures of merit of attribution maps. They take maps and a callable, never a method."""

from captum_mi.metrics.leak import Leak, mask_leak
from captum_mi.metrics.localization import (
    effective_heat_ratio,
    grid_pointing,
    inside_box,
    pointing,
)
from captum_mi.metrics.perturbation import Curves, degradation, deletion, insertion
from captum_mi.metrics.sanity import Cascade, cascading_randomization, structural_similarity
from captum_mi.metrics.sensitivity import sensitivity_n

__all__ = [
    "Cascade",
    "Curves",
    "Leak",
    "cascading_randomization",
    "degradation",
    "deletion",
    "effective_heat_ratio",
    "grid_pointing",
    "insertion",
    "inside_box",
    "mask_leak",
    "pointing",
    "sensitivity_n",
    "structural_similarity",
]
