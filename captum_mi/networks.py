"""Everything that a fit learns: moments, inference network, heads, critics, bank."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from captum_mi.bottleneck import capacity, denoised, inject_noise, keep, shared_noise
from captum_mi.bounds import pointwise_info_nce
from captum_mi.critics import Critic, make_critic
from captum_mi.grid import locals_of, n_positions, resize
from captum_mi.heads import Head
from captum_mi.inference import FixedAlpha, InferenceNetwork
from captum_mi.model.sites import Site
from captum_mi.moments import Moments
from captum_mi.outputs import make_output
from captum_mi.probing.design import Design
from captum_mi.probing.structure import Structure

__all__ = ["LOCALS", "Bank", "Locals", "Networks"]

_BANK_CHUNK = 1024

#: Kinds of locals: features, and draws of noised ones.
Locals = Literal["clean", "noised"]
LOCALS: tuple[Locals, ...] = get_args(Locals)


class Bank(nn.Module):
    """Frozen reference set of locals, embedded by the critics of their site.

    The same locals twice, for locals are to be scored against others of their kind: ``clean``
    features x, and ``noised`` ones, a draw of x' each.

    Args:
        size: number of locals; 0 for a fit without a critic.
        embedding_size: length of the critic's embedding of a local.
    """

    def __init__(self, size: int, embedding_size: int) -> None:
        super().__init__()
        for kind in LOCALS:
            self.register_buffer(kind, torch.zeros(size, embedding_size))

    def __len__(self) -> int:
        return len(self.get_buffer(LOCALS[0]))

    def logsumexp(self, critic: Critic, global_: Tensor, kind: Locals) -> Tensor:
        """``log sum exp`` of the scores of embedded globals ``(N, E)`` over the bank: ``(N,)``."""
        parts = [
            critic.score(part, global_).logsumexp(0)
            for part in self.get_buffer(kind).split(_BANK_CHUNK)
        ]
        return torch.stack(parts).logsumexp(0)


class Networks(nn.Module):
    """The learned part of the method; the user's model is no part of it.

    Args:
        design: the choices.
        structure: the shapes that were found in the user's model.
        alpha: a fixed alpha, or ``None`` to infer it.
        bank_sizes: locals in the reference bank of each site; none leaves the critics out.
    """

    class_log_marginal: Tensor

    def __init__(
        self,
        design: Design,
        structure: Structure,
        alpha: Tensor | None,
        bank_sizes: Sequence[int],
    ) -> None:
        super().__init__()
        self.design = design
        self.sites, self.context = structure.sites, structure.context
        self.head_sites, self.tokens = structure.head_sites, structure.tokens
        self.lattices = dict(zip(structure.sites + structure.head_sites, structure.lattices))
        self.output = output = make_output(structure.output, structure.y_shape)
        sites, context = self.sites, self.context
        axes = max(site.position_axes for site in sites)
        self.inference: nn.Module = (
            InferenceNetwork([site.channels for site in context], axes, design.inference)
            if alpha is None
            else FixedAlpha(alpha)
        )
        self.moments = nn.ModuleList(Moments(site.channels) for site in self.all_sites)
        self.global_moments = Moments(output.size)
        self.register_buffer("class_log_marginal", torch.zeros(structure.n_classes))
        self.clean_heads = nn.ModuleList(
            Head(site.channels, design.head_hidden, output.head_size)
            for site in sites + self.head_sites
        )
        self.clean_critics = nn.ModuleList(
            make_critic(design.critic, site.channels, output.size, design.critic_hidden)
            for site in (sites if bank_sizes else ())
        )
        # Copies: where alpha is 0, x' is x, and they learn the same.
        self.noised_heads = copy.deepcopy(self.clean_heads[: len(sites)])
        self.noised_critics = copy.deepcopy(self.clean_critics)
        self.banks = nn.ModuleList(
            Bank(size, critic.embed_local(torch.zeros(1, site.channels)).shape[-1])  # type: ignore[operator]
            for size, critic, site in zip(bank_sizes, self.clean_critics, sites)
        )

    @property
    def all_sites(self) -> tuple[Site, ...]:
        """All sites without repeats, in the order of :attr:`moments`."""
        return tuple(dict.fromkeys(self.sites + self.head_sites + self.context + self.tokens))

    @property
    def noised_sites(self) -> tuple[Site, ...]:
        """Where noise is injected: the sites, and tokens that belong to no position."""
        return self.sites + self.tokens

    def moments_of(self, site: Site) -> Moments:
        """The moments of a site or a context layer."""
        return self.moments[self.all_sites.index(site)]  # type: ignore[return-value]

    def standardise(self, layers: dict[str, Any]) -> dict[Site, Tensor]:
        """Standardised features of every site, from captured outputs."""
        return {site: self.moments_of(site).standardise(site.of(layers))
                for site in self.all_sites}

    def finest_site(self, features: dict[Site, Tensor]) -> Site:
        """The site with the most positions, the first one of equals."""
        return max(self.sites, key=lambda site: n_positions(features[site].shape[2:]))

    def positions(self, z: dict[Site, Tensor]) -> tuple[int, ...]:
        """The finest grid of the sites."""
        return tuple(z[self.finest_site(z)].shape[2:])

    def alpha_map(self, z: dict[Site, Tensor]) -> Tensor:
        """Logit of alpha ``(N, 1, *positions)`` on the finest grid of the sites."""
        logit: Tensor = self.inference([z[site] for site in self.context], self.positions(z))
        return logit

    def spread(self, alpha_map: Tensor, z: dict[Site, Tensor]) -> dict[Site, Tensor]:
        """The map of logits, resized to each noised site's grid; its mean for a single token."""
        return {site: resize(alpha_map, z[site].shape[2:]) for site in self.noised_sites}

    def alpha_logits(self, z: dict[Site, Tensor]) -> dict[Site, Tensor]:
        """Logit of alpha for each noised site: one map, resized."""
        if isinstance(self.inference, FixedAlpha):
            return {site: self.inference([z[site]], z[site].shape[2:])
                    for site in self.noised_sites}
        return self.spread(self.alpha_map(z), z)

    def shared_noise(self, z: dict[Site, Tensor], seed: int = 0) -> dict[Site, Tensor]:
        """A draw for each noised site, the same for every example."""
        generator = torch.Generator().manual_seed(seed)
        return {site: shared_noise(z[site], generator) for site in self.noised_sites}

    def injections(
        self, logits: dict[Site, Tensor], noise: dict[Site, Tensor]
    ) -> dict[Site, Callable[[Tensor], Tensor]]:
        """Functions that noise running features in a second pass, in the features' own units.

        Args:
            logits: logit of alpha for each noised site.
            noise: the draw for each site.
        """

        def injection(site: Site) -> Callable[[Tensor], Tensor]:
            moments = self.moments_of(site)

            def inject(features: Tensor) -> Tensor:
                z = moments.standardise(features)
                noised = inject_noise(z, logits[site], noise[site])
                return moments.restore(noised).to(features.dtype)

            return inject

        return {site: injection(site) for site in self.noised_sites}

    def clean_head(self, site: Site, z: Tensor) -> Tensor:
        """Parameters ``(N, P, head_size)`` of ``q(y | x)``, from a site's features."""
        out: Tensor = self.clean_heads[(self.sites + self.head_sites).index(site)](locals_of(z))
        return out

    def noised_head(self, site: Site, noised: Tensor, alpha_logit: Tensor) -> Tensor:
        """Parameters ``(N, P, head_size)`` of ``q(y | x')``, from a site's noised features.

        They are read as what is expected of the clean ones, so that a head that is sure of
        features is not as sure of noise.
        """
        x = locals_of(denoised(noised, alpha_logit))
        out: Tensor = self.noised_heads[self.sites.index(site)](x)
        return out

    def negative_log_prior(self) -> Tensor:
        """Of all heads' weights, in nats, up to a constant."""
        heads = [*self.clean_heads, *self.noised_heads]
        return torch.stack([head.negative_log_prior() for head in heads]).sum()

    def choose_noise(self) -> None:
        """Choose the noise that readings of ``q(y | x')`` are means over, of trained heads."""
        for head in self.noised_heads:
            head.choose_noise(  # type: ignore[operator]
                self.output.metric, each=self.output.independent)

    def head_pair(self, site: Site, z: Tensor, alpha_logit: Tensor) -> tuple[Tensor, Tensor]:
        """Parameters ``(N, P, head_size)`` of ``q(y | x')``, for a typical pair of draws."""
        head: Head = self.noised_heads[self.sites.index(site)]  # type: ignore[assignment]
        kept = denoised(keep(alpha_logit), alpha_logit)  # of the signal; small, unlike z
        std = denoised(torch.sigmoid(alpha_logit), alpha_logit)
        return head.pair(locals_of(kept * z), locals_of(std))

    def critic(self, site: Site, kind: Locals) -> Critic:
        """The InfoMax critic of a site's features of a kind."""
        critics = self.clean_critics if kind == "clean" else self.noised_critics
        return critics[self.sites.index(site)]  # type: ignore[return-value]

    @property
    def has_critics(self) -> bool:
        """Whether the fit has critics, and banks to score against."""
        return len(self.banks) > 0

    def global_input(self, raw: Tensor) -> Tensor:
        """Standardised coordinates ``(N, size)`` of y for the critics."""
        return self.global_moments.standardise(self.output.critic_input(raw))

    def bank(self, site: Site) -> Bank:
        """The reference bank of a site."""
        return self.banks[self.sites.index(site)]  # type: ignore[return-value]

    @property
    def bank_sizes(self) -> list[int]:
        """Locals in each site's bank; none for a fit without critics."""
        return [len(self.bank(site)) for site in self.sites] if self.has_critics else []

    def pointwise_information(
        self, site: Site, draws: Iterable[Tensor], y: Tensor, kind: Locals
    ) -> Tensor:
        """InfoMax: ``(N, P)`` pointwise information of a site's locals and raw y, in nats, in
        the mean over draws of the locals."""
        critic, bank = self.critic(site, kind), self.bank(site)
        global_ = critic.embed_global(self.global_input(y))
        negatives = bank.logsumexp(critic, global_, kind)[:, None]
        found = []
        for z in draws:
            positive = critic.paired(critic.embed_local(locals_of(z)), global_[:, None])
            found.append(pointwise_info_nce(positive, negatives, len(bank)))
        return torch.stack(found).mean(0)

    def capacity(self, z: dict[Site, Tensor], logits: dict[Site, Tensor]) -> dict[Site, Tensor]:
        """Capacity of each element of each site, ``(N, C, *positions)``, in nats."""
        return {site: capacity(z[site], logits[site]) for site in self.sites}
