"""Shapes and names found in the user's model, which are saved with a fit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from captum_mi.grid import Lattice, Place
from captum_mi.model.hooks import OnRepeat
from captum_mi.model.inputs import Signature
from captum_mi.model.passes import Passes
from captum_mi.model.sites import Site, layers_of
from captum_mi.outputs import OutputKind
from captum_mi.probing.map_input import MapInput

__all__ = ["Structure"]


@dataclass(frozen=True)
class Structure:
    """Shapes and names found in the user's model.

    Attributes:
        sites: where noise is injected and information is read.
        head_sites: where information is read, but no noise injected.
        context: what the inference network reads.
        tokens: where noise is injected that belongs to no position, such as a class token.
        global_layer: name of the layer that returns y, ``None`` for the model's output.
        output: what y is.
        y_shape: shape of one example's y.
        output_shape: shape of one example's output of the model.
        n_classes: classes of the downstream function, 0 without one.
        signature: what inputs look like.
        mapped: the input that maps belong to; ``None`` if no single one has the sites' axes.
        replays: whether a pass may skip what runs before the first site or after the last one.
        resumes: whether what the layer returned where recording ended is all that a second pass
            needs of what runs before.
        lattices: where the positions of the sites, and then of the head sites, lie along each axis
            of that input (:mod:`captum_mi.probing.placing`); none: in the middles of cells.
    """

    sites: tuple[Site, ...]
    head_sites: tuple[Site, ...]
    context: tuple[Site, ...]
    tokens: tuple[Site, ...]
    global_layer: str | None
    output: OutputKind
    y_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    n_classes: int
    signature: Signature
    mapped: MapInput | None
    replays: bool
    resumes: bool
    lattices: tuple[tuple[Lattice, ...], ...] = ()

    @property
    def layers(self) -> list[str]:
        """Names of all layers that a pass captures."""
        return layers_of(self.sites + self.head_sites + self.context)

    @property
    def position_axes(self) -> int:
        """Number of axes of the grid that alpha lives on."""
        return max(site.position_axes for site in self.sites)

    @property
    def has_shares(self) -> bool:
        """Whether positions can have a share in a decision: there are positions and classes."""
        return self.position_axes > 0 and (self.output != "gaussian" or self.n_classes > 0)

    @property
    def target_shape(self) -> tuple[int, ...]:
        """Shape that targets index: the downstream's classes, y, or (y continuous) the output."""
        if self.n_classes:
            return (self.n_classes,)
        return self.output_shape if self.output == "gaussian" else self.y_shape

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Structure:
        sites = {
            name: tuple(Site.from_dict(site) for site in values[name])
            for name in ("sites", "head_sites", "context", "tokens")
        }
        tuples = {name: tuple(values[name]) for name in ("y_shape", "output_shape")}
        tuples["lattices"] = tuple(
            tuple(Lattice(Place(*place), length, size) for place, length, size in axes)
            for axes in values["lattices"])
        signature = Signature(**{k: tuple(v) for k, v in values["signature"].items()})
        mapped = None if values["mapped"] is None else MapInput(**values["mapped"])
        return cls(**{**values, **sites, **tuples, "signature": signature, "mapped": mapped})

    def passes(
        self, model: nn.Module, on_repeat: OnRepeat,
        downstream: Callable[..., Tensor] | None, amp: torch.dtype | None,
    ) -> Passes:
        """Passes of a model that has this structure, in the precision that ``amp`` says."""
        return Passes(
            model, self.layers, self.global_layer, on_repeat, downstream, amp, self.replays)
