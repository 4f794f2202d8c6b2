"""Checks of the representation analysis: what is redundant, and figures whose truth is known.

    python benchmarks/representation.py --out benchmarks/results/representation
    python benchmarks/representation.py --data photographs.npz --weights resnet18.pt

1. Is the red area of the sufficient map smaller than that of the general one (share of pixels
   above half of the maximum), and is I(x'; y) <= I(x; y)? For an alpha set by hand that must hold,
   up to the estimate's error; an inferred alpha has seen the whole image and may break it.
2. On digit scenes, what do networks keep that are trained for one of two independent factors with
   known entropies: the digit and the quadrant that it lies in?

Writes ``OUT_maps``, ``OUT_layers`` and, on digit scenes, ``OUT_factors``, ``.csv`` and ``.md``.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from photographs import load, load_model
from report import elapsed, mean_and_error, provenance, write_table
from torch import Tensor, nn

from captum_mi import Batch, InfoBottleneckAttribution, LayerInfoBottleneckAttribution
from captum_mi.datasets import DigitResNet, make_scenes

sys.path.append(str(Path(__file__).parents[1] / "examples"))
from fits import read_or_made
from representation_analysis import quadrant

FACTORS = {"digit": 10, "quadrant": 4}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="npz index of photographs; default: digit scenes")
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--weights")
    parser.add_argument("--train", type=int, default=6000)
    parser.add_argument("--test", type=int, default=1500)
    parser.add_argument("--epochs", type=int, default=6, help="of training on digit scenes")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--alphas", type=float, nargs="+", default=(0.25, 0.5, 0.75),
                        help="set by hand")
    parser.add_argument("--fit", type=Path, help="inferred alpha: load this fit, or save it")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/representation"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    if options.data:
        model, view = load_model(options.model, options.weights)
        model = model.to(options.device)
        train, test = (
            load(options.data, split, count, options.seed, view).images.to(options.device)
            for split, count in (("train", options.train), ("validation", options.test))
        )
    else:
        networks, scenes, unseen = on_scenes(options)
        model, train, test = networks["digit"], scenes.images, unseen.images
        factors(networks, scenes, unseen, options)
    inferred = fitted(model, train, options)
    red_areas(inferred, test, options)
    layers(model, inferred, train, test, options)


def fitted(
    model: nn.Module, train: Tensor, options: argparse.Namespace
) -> InfoBottleneckAttribution:
    """A fit with an inferred alpha, loaded if it was saved."""

    def made() -> InfoBottleneckAttribution:
        attr = InfoBottleneckAttribution(model)
        attr.fit(list(train.split(64)), options.steps, seed=options.seed)
        return attr

    return read_or_made(options.fit, model, made)


def origin(attr: InfoBottleneckAttribution, options: argparse.Namespace) -> str:
    """Provenance of what is measured on a fit."""
    return provenance(model=options.model if options.data else "DigitResNet",
                      fitted_on=options.train, steps=len(attr.history), seed=options.seed,
                      wall_time=elapsed())


def red_area(maps: Tensor) -> Tensor:
    """Share of the pixels above half of the maximum, of maps ``(N, C, H, W)``: ``(N,)``."""
    heat = maps.sum(1).flatten(1)
    return (heat > heat.amax(1, keepdim=True) / 2).float().mean(1)


def red_areas(
    attr: InfoBottleneckAttribution, test: Tensor, options: argparse.Namespace
) -> None:
    """General against sufficient maps of the same images, without a target."""
    general, sufficient = (
        attr.attribute(test, information=kind, internal_batch_size=100)
        for kind in ("general", "sufficient")
    )
    areas = red_area(general), red_area(sufficient)
    totals = general.flatten(1).sum(1), sufficient.flatten(1).sum(1)
    rows = [
        [name, *map(mean_and_error, (a, b, a - b))]
        for name, (a, b) in (("red area, share of pixels", areas), ("total, nats", totals))
    ]
    layers = "+".join(attr.layers)
    note = (f"{len(test)} images, layers {layers}; mean ± standard error.\n\n"
            + origin(attr, options))
    header = ["of each map", "general", "sufficient", "general - sufficient"]
    stem = options.out.with_name(options.out.name + "_maps")
    print(write_table(stem, "General and sufficient maps", header, rows, note))


def layers(
    model: nn.Module, inferred: InfoBottleneckAttribution, train: Tensor, test: Tensor,
    options: argparse.Namespace,
) -> None:
    """Dataset figures per layer against the data-processing inequality."""
    fits: dict[str, InfoBottleneckAttribution] = {"inferred": inferred}
    for alpha in options.alphas:
        fits[f"{alpha:g}"] = InfoBottleneckAttribution(model, alpha=alpha)
        fits[f"{alpha:g}"].fit(list(train.split(64)), options.steps, seed=options.seed)
    rows = []
    for name, attr in fits.items():
        for layer, figures in attr.information(list(test.split(64)), seed=options.seed).items():
            general, sufficient, redundant, capacity = figures.values()
            holds = redundant.mean >= -2 * redundant.standard_error
            if name != "inferred" and not holds:
                raise AssertionError(
                    f"alpha {name}, {layer}: I(x'; y) {sufficient} exceeds I(x; y) {general}"
                )
            rows.append([
                name, layer,
                *(f"{one.mean:.4f} ± {one.standard_error:.4f}"
                  for one in (general, sufficient, redundant, capacity)),
                "yes" if holds else "no",
            ])
    header = ["alpha", "layer", "general", "sufficient", "redundant", "capacity",
              "I(x'; y) <= I(x; y)"]
    note = (f"Nats per position, {len(test)} images; mean ± standard error.\n\n"
            + origin(inferred, options))
    stem = options.out.with_name(options.out.name + "_layers")
    print(write_table(stem, "Data-processing inequality", header, rows, note))


def on_scenes(options: argparse.Namespace):  # type: ignore[no-untyped-def]
    """Networks trained on the same scenes, each for one factor."""
    train, test = (
        make_scenes(count, split=split, seed=options.seed)
        for count, split in ((options.train, "train"), (options.test, "test"))
    )
    train, test = (type(one)(*(x.to(options.device) for x in one)) for one in (train, test))
    networks = {}
    for name, labels in labels_of(train).items():
        torch.manual_seed(options.seed)
        network = DigitResNet(classes=FACTORS[name]).to(options.device)
        networks[name] = network.fit(
            train._replace(labels=labels[:, None]), options.epochs, seed=options.seed
        )
    return networks, train, test


def labels_of(scenes) -> dict[str, Tensor]:  # type: ignore[no-untyped-def]
    """Both factors of scenes."""
    return {"digit": scenes.labels[:, 0], "quadrant": quadrant(scenes)[:, 0]}


class WithFactor(nn.Module):
    """A network whose output, y, is replaced by a factor that the caller knows."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor, logits: Tensor) -> Tensor:
        self.network(images)
        return logits


def factors(networks, scenes, unseen, options: argparse.Namespace) -> None:  # type: ignore[no-untyped-def]
    """I(representation; factor) for each network's output and each factor, against entropies."""
    rows = []
    for trained_for, network in networks.items():
        row = [trained_for]
        for factor, classes in FACTORS.items():
            def batches(part, factor=factor, classes=classes):  # type: ignore[no-untyped-def]
                logits = 30 * F.one_hot(labels_of(part)[factor], classes).float()
                pairs = zip(part.images.split(64), logits.split(64))
                return [Batch((x,), None, (y,)) for x, y in pairs]

            attr = LayerInfoBottleneckAttribution(WithFactor(network), "network.fc", alpha=0.0)
            attr.fit(batches(scenes), options.steps, seed=options.seed)
            (figures,) = attr.information(batches(unseen), unit="bits").values()
            row.append(f"{figures['general'].mean:.3f} ± {figures['general'].standard_error:.3f}")
        accuracy = (network(unseen.images).argmax(1) == labels_of(unseen)[trained_for]).float()
        rows.append([*row, mean_and_error(accuracy)])
    entropies = []
    for factor, classes in FACTORS.items():
        p = torch.bincount(labels_of(scenes)[factor], minlength=classes).double()
        p = p / p.sum()
        entropies.append(f"{-(p * p.log2()).sum():.3f}")
    rows.append(["entropy of the factor", *entropies, ""])
    note = (
        f"Bits that the output of a network trained for one factor tells about each factor, on "
        f"{len(unseen.images)} scenes of unseen scans; plug-in estimate, mean ± standard error."
        "\n\n"
        + provenance(model="DigitResNet", fitted_on=options.train, steps=options.steps,
                     seed=options.seed, wall_time=elapsed())
    )
    header = ["trained for", "I(output; digit)", "I(output; quadrant)", "accuracy"]
    stem = options.out.with_name(options.out.name + "_factors")
    print(write_table(stem, "Two independent factors of digit scenes", header, rows, note))


if __name__ == "__main__":
    main()
