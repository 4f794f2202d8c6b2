"""Information per position that captured layers tell, by our own networks alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from captum_mi.bottleneck import antithetic_draws
from captum_mi.grid import Place, on_grid, resize, without_offsets
from captum_mi.maps.heatmap import joined
from captum_mi.maps.posterior import capacity_prior, position_posterior
from captum_mi.maps.question import Question
from captum_mi.maps.readout import Readout
from captum_mi.maps.weighting import Measured, weighted
from captum_mi.model.hooks import LayerOutput
from captum_mi.model.sites import Site
from captum_mi.networks import Locals, Networks

__all__ = ["Evidence"]

Logits = dict[Site, Tensor]

_PAIRS = 8  # of draws of noise that a critic's score of x' is a mean over


class Evidence:
    """What a batch's layers tell, computed when it is asked for, and once.

    Args:
        networks: the fit.
        readout: from heads to evidence.
        question: what is asked.
        layers: captured layers of a first pass.
        args: additional forward arguments of the batch, for a downstream function.
        index: classes ``(N, S)`` whose evidence is read, ``None`` for the expectation.
        places: where the positions of each site lie; sites without: in the middles of cells.
        infer: from standardised features to the logit of alpha for each noised site.
        y: the global representation, which critics score.
    """

    def __init__(
        self,
        networks: Networks,
        readout: Readout,
        question: Question,
        layers: dict[str, LayerOutput],
        args: tuple[Any, ...],
        index: Tensor | None,
        places: Mapping[Site, Sequence[Place]],
        infer: Callable[[dict[Site, Tensor]], Logits],
        y: Tensor | None = None,
    ) -> None:
        self.networks, self.readout, self.question = networks, readout, question
        self.layers, self.args, self.index, self.y = layers, args, index, y
        self._places, self._infer = places, infer
        self._parameters: dict[tuple[Site, Locals], tuple[Tensor, ...]] = {}

    @cached_property
    def z(self) -> dict[Site, Tensor]:
        """Standardised features of every site."""
        return self.networks.standardise(self.layers)

    @cached_property
    def logits(self) -> Logits:
        """Logit of alpha for each noised site."""
        return self._infer(self.z)

    @cached_property
    def finest(self) -> Site:
        """The site with the most positions."""
        return self.networks.finest_site({
            site: site.of(self.layers) for site in self.networks.sites})

    @property
    def places(self) -> list[tuple[Place, ...]]:
        """Where the positions of each map lie in the input."""
        sites = (self.finest,) if self.question.joined else self.networks.sites
        return [self._places_of(site) for site in sites]

    def _places_of(self, site: Site) -> tuple[Place, ...]:
        return tuple(self._places.get(site, ()))

    def maps(self, kind: Locals, measured: Measured | None = None) -> list[Tensor]:
        """Maps ``(N, M, *positions)`` of each site, or of the layers joined; for a class, weighted
        as the question asks, with what was measured."""
        maps = [self._values(site, kind) for site in self.networks.sites]
        if self.index is None or self.question.weighting == "none":
            return maps
        witnesses = [*self._log_odds(kind, self.index), *self._head_evidence()]
        posterior = position_posterior(witnesses, self._prior(kind))
        if self.question.joined:
            maps = [joined(maps, [self._places_of(site) for site in self.networks.sites])]
        return [weighted(one, posterior, measured, places)
                for one, places in zip(maps, self.places)]

    def _log_odds(self, kind: Locals, index: Tensor) -> list[Tensor]:
        """Log odds ratios of a class at the noised sites, whose evidence levels at certainty.

        They see the same pixels, so they are one witness, and each has its share in it.
        """
        found = []
        for site in self.networks.sites:
            parameters = _mean(self._heads(site, kind))
            ratio = self.readout.log_odds_ratio(parameters, index, self.args)[..., None]
            ratio = self._silenced(site, ratio, kind)
            ratio = on_grid(ratio, self.z[site].shape[2:]) / len(self.networks.sites)
            found.append(self._aligned(site, ratio))
        return found

    def _head_evidence(self) -> list[Tensor]:
        """Evidence for a class at the sites that have a head alone."""
        return [self._aligned(site, self._values(site, "clean"))
                for site in self.networks.head_sites]

    def _aligned(self, site: Site, one: Tensor) -> Tensor:
        """A site's map as it is, or on the finest grid if its positions lie further apart, in
        cells, or closer together: as of convolutions that leave out the edges."""
        apart, wanted = (
            without_offsets(self._places_of(of)) for of in (site, self.finest))
        if not apart or apart == wanted:
            return one
        return resize(one, self.z[self.finest].shape[2:], apart, wanted)

    def _prior(self, kind: Locals) -> Tensor:
        """What the bottleneck lets pass at each position of the finest grid; all, if clean."""
        if kind == "clean":  # alpha need not be inferred
            return torch.ones_like(self.z[self.finest][:, :1])
        return capacity_prior(self.logits[self.finest])

    def _values(self, site: Site, kind: Locals) -> Tensor:
        """``(N, M, *positions)``: the estimator's value at every position of a site."""
        values = self._silenced(site, self._estimated(site, kind), kind)
        return on_grid(values, self.z[site].shape[2:])

    def _silenced(self, site: Site, values: Tensor, kind: Locals) -> Tensor:
        """Values ``(N, P, M)``: pure noise says nothing, whatever heads make of it."""
        return values if kind == "clean" else values.masked_fill_(self.silent(site), 0.0)

    def silent(self, site: Site) -> Tensor:
        """Where alpha is 1, ``(N, P, 1)``."""
        return (torch.sigmoid(self.logits[site]) == 1).flatten(1)[..., None]

    def _estimated(self, site: Site, kind: Locals) -> Tensor:
        if self.question.estimator == "infomax":
            z = self.z[site]
            draws = [z] if kind == "clean" else antithetic_draws(z, self.logits[site], _PAIRS)
            return self._pointwise(site, draws, kind)[..., None]
        return _mean([self._reading(parameters) for parameters in self._heads(site, kind)])

    def _reading(self, parameters: Tensor) -> Tensor:
        """``(N, P, M)``: what parameters of q at every position say."""
        if self.question.classes:
            return self.readout.evidence(parameters, self.args)
        if self.index is None:
            return self.readout.kl(parameters)[..., None]
        return self.readout.evidence_for(parameters, self.index, self.args)[..., None]

    def _heads(self, site: Site, kind: Locals) -> tuple[Tensor, ...]:
        """Parameters of q at every position, of noised features a pair, computed once."""
        if (site, kind) not in self._parameters:
            z, networks = self.z[site], self.networks
            self._parameters[site, kind] = (
                (networks.clean_head(site, z),) if kind == "clean"
                else networks.head_pair(site, z, self.logits[site])
            )
        return self._parameters[site, kind]

    def _pointwise(self, site: Site, draws: Iterable[Tensor], kind: Locals) -> Tensor:
        """``(N, P)``: the critic's pointwise mutual information of features and y."""
        assert self.y is not None
        return self.networks.pointwise_information(site, draws, self.y, kind)

    def expected(self, site: Site, features: Tensor, kind: Locals) -> Tensor:
        """``(N, P)``: the estimator's value of features, in expectation over classes."""
        if self.question.estimator == "infomax":
            return self._pointwise(site, [features], kind)
        networks = self.networks
        return self.readout.kl(
            networks.clean_head(site, features) if kind == "clean"
            else networks.noised_head(site, features, self.logits[site]))


def _mean(tensors: Sequence[Tensor]) -> Tensor:
    first, *others = tensors
    return sum(others, first) / len(tensors) if others else first
