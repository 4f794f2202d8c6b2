"""Which number should a map show? Read-outs of one fit, on the same images.

    python benchmarks/read_outs.py --data photographs.npz --weights resnet18.pt --fits fits \
        --out benchmarks/results/read_outs

A controlled experiment: the fit stays, only what is read off it changes. The last rows ask where
Occlusion differs: in what it finds for the class, or in what it finds against it? Writes ``OUT``
and, where there are boxes, ``OUT_posterior``, how probable these are by powers of the posterior,
``.csv`` and ``.md``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F
from compare_methods import fitted
from evaluation import (
    DEVICE,
    LEADING,
    Evaluation,
    Heat,
    evaluation_set,
    mosaics,
    without_tf32,
)
from peers.captum_methods import occlusion
from peers.method import per_channel
from photographs import load, load_model
from report import mean_and_error, provenance, write_table
from torch import Tensor
from tqdm import tqdm

from captum_mi import InfoBottleneckAttribution
from captum_mi.bottleneck import keep
from captum_mi.grid import resize
from captum_mi.maps.heatmap import combine, to_input
from captum_mi.maps.posterior import (
    SHARPNESS,
    capacity_prior,
    position_posterior,
    sharpened,
)
from captum_mi.maps.weighting import weighted
from captum_mi.model.hooks import LayerOutput, capture_only

_AGAINST = 0.5  # weight of what speaks against a class, to 1 of what speaks for it
POWERS = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0)


class Parts:
    """What a fit says about some images and their targets, as tensors to combine.

    Attributes:
        sufficient: evidence for the target in x', of each noised layer, ``(n, 1, h, w)``.
        general: the same in clean features, of each layer that has a head, the deepest last.
        odds: log odds ratios in x', of each noised layer.
        clean_odds: the same in clean features, of each layer that has a head.
        expected: expectation of the evidence in x' over classes.
        alpha_logit: logit of alpha on the finest grid.
        default: the default map, at the input's resolution.
        places: of the positions of a grid.
    """

    def __init__(self, attr: InfoBottleneckAttribution, images: Tensor, target: Tensor) -> None:
        self.model, self.images, self.target = attr.model, images, target
        networks, output = attr.networks, attr.networks.output
        z = networks.standardise(_layers(attr, images))
        logits = networks.alpha_logits(z)
        index = target[:, None]

        def grid(values: Tensor, site: object) -> Tensor:
            return values[:, None].unflatten(2, z[site].shape[2:])  # type: ignore[index]

        self.sufficient, self.general, self.expected = [], [], []
        self.odds, self.clean_odds = [], []
        for site in networks.sites + networks.head_sites:
            clean = networks.clean_head(site, z[site])
            self.general.append(grid(output.evidence_for(clean, index), site))
            self.clean_odds.append(grid(output.log_odds_ratio(clean, index), site))
            if site in networks.sites:
                one, other = networks.head_pair(site, z[site], logits[site])
                evidence = output.evidence_for(one, index) + output.evidence_for(other, index)
                self.sufficient.append(grid(evidence / 2, site))
                odds = output.log_odds_ratio((one + other) / 2, index)
                self.odds.append(grid(odds, site))
                self.expected.append(grid((output.kl(one) + output.kl(other)) / 2, site))
        self.alpha_logit = networks.alpha_map(z)
        self.places = {tuple(z[site].shape[2:]): [one.place for one in lattices]
                       for site, lattices in networks.lattices.items() if site in z}
        self.default = attr.attribute(images, target).sum(1, keepdim=True)

    @property
    def witnesses(self) -> list[Tensor]:
        """What the default's posterior is made of."""
        return [*pooled(self.odds), self.general[-1]]

    @cached_property
    def posterior(self) -> Tensor:
        """The default's posterior over positions."""
        return position_posterior(self.witnesses, capacity_prior(self.alpha_logit))

    @cached_property
    def occlusion(self) -> Tensor:
        """Occlusion, as in the comparison, at the input's resolution."""
        return occlusion(self.model, self.images, self.target).sum(1, keepdim=True)


def _layers(attr: InfoBottleneckAttribution, images: Tensor) -> dict[str, LayerOutput]:
    names = list(dict.fromkeys(site.layer for site in attr.networks.all_sites))
    return capture_only(attr.model, names, lambda: attr.model(images))


def pooled(odds: list[Tensor]) -> list[Tensor]:
    """Layers as one witness."""
    return [one / len(odds) for one in odds]


def times(maps: list[Tensor], weight: Tensor) -> list[Tensor]:
    """Maps weighted at every position."""
    return [one * resize(weight, one.shape[2:]) for one in maps]


def put_together(favour: Tensor, against: Tensor) -> list[Tensor]:
    """What one map finds for the class, and what another finds against it."""
    positive, negative = favour.clamp_min(0), against.clamp_max(0)
    return [positive / _sizes(positive) + _AGAINST * negative / _sizes(negative)]


def _sizes(maps: Tensor) -> Tensor:
    tiny = torch.finfo(maps.dtype).tiny
    return maps.abs().sum((1, 2, 3), keepdim=True).clamp_min(tiny)


def by_posterior(parts: Parts, posterior: Tensor) -> list[Tensor]:
    """Evidence weighted by a posterior."""
    return [weighted(one, posterior) for one in parts.sufficient]


@torch.no_grad()
def log_score(parts: list[Parts], boxes: Tensor, power: float) -> Tensor:
    """Log of the probability of the box ``(n,)``, by a power of the posterior, in nats."""
    scores = []
    for one, inside in zip(parts, boxes.split([len(p.images) for p in parts])):
        posterior = sharpened(one.posterior, power)
        share = F.adaptive_avg_pool2d(inside[:, None].double(), posterior.shape[2:])
        scores.append((posterior * share).sum((1, 2, 3)).log())
    return torch.cat(scores)


def read_outs() -> dict[str, Callable[[Parts], list[Tensor]]]:
    """Name -> maps of a class, one for each layer."""
    def prior(p: Parts) -> Tensor:
        return capacity_prior(p.alpha_logit)

    return {
        "evidence in x'": lambda p: p.sufficient,
        "evidence in x, clean": lambda p: p.general[: len(p.sufficient)],
        "expectation over classes": lambda p: p.expected,
        "evidence x (1 - alpha)": lambda p: times(p.sufficient, keep(p.alpha_logit)),
        "evidence x capacity": lambda p: times(p.sufficient, prior(p)),
        "sum with the deepest head": lambda p: [*p.sufficient, p.general[-1]],
        "evidence, layers first averaged, by posterior (default)": lambda p: [p.default],
        "posterior alone": lambda p: [p.posterior.float()],
        "evidence by posterior": lambda p: by_posterior(p, p.posterior),
        "... with the mean capacity around a position for a prior": lambda p: by_posterior(
            p, position_posterior(p.witnesses, F.avg_pool2d(
                prior(p), 3, 1, 1, count_include_pad=False))),
        "... with a uniform prior": lambda p: by_posterior(
            p, position_posterior(p.witnesses, torch.ones_like(prior(p)))),
        "... to the power 1": lambda p: by_posterior(p, p.posterior ** (1 / SHARPNESS)),
        "... to the power 2": lambda p: by_posterior(p, p.posterior ** (2 / SHARPNESS)),
        "... of layers as independent witnesses, to the power 2": lambda p: by_posterior(
            p, position_posterior([*p.odds, p.general[-1]], prior(p)) ** (2 / SHARPNESS)),
        "... without the deepest head": lambda p: by_posterior(
            p, position_posterior(pooled(p.odds), prior(p))),
        "... of evidence instead of log odds ratios": lambda p: by_posterior(
            p, position_posterior([*p.sufficient, p.general[-1]], prior(p))),
        "... of log odds ratios of the deepest head too": lambda p: by_posterior(
            p, position_posterior([*pooled(p.odds), p.clean_odds[-1]], prior(p))),
        "... of clean features": lambda p: by_posterior(
            p, position_posterior([*pooled(p.clean_odds[:-1]), p.general[-1]], prior(p))),
        "evidence by posterior + (1 - alpha) x clean evidence": lambda p: [
            combine(by_posterior(p, p.posterior), p.alpha_logit.shape[2:])
            + combine(times(p.general[: len(p.sufficient)], keep(p.alpha_logit)),
                      p.alpha_logit.shape[2:])],
        "default, for the class alone": lambda p: [p.default.clamp_min(0)],
        "Occlusion": lambda p: [p.occlusion],
        "Occlusion, for the class alone": lambda p: [p.occlusion.clamp_min(0)],
        "default for, Occlusion against": lambda p: put_together(p.default, p.occlusion),
        "Occlusion for, default against": lambda p: put_together(p.occlusion, p.default),
    }


@torch.no_grad()
def parts_of(attr: InfoBottleneckAttribution, images: Tensor, target: Tensor) -> list[Parts]:
    """What a fit says about images, batch by batch."""
    return [Parts(attr, x, t) for x, t in zip(images.split(50), target.split(50)) if len(x)]


def drawn(parts: Parts, maps: list[Tensor]) -> Tensor:
    """Maps of grids or of the input's resolution, on the input."""
    places = [parts.places.get(tuple(one.shape[2:]), ()) for one in maps]
    return to_input(maps, parts.images, places=places)


@torch.no_grad()
def heat_of(parts: list[Parts], read: Callable[[Parts], list[Tensor]], images: Tensor) -> Tensor:
    """Heat of the images' shape."""
    heat = [per_channel(drawn(p, read(p)).sum(1), p.images) for p in parts]
    return torch.cat(heat) if heat else images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--weights")
    parser.add_argument("--layers", nargs="+")
    parser.add_argument("--fits", type=Path, help="folder of fits: loaded, or saved if missing")
    parser.add_argument("--train", type=int, default=9600)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=700)
    parser.add_argument("--amp", action="store_true",
                        help="bfloat16 while fitting and for perturbed images, not for maps")
    parser.add_argument("--n", type=int, default=120)
    parser.add_argument("--mosaics", type=int, default=24)
    parser.add_argument("--tiles-per-step", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/read_outs"))
    options = parser.parse_args()
    without_tf32()
    model, view = load_model(options.model, options.weights)
    model = model.to(DEVICE, memory_format=torch.channels_last)
    photos = load(options.data, "validation", None, options.seed, view).to(DEVICE)
    evaluation = Evaluation(
        model, evaluation_set(model, photos, options.n),
        mosaics(model, photos, options.mosaics, 0.9, options.seed), options.tiles_per_step,
        options.seed, options.amp,
    )
    train = load(options.data, "train", options.train, options.seed, view).to(DEVICE)
    attr = fitted(model, train, options, options.seed)
    metrics = evaluation.possible(LEADING)
    photos, grids = evaluation.photos, evaluation.grids
    parts = parts_of(attr, photos.images, photos.labels)
    of_grids = parts_of(attr, grids.images, grids.targets)
    note = (
        f"{len(photos.images)} correctly classified validation images, those that settings were "
        "chosen on; mean ± standard error.\n\n"
        + provenance(model=options.model, layers="+".join(attr.layers), seed=options.seed)
    )
    if photos.boxes is not None:
        scores = [[f"{power:g}", mean_and_error(log_score(parts, photos.boxes, power))]
                  for power in POWERS]
        print(write_table(
            options.out.with_name(f"{options.out.name}_posterior"),
            f"Probability of the box by powers of the posterior, {options.model}",
            ["power", "log probability, nats"], scores, note))
    rows = []
    for name, read in tqdm(read_outs().items(), desc="read-outs"):
        heat = Heat(heat_of(parts, read, photos.images), heat_of(of_grids, read, grids.images))
        rows.append([name, *(mean_and_error(evaluation.measure(m, heat)) for m in metrics)])
        print(*rows[-1], sep="  ", flush=True)
    title = f"Read-outs of one fit, {options.model}"
    print(write_table(options.out, title, ["read-out", *metrics], rows, note))


if __name__ == "__main__":
    main()
