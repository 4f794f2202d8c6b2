"""Read information per position off one batch: general or sufficient."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor

from captum_mi.grid import Place, on_grid, resize, without_offsets
from captum_mi.maps.alpha_refinement import refine_alpha
from captum_mi.maps.heatmap import joined
from captum_mi.maps.measuring import measure
from captum_mi.maps.posterior import capacity_prior, position_posterior
from captum_mi.maps.question import Question, Read
from captum_mi.maps.readout import Readout
from captum_mi.maps.shares import Decision
from captum_mi.maps.weighting import Measured, weighted
from captum_mi.model.graphs import Recorder
from captum_mi.model.hooks import LayerOutput
from captum_mi.model.inputs import all_finite, check_finite
from captum_mi.model.later import Later
from captum_mi.model.passes import Pass, Passes
from captum_mi.networks import Locals, Networks
from captum_mi.probing.sites import Site

__all__ = ["Reader"]


class Reader:
    """Everything that one batch's first pass tells.

    Args:
        passes: passes of the model.
        networks: the fit.
        readout: from heads to evidence.
        question: what is asked.
        inputs: one batch.
        args: additional forward arguments of the batch.
        index: classes ``(N, S)`` whose evidence is read, ``None`` for the expectation.
        beta2: multiplier for refinement of alpha.
        baselines: what takes the place of a block, for each input, where shares are asked for.
        layers: captured layers of the first pass; ``None`` to run it.
    """

    def __init__(
        self,
        passes: Passes,
        networks: Networks,
        readout: Readout,
        question: Question,
        inputs: tuple[Tensor, ...],
        args: tuple[Any, ...],
        index: Tensor | None,
        beta2: float,
        baselines: tuple[Tensor, ...] = (),
        layers: dict[str, LayerOutput] | None = None,
    ) -> None:
        self.passes, self.networks, self.readout = passes, networks, readout
        self.question, self.inputs, self.args, self.index = question, inputs, args, index
        self.beta2, self.baselines = beta2, baselines
        self._parameters: dict[tuple[Site, bool], Tensor] = {}
        self.layers = self._captured() if layers is None else layers
        self._sums = self._ask() if layers is None else None

    def _captured(self) -> dict[str, LayerOutput]:
        """Layers of the first pass, which runs to its end only if its output is read."""
        if self.question.estimator == "infomax" or self.question.refine_steps:
            return self.first.layers
        return self.passes.features(self.inputs, self.args)

    @cached_property
    def first(self) -> Pass:
        """The first pass with its output."""
        continued = self.networks.noised_sites if self.question.refine_steps else ()
        return self.passes.first(self.inputs, self.args, continued)

    @cached_property
    def z(self) -> dict[Site, Tensor]:
        """Standardised features of every site."""
        return self.networks.standardise(self.layers)

    @cached_property
    def logits(self) -> dict[Site, Tensor]:
        """Logit of alpha for each site, inferred and possibly refined."""
        if not self.question.refines_alpha:
            return self.networks.alpha_logits(self.z)
        self.check()
        refined = refine_alpha(
            self.passes, self.networks, self.inputs, self.args, self.first, self.z,
            self.beta2, self.question.refine_steps,
        )
        return self.networks.spread(refined, self.z)

    def read(self, information: Read, scale: float, recorder: Recorder) -> list[Tensor]:
        """Maps ``(N, M, *positions)`` of each site, or of the layers joined.

        Args:
            information: which of the two.
            scale: from nats to another unit.
            recorder: records what our own networks make of the layers, if nothing else is asked.
        """
        # Copies, by the scale: what was recorded is written over by the next call.
        return [one * scale for one in self._recorded(information, recorder)]

    def _recorded(self, information: Read, recorder: Recorder) -> list[Tensor]:
        layers = [x for x in self.layers.values() if isinstance(x, Tensor)]
        alone = self.question.estimator == "variational" and self.readout.downstream is None
        if not alone or self.question.refine_steps or len(layers) < len(self.layers):
            return self._maps(information)

        def work(*tensors: Tensor) -> tuple[Tensor | None, ...]:
            layers, index = tensors[: len(self.layers)], tensors[len(self.layers) :]
            again = Reader(
                self.passes, self.networks, self.readout, self.question, self.inputs, self.args,
                index[0] if index else None, self.beta2, layers=dict(zip(self.layers, layers)),
            )
            return tuple(again._maps(information))

        given = layers if self.index is None else [*layers, self.index]
        sizes = tuple(x.shape for x in self.inputs)  # which say where positions lie
        name = (self.question, information, sizes, *self.layers)
        maps = recorder(name, self.networks, work, *given)
        return cast(list[Tensor], list(maps))

    def _maps(self, information: Read) -> list[Tensor]:
        """Maps of each site; for a class, weighted as the question asks."""
        maps = [self._values_on_grid(site, information) for site in self.networks.sites]
        if self.index is None or self.question.weighting == "none":
            return maps
        witnesses = [*self._log_odds(information, self.index), *self._head_evidence()]
        posterior = position_posterior(witnesses, self._prior(information))
        if self.question.joined:
            maps = [joined(maps, [self._places_of(site) for site in self.networks.sites])]
        measured = self._measured if self.question.weighting == "shares" else None
        return [weighted(one, posterior, measured, places)
                for one, places in zip(maps, self.places)]

    @property
    def places(self) -> list[tuple[Place, ...]]:
        """Where the positions of each map lie in the input."""
        sites = (self._finest,) if self.question.joined else self.networks.sites
        return [self._places_of(site) for site in sites]

    def _places_of(self, site: Site) -> tuple[Place, ...]:
        """Where positions lie along each axis of this batch's input; none known: in cells."""
        lattices, mapped = self.networks.lattices.get(site, ()), self.networks.mapped
        if mapped is None or not lattices:
            return ()
        grid = site.of(self.layers).shape[2:]
        sizes = mapped.of(self.inputs).shape[mapped.first_axis :]
        return tuple(one.at(n, size) for one, n, size in zip(lattices, grid, sizes))

    @cached_property
    def _finest(self) -> Site:
        return self.networks.finest_site({
            site: site.of(self.layers) for site in self.networks.sites})

    def _aligned(self, site: Site, one: Tensor) -> Tensor:
        """A site's map as it is, or on the finest grid if its positions lie further apart, in
        cells, or closer together: as of convolutions that leave out the edges."""
        apart, wanted = (
            without_offsets(self._places_of(of)) for of in (site, self._finest))
        if not apart or apart == wanted:
            return one
        return resize(one, self.z[self._finest].shape[2:], apart, wanted)

    def _log_odds(self, information: Read, index: Tensor) -> list[Tensor]:
        """Log odds ratios of a class at the noised sites, whose evidence levels at certainty.

        They see the same pixels, so they are one witness, and each has its share in it.
        """
        noised, found = information == "sufficient", []
        for site in self.networks.sites:
            parameters = self._head(site, noised)
            ratio = self.readout.log_odds_ratio(parameters, index, self.args)[..., None]
            ratio = self._silenced(site, ratio) if noised else ratio
            ratio = on_grid(ratio, self.z[site].shape[2:]) / len(self.networks.sites)
            found.append(self._aligned(site, ratio))
        return found

    def _head_evidence(self) -> list[Tensor]:
        """Evidence for a class at the sites that have a head alone."""
        return [self._aligned(site, self._values_on_grid(site, "general"))
                for site in self.networks.head_sites]

    def _prior(self, information: Read) -> Tensor:
        """What the bottleneck lets pass at each position of the finest grid; all, if general."""
        site = self._finest
        if information == "general":  # alpha need not be inferred
            return torch.ones_like(self.z[site][:, :1])
        return capacity_prior(self.logits[site])

    @cached_property
    def _measured(self) -> Measured:
        """What the decision loses at positions, with blocks and with halves."""
        mapped = self.networks.mapped
        assert mapped is not None
        assert self.index is not None
        self.check()
        decision = Decision(
            self.passes, self.readout, self.inputs, self.args, self.index, self.first.before)
        finest = self._finest
        return measure(
            decision, self.first, finest, mapped, self.baselines, self.question.refine_steps,
            self._places_of(finest),
        )

    def _values_on_grid(self, site: Site, information: Read) -> Tensor:
        """``(N, M, *positions)``: the estimator's value at every position of a site."""
        noised = information == "sufficient"
        values = self._estimated(site, noised)
        values = self._silenced(site, values) if noised else values
        return on_grid(values, self.z[site].shape[2:])

    def _silenced(self, site: Site, values: Tensor) -> Tensor:
        """Values ``(N, P, M)`` of x': pure noise says nothing, whatever is made of its mean."""
        return values.masked_fill_(self.silent(site), 0.0)

    def silent(self, site: Site) -> Tensor:
        """Where alpha is 1, ``(N, P, 1)``."""
        return (torch.sigmoid(self.logits[site]) == 1).flatten(1)[..., None]

    def _features(self, site: Site, noised: bool) -> Tensor:
        """Clean features of a site, or x' at its mean."""
        z = self.z[site]
        return self.networks.mean_signal(z, self.logits[site]) if noised else z

    def _head(self, site: Site, noised: bool) -> Tensor:
        """Parameters of q at every position, computed once."""
        if (site, noised) not in self._parameters:
            features = self._features(site, noised)
            self._parameters[site, noised] = self.networks.head(
                site, features, "mean" if noised else "clean")
        return self._parameters[site, noised]

    def _estimated(self, site: Site, noised: bool) -> Tensor:
        if self.question.estimator == "infomax":
            kind: Locals = "mean" if noised else "clean"
            return self._pointwise(site, self._features(site, noised), kind)[..., None]
        parameters = self._head(site, noised)
        if self.question.classes:
            return self.readout.evidence(parameters, self.args)
        if self.index is None:
            return self.readout.kl(parameters)[..., None]
        return self.readout.evidence_for(parameters, self.index, self.args)[..., None]

    def _pointwise(self, site: Site, features: Tensor, kind: Locals) -> Tensor:
        """``(N, P)``: the critic's pointwise mutual information of features and y."""
        return self.networks.pointwise_information(site, features, self.first.y, kind)

    def expected(self, site: Site, features: Tensor, kind: Locals) -> Tensor:
        """``(N, P)``: the estimator's value of features, in expectation over classes."""
        if self.question.estimator == "infomax":
            return self._pointwise(site, features, kind)
        return self.readout.kl(self.networks.head(site, features, kind))

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
        assert self._sums is not None
        if math.isfinite(sum(self._sums.tolist())):
            return
        check_finite(self.inputs)
        for site in self.networks.all_sites:
            if not all_finite(site.of(self.layers)):
                raise ValueError(f"layer {site.name!r} returned NaN or Inf for these inputs")
