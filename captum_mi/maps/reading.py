"""Read one batch: run what passes it takes, and make maps of what they give."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor

from captum_mi.fitting.fit import Fit
from captum_mi.grid import Place, n_positions
from captum_mi.inference import FixedAlpha
from captum_mi.maps.alpha_refinement import refine_alpha
from captum_mi.maps.evidence import Evidence, Logits
from captum_mi.maps.measuring import measure
from captum_mi.maps.question import Question
from captum_mi.maps.readout import Readout
from captum_mi.maps.shares import Decision
from captum_mi.maps.weighting import Measured
from captum_mi.model.hooks import LayerOutput
from captum_mi.model.inputs import all_finite, check_finite
from captum_mi.model.later import Later
from captum_mi.model.modules import dtype_of
from captum_mi.model.passes import Pass, Passes
from captum_mi.model.sites import Site
from captum_mi.networks import Locals

__all__ = ["Reader"]

_CACHED_POSITIONS = 4096  # whose 256 hidden units are 4 MB


class Reader:
    """One batch's first pass, and what is asked of it.

    Args:
        passes: passes of the model.
        fit: the fit.
        question: what is asked.
        inputs: one batch.
        args: additional forward arguments of the batch.
        index: classes ``(N, S)`` whose evidence is read, ``None`` for the expectation.
        baselines: what takes the place of a block, for each input, with ``refine_steps``.
    """

    def __init__(
        self,
        passes: Passes,
        fit: Fit,
        question: Question,
        inputs: tuple[Tensor, ...],
        args: tuple[Any, ...],
        index: Tensor | None,
        baselines: tuple[Tensor, ...] = (),
    ) -> None:
        self.passes, self.fit, self.question = passes, fit, question
        self.inputs, self.args, self.index, self.baselines = inputs, args, index, baselines
        self.networks = fit.networks
        self.readout = Readout.of(fit.networks, passes.downstream, dtype_of(passes.model))
        self.layers = self._captured()
        for site in self.networks.all_sites:
            site.check_rows(self.layers, len(inputs[0]))
        self._sums = self._ask()

    def _captured(self) -> dict[str, LayerOutput]:
        """Layers of the first pass, which runs to its end only if its output is read."""
        if self.question.estimator == "infomax" or self._continues:
            return self.first.layers
        return self.passes.features(self.inputs, self.args)

    @property
    def _continues(self) -> bool:
        """Whether further passes start where the first one met the noised layers."""
        return bool(self.question.refine_steps or self.question.alpha_steps)

    @cached_property
    def first(self) -> Pass:
        """The first pass with its output."""
        continued = self.networks.noised_sites if self._continues else ()
        return self.passes.first(self.inputs, self.args, continued)

    @cached_property
    def evidence(self) -> Evidence:
        """What its layers tell."""
        y = self.first.y if self.question.estimator == "infomax" else None
        return self._evidence_of(self.layers, self.index, y)

    def _evidence_of(
        self, layers: dict[str, LayerOutput], index: Tensor | None, y: Tensor | None
    ) -> Evidence:
        infer = self._refined if self.question.alpha_steps else self.networks.alpha_logits
        return Evidence(self.networks, self.readout, self.question, layers, self.args, index,
                        self._places, infer, y)

    @cached_property
    def _places(self) -> dict[Site, tuple[Place, ...]]:
        """Where positions lie along each axis of this batch's input."""
        mapped = self.fit.structure.mapped
        if mapped is None:
            return {}
        sizes = mapped.of(self.inputs).shape[mapped.first_axis :]
        grids = {site: site.of(self.layers).shape[2:] for site in self.networks.lattices}
        return {
            site: tuple(one.at(n, size) for one, n, size in zip(lattices, grids[site], sizes))
            for site, lattices in self.networks.lattices.items()
        }

    def _refined(self, z: dict[Site, Tensor]) -> Logits:
        """Logit of alpha for each site, refined."""
        if isinstance(self.networks.inference, FixedAlpha):
            raise ValueError("alpha_steps refines an alpha that was inferred; this one was set by "
                             "hand, with alpha=")
        self.check()
        refined = refine_alpha(
            self.passes, self.networks, self.inputs, self.args, self.first, z, self.fit.beta2,
            self.question.alpha_steps,
        )
        return self.networks.spread(refined, z)

    def read(self, kind: Locals, scale: float) -> list[Tensor]:
        """Maps ``(N, M, *positions)`` of each site, or of the layers joined.

        Args:
            kind: whose features: clean or noised.
            scale: from nats to another unit.
        """
        # Copies, by the scale: what was recorded is written over by the next call.
        return [one * scale for one in self._maps(kind)]

    def _maps(self, kind: Locals) -> list[Tensor]:
        """Maps; what our own networks make of the layers is recorded, if nothing else is asked."""
        layers = [x for x in self.layers.values() if isinstance(x, Tensor)]
        alone = self.question.estimator == "variational" and self.readout.downstream is None
        if not alone or self._continues or len(layers) < len(self.layers):
            measured = self._measured if self.question.refine_steps else None
            return self.evidence.maps(kind, measured)

        def work(*tensors: Tensor) -> tuple[Tensor | None, ...]:
            layers, index = tensors[: len(self.layers)], tensors[len(self.layers) :]
            named: dict[str, LayerOutput] = dict(zip(self.layers, layers))
            return tuple(self._evidence_of(
                named, index[0] if index else None, None).maps(kind))

        given = layers if self.index is None else [*layers, self.index]
        sizes = tuple(x.shape for x in self.inputs)  # which say where positions lie
        name = (self.question, kind, sizes, *self.layers)
        parts = [
            self.fit.recorder(name, self.networks, work, *part)
            for part in zip(*(one.split(self._at_once()) for one in given))
        ]
        return [torch.cat(cast(list[Tensor], one)) for one in zip(*parts)]

    def _at_once(self) -> int:
        """Examples that our networks read at once: on a CPU, what its cache holds."""
        examples = len(self.inputs[0])
        if self.inputs[0].device.type != "cpu":
            return examples
        sites = self.networks.sites
        positions = max(n_positions(site.of(self.layers).shape[2:]) for site in sites)
        return min(examples, max(1, _CACHED_POSITIONS // positions))

    @cached_property
    def _measured(self) -> Measured:
        """What the decision loses at positions, with blocks and with halves."""
        mapped = self.fit.structure.mapped
        assert mapped is not None
        assert self.index is not None
        self.check()
        decision = Decision(
            self.passes, self.readout, self.inputs, self.args, self.index, self.first.before)
        finest = self.evidence.finest
        return measure(
            decision, self.first, finest, mapped, self.baselines, self.question.refine_steps,
            self._places.get(finest, ()),
        )

    def _ask(self) -> Later:
        """Sums of inputs and features: finite if these are."""
        read = [x for x in self.inputs if x.is_floating_point()]
        read += [site.of(self.layers) for site in self.networks.all_sites]
        dtype = self.networks.global_moments.mean.dtype
        return Later(torch.stack([x.sum(dtype=dtype) for x in read]))

    def check(self) -> None:
        """Whether inputs and features were finite: asked last, as it waits for a CUDA device.

        Raises:
            ValueError: for NaN or Inf, naming the input or the layer.
        """
        if math.isfinite(sum(self._sums.tolist())):
            return
        check_finite(self.inputs)
        for site in self.networks.all_sites:
            if not all_finite(site.of(self.layers)):
                raise ValueError(f"layer {site.name!r} returned NaN or Inf for these inputs")
