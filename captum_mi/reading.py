"""Read information per position off one batch: general or sufficient."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor

from captum_mi.ablation import MOST_BLOCKS, block_losses
from captum_mi.batches import all_finite, check_finite
from captum_mi.bottleneck import inject_noise
from captum_mi.graphs import Recorder
from captum_mi.grid import on_grid
from captum_mi.halves import half_contrasts
from captum_mi.heatmap import combine, find_map_input, first_spatial_axis
from captum_mi.hooks import LayerOutput
from captum_mi.later import Later
from captum_mi.networks import Locals, Networks
from captum_mi.passes import Pass, Passes
from captum_mi.posterior import capacity_prior, position_posterior, spread
from captum_mi.readout import Readout
from captum_mi.refinement import refine_alpha
from captum_mi.shares import Decision
from captum_mi.sites import Site

__all__ = [
    "Estimate", "Estimator", "Information", "Kind", "Read", "Reader", "Weighting", "estimates",
]

Information = Literal["sufficient", "general", "redundant"]
Read = Literal["sufficient", "general"]
Estimator = Literal["variational", "infomax"]

Weighting = Literal["shares", "posterior", "none"]

_FIGURES = ("general", "sufficient", "redundant", "capacity")


class Estimate(NamedTuple):
    """A mean over a dataset and its standard error."""

    mean: float
    standard_error: float


class Kind(NamedTuple):
    """Which maps are read.

    Attributes:
        information: which of the two.
        classes: whether evidence for all classes is read.
        weighting: what evidence for a class is weighted with.
        joined: whether the layers are combined before.
    """

    information: Read
    classes: bool
    weighting: Weighting
    joined: bool


class Reader:
    """Everything that one batch's first pass tells.

    Args:
        passes: passes of the model.
        networks: the fit.
        readout: from heads to evidence.
        inputs: one batch.
        args: additional forward arguments of the batch.
        estimator: heads or critics.
        beta2: multiplier for refinement.
        refine_steps: steps of per-sample refinement of alpha, or blocks and halves to remove.
        baselines: what is put in place of a block, for each input; ``None`` to refine alpha.
        layers: captured layers of the first pass; ``None`` to run it.
    """

    def __init__(
        self,
        passes: Passes,
        networks: Networks,
        readout: Readout,
        inputs: tuple[Tensor, ...],
        args: tuple[Any, ...],
        estimator: Estimator,
        beta2: float,
        refine_steps: int = 0,
        baselines: tuple[Tensor, ...] | None = None,
        layers: dict[str, LayerOutput] | None = None,
    ) -> None:
        self.passes, self.networks, self.readout = passes, networks, readout
        self.inputs, self.args, self.estimator = inputs, args, estimator
        self.beta2, self.refine_steps = beta2, refine_steps
        self.baselines = baselines
        self._parameters: dict[tuple[int, bool], Tensor] = {}
        self._measured: tuple[Tensor, Tensor, Tensor] | None = None
        self.layers = self._captured() if layers is None else layers
        self._sums = self._ask() if layers is None else None

    def _captured(self) -> dict[str, LayerOutput]:
        """Layers of the first pass, which runs to its end only if its output is read."""
        if self.estimator == "infomax" or self.refine_steps:
            return self.first.layers
        return self.passes.features(self.inputs, self.args)

    @cached_property
    def z(self) -> dict[Site, Tensor]:
        """Standardised features of every site."""
        return self.networks.standardise(self.layers)

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

    @cached_property
    def first(self) -> Pass:
        """The first pass with its output."""
        continued = self.networks.noised_sites if self.refine_steps else ()
        return self.passes.first(self.inputs, self.args, continued)

    @cached_property
    def logits(self) -> dict[Site, Tensor]:
        """Logit of alpha for each site, inferred and possibly refined."""
        if not self.refine_steps or self.baselines is not None:
            return self.networks.alpha_logits(self.z)
        self.check()
        refined = refine_alpha(
            self.passes, self.networks, self.inputs, self.args, self.first, self.z,
            self.beta2, self.refine_steps,
        )
        return self.networks.spread(refined, self.z)

    def read(self, kind: Kind, index: Tensor | None, recorder: Recorder) -> list[Tensor]:
        """Maps ``(N, M, *positions)`` of each site, in nats; the next call may overwrite them.

        Args:
            kind: what of them.
            index: classes ``(N, S)`` whose evidence is read.
            recorder: records what our own networks make of the layers, if nothing else is asked.
        """
        layers = [x for x in self.layers.values() if isinstance(x, Tensor)]
        alone = self.estimator == "variational" and self.readout.downstream is None
        if not alone or self.refine_steps or len(layers) < len(self.layers):
            return self._maps_of(kind, index)

        def work(*tensors: Tensor) -> tuple[Tensor | None, ...]:
            layers, chosen = tensors[: len(self.layers)], tensors[len(self.layers) :]
            again = Reader(
                self.passes, self.networks, self.readout, self.inputs, self.args, self.estimator,
                self.beta2, layers=dict(zip(self.layers, layers)),
            )
            return tuple(again._maps_of(kind, chosen[0] if chosen else None))

        given = layers if index is None else [*layers, index]
        maps = recorder((kind, *self.layers), self.networks, work, *given)
        return cast(list[Tensor], list(maps))

    def _maps_of(self, kind: Kind, index: Tensor | None) -> list[Tensor]:
        if index is None or kind.weighting == "none":
            return self.maps(kind.information, index, kind.classes)
        return self.weighted(kind.information, index, kind.weighting, kind.joined)

    def maps(
        self, information: Read, index: Tensor | None, classes: bool
    ) -> list[Tensor]:
        """Maps ``(N, M, *positions)`` of each site, in nats.

        Args:
            information: which of the two.
            index: classes ``(N, S)`` whose evidence is read, ``None`` for the expectation.
            classes: read the evidence of all classes instead.
        """
        return [
            on_grid(self._read(i, site, information, index, classes), self.z[site].shape[2:])
            for i, site in enumerate(self.networks.sites)
        ]

    def weighted(
        self, information: Read, index: Tensor, weighting: Weighting, joined: bool
    ) -> list[Tensor]:
        """Maps of a class whose evidence has moved to where the class, or the decision, is.

        Args:
            information: which of the two.
            index: classes ``(N, S)``.
            weighting: ``"posterior"``, or ``"shares"`` times posterior and losses of blocks.
            joined: first combine the layers, into one map on the finest grid.
        """
        maps = self.maps(information, index, classes=False)
        witnesses = [*self._log_odds(information, index), *self._head_evidence(index)]
        posterior = position_posterior(witnesses, self._prior(information))
        if joined:
            maps = [combine(maps, posterior.shape[2:])]
        shares, losses, halves = (
            self._measure(index) if weighting == "shares" else (None, None, None))
        return [spread(one, posterior, shares, losses, halves, offset)
                for one, offset in zip(maps, self.offsets(joined))]

    def offsets(self, joined: bool) -> list[tuple[float, ...]]:
        """How far the positions of maps lie beyond the middles of their cells, for each map."""
        networks = self.networks
        finest = networks.finest_site(networks.features(self.layers))
        sites = (finest,) if joined else networks.sites
        return [networks.offsets.get(site, ()) for site in sites]

    def _log_odds(self, information: Read, index: Tensor) -> list[Tensor]:
        """Log odds ratios of a class at the noised sites, whose evidence levels at certainty.

        They see the same pixels, so they are one witness, and each has its share in it.
        """
        noised, found = information == "sufficient", []
        for i, site in enumerate(self.networks.sites):
            parameters = self._head(i, site, noised)
            ratio = self.readout.log_odds_ratio(parameters, index, self.args)[..., None]
            ratio = self._heard(site, ratio) if noised else ratio
            found.append(on_grid(ratio, self.z[site].shape[2:]) / len(self.networks.sites))
        return found

    def _head_evidence(self, index: Tensor) -> list[Tensor]:
        """Evidence for a class at the sites that have a head alone."""
        networks = self.networks
        return [
            on_grid(self._value(i, site, False, index, False), self.z[site].shape[2:])
            for i, site in enumerate(networks.head_sites, len(networks.sites))
        ]

    def _prior(self, information: Read) -> Tensor:
        """What the bottleneck lets pass at each position of the finest grid; all, if general."""
        site = self.networks.finest_site(self.z)
        if information == "general":  # alpha need not be inferred
            return torch.ones_like(self.z[site][:, :1])
        return capacity_prior(self.logits[site])

    def _measure(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What a decision loses at positions, with blocks and with halves; measured once."""
        if self._measured is None:
            self.check()
            self._measured = self._shares_and_losses(index)
        return self._measured

    def _shares_and_losses(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Shares, losses of blocks of the input that the map belongs to, contrasts of halves."""
        assert self.baselines is not None
        decision = Decision(
            self.passes, self.readout, self.inputs, self.args, index, self.first.before)
        design, grid = self.networks.design, self.networks.positions(self.z)
        mapped = find_map_input(self.inputs, len(grid), design.map_input)
        x, baseline = self.inputs[mapped], self.baselines[mapped]

        def with_mapped(other: Tensor) -> tuple[Tensor, ...]:
            return (*self.inputs[:mapped], other, *self.inputs[mapped + 1 :])

        def log_probability(without: Tensor) -> Tensor:
            return decision.log_probability(self.passes.first(with_mapped(without), self.args))

        shares = decision.shares(self.networks.finest_site(self.z), with_mapped(baseline))
        first_axis = first_spatial_axis(x, grid, design.channel_axis, design.input_channel_axis)
        whole = decision.log_probability(self.first)
        blocks = min(self.refine_steps, MOST_BLOCKS)
        pairs = (self.refine_steps - blocks) // 2
        lost = block_losses(log_probability, whole, x, baseline, blocks, first_axis, len(grid))
        halves = half_contrasts(
            log_probability, whole, x, baseline, pairs, first_axis, grid, *self.offsets(True))
        if not all(map(all_finite, (shares, lost, halves))):
            raise ValueError(
                "the prediction is not finite with a part of the input replaced by baselines; "
                "pass baselines= that the model can take, or weighting='posterior'"
            )
        return shares, lost, halves

    def _read(
        self, i: int, site: Site, information: Read, index: Tensor | None, classes: bool
    ) -> Tensor:
        noised = information == "sufficient"
        values = self._value(i, site, noised, index, classes)
        return self._heard(site, values) if noised else values

    def _heard(self, site: Site, values: Tensor) -> Tensor:
        """Values ``(N, P, M)`` of x': pure noise says nothing, whatever is made of its mean."""
        return values.masked_fill_(self._silent(site), 0.0)

    def _silent(self, site: Site) -> Tensor:
        """Where alpha is 1, ``(N, P, 1)``."""
        return (torch.sigmoid(self.logits[site]) == 1).flatten(1)[..., None]

    def _features(self, site: Site, noised: bool) -> Tensor:
        """Clean features of a site, or x' at its mean."""
        z = self.z[site]
        return self.networks.mean_signal(z, self.logits[site]) if noised else z

    def _head(self, i: int, site: Site, noised: bool) -> Tensor:
        """Parameters of q at every position, computed once."""
        if (i, noised) not in self._parameters:
            self._parameters[i, noised] = self.networks.head(i, self._features(site, noised))
        return self._parameters[i, noised]

    def _value(
        self, i: int, site: Site, noised: bool, index: Tensor | None, classes: bool
    ) -> Tensor:
        """``(N, P, M)``: the estimator's value at every position of a site."""
        if self.estimator == "infomax":
            kind: Locals = "mean" if noised else "clean"
            return self._pointwise(i, self._features(site, noised), kind)[..., None]
        parameters = self._head(i, site, noised)
        if classes:
            return self.readout.evidence(parameters, self.args)
        if index is None:
            return self.readout.kl(parameters)[..., None]
        return self.readout.evidence_for(parameters, index, self.args)[..., None]

    def _pointwise(self, i: int, features: Tensor, kind: Locals) -> Tensor:
        """``(N, P)``: the critic's pointwise mutual information of features and y."""
        return self.networks.pointwise_information(i, features, self.first.y, kind)

    def _expected(self, i: int, features: Tensor, kind: Locals) -> Tensor:
        """``(N, P)``: the estimator's value of features, in expectation over classes."""
        if self.estimator == "infomax":
            return self._pointwise(i, features, kind)
        return self.readout.kl(self.networks.head(i, features))

    def dataset_rows(self) -> Tensor:
        """``(N, sites, 4)``: general, sufficient, redundant, capacity per position, in nats.

        Sufficient information is read off noised features, with noise of the global generator.
        """
        capacities = self.networks.capacity(self.z, self.logits)
        rows = []
        for i, site in enumerate(self.networks.sites):
            z, logit = self.z[site], self.logits[site]
            noised = inject_noise(z, logit, torch.randn_like(z))
            general = self._expected(i, z, "clean")
            silent = self._silent(site)[..., 0]
            sufficient = self._expected(i, noised, "noised").masked_fill(silent, 0.0)
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
