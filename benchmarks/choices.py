"""What each choice of the fit does: one changed at a time, on digit scenes with exact masks.

    python benchmarks/choices.py --out benchmarks/results/choices

A controlled experiment behind the defaults: the same network, training scenes, test scenes and
seed for every row; differences from the default are paired, scene by scene. Writes ``OUT.csv`` and
``OUT.md``, anew after every row.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from evaluation import (
    DEVICE,
    LEADING,
    TILE,
    Evaluation,
    Heat,
    digit_scenes,
    evaluation_set,
    mosaics,
    without_tf32,
)
from photographs import Photographs
from report import mean_and_error, provenance, write_table
from torch import Tensor, nn

from captum_mi import InfoBottleneckAttribution
from captum_mi.datasets import DigitResNet, Scenes

DEFAULT = "default: layer2+3, layer4 read"


@dataclass(frozen=True)
class Choice:
    """What differs from the default: constructor, fit, what is done to images, call."""

    design: dict[str, Any] = field(default_factory=dict)
    fit: dict[str, Any] = field(default_factory=dict)
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None
    call: dict[str, Any] = field(default_factory=dict)


def choices(kappa: float, steps: int) -> dict[str, Choice]:
    """Rows of the table; ``kappa`` is what the default holds."""
    return {
        "another seed": Choice(fit={"seed": 1}),
        "a third seed": Choice(fit={"seed": 2}),
        "layer1": Choice({"layer": ["layer1"]}),
        "layer2": Choice({"layer": ["layer2"]}),
        "layer3": Choice({"layer": ["layer3"]}),
        "layer1+2": Choice({"layer": ["layer1", "layer2"]}),
        "layer1+2+3": Choice({"layer": ["layer1", "layer2", "layer3"]}),
        "layer4 not read": Choice({"head_layers": []}),
        "inference network reads layer3 alone": Choice({"context_layers": ["layer3"]}),
        "inference network: one position at a time": Choice({"inference": "mlp"}),
        "N(0, I) on raw features": Choice({"noise": "standard"}),
        "heads without a hidden layer": Choice({"head_hidden": ()}),
        "heads of 64 units": Choice({"head_hidden": (64,)}),
        "heads of 512 units": Choice({"head_hidden": (512,)}),
        "heads of 256 + 256 units": Choice({"head_hidden": (256, 256)}),
        "a quarter of kappa": Choice(fit={"kappa": kappa / 4}),
        "half of kappa": Choice(fit={"kappa": kappa / 2}),
        "twice kappa": Choice(fit={"kappa": kappa * 2}),
        "held to the labels": Choice(fit={"task": "labels"}),
        "the network trained too": Choice(fit={"finetune_base": True}),
        "a quarter of the steps": Choice(fit={"steps": steps // 4}),
        "half of the steps": Choice(fit={"steps": steps // 2}),
        "twice the steps": Choice(fit={"steps": 2 * steps}),
        "images shifted at random": Choice(augment=shifted),
        "tiles erased at random": Choice(augment=erased),
        "rectangles of other scenes pasted in": Choice(augment=pasted),
        "refined by 9 blocks": Choice(call={"refine_steps": 9}),
        "refined by these and 8 pairs of halves": Choice(call={"refine_steps": 25}),
        "alpha refined, 4 steps": Choice(call={"alpha_steps": 4}),
        "weighting='none'": Choice(call={"weighting": "none"}),
        "general information": Choice(call={"information": "general"}),
        "no target": Choice(call={"target": None}),
    }


class Augmented:
    """Batches of images, changed in another way in every walk."""

    def __init__(
        self, batches: list[tuple[Tensor, Tensor]],
        augment: Callable[[Tensor, torch.Generator], Tensor], seed: int,
    ) -> None:
        self.batches, self.augment = batches, augment
        self.generator = torch.Generator().manual_seed(seed)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for x, y in self.batches:
            yield self.augment(x, self.generator), y


def shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """A batch moved by up to four pixels."""
    size = images.shape[-1]
    padded = F.pad(images, (4, 4, 4, 4), value=float(images.min()))
    top, left = torch.randint(9, (2,), generator=generator).tolist()
    return padded[..., top : top + size, left : left + size]


def erased(images: Tensor, generator: torch.Generator) -> Tensor:
    """Half of a batch with a random share of its tiles set to the mean colour."""
    n, _, height, width = images.shape
    share = torch.rand(n, 1, 1, 1, generator=generator)
    share[torch.rand(n, generator=generator) < 0.5] = 0
    kept = torch.rand(n, 1, height // TILE, width // TILE, generator=generator) >= share
    kept = kept.to(images)
    return images * kept.repeat_interleave(TILE, 2).repeat_interleave(TILE, 3)


def pasted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Half of a batch with a rectangle of another image (CutMix, Yun et al., 2019)."""
    n, _, height, width = images.shape

    def span(length: int) -> Tensor:
        centre, extent = torch.rand(2, n, 1, generator=generator)
        return (torch.arange(length) / length - centre).abs() < 0.2 + 0.3 * extent

    inside = span(height)[:, None, :, None] & span(width)[:, None, None]
    inside &= torch.rand(n, 1, 1, 1, generator=generator) < 0.5
    others = images[torch.randperm(n, generator=generator)]
    return torch.where(inside.to(images.device), others, images)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", type=int, default=6000)
    parser.add_argument("--epochs", type=int, default=6, help="of training the network")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--n", type=int, default=300, help="test scenes")
    parser.add_argument("--mosaics", type=int, default=100)
    parser.add_argument("--confidence", type=float, default=0.9, help="of scenes in mosaics")
    parser.add_argument("--rows", nargs="+", help="names of rows, by their beginnings")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/choices"))
    options = parser.parse_args()
    without_tf32()
    train = digit_scenes(options.train, "train", options.seed)
    torch.manual_seed(options.seed)
    model = DigitResNet().to(DEVICE).fit(train, options.epochs, seed=options.seed)
    photos = as_photographs(digit_scenes(3 * options.n, "test", options.seed))
    evaluation = Evaluation(
        model, evaluation_set(model, photos, options.n),
        mosaics(model, photos, options.mosaics, options.confidence, options.seed), 1, options.seed,
    )
    metrics = evaluation.possible(LEADING)
    attr = fitted(model, train, Choice(), options)
    kappa = attr.history.kappa
    assert kappa is not None
    default = measured(attr, Choice(), evaluation)
    note = (
        f"{len(evaluation.photos.images)} correctly classified test scenes, "
        f"{len(evaluation.grids.images)} mosaics. First row: mean ± standard error; below it the "
        "paired differences from the first, one choice changed at a time.\n\n"
        + provenance(model="DigitResNet", fitted_on=options.train, steps=options.steps,
                     kappa=f"{kappa:.3f} nats", seed=options.seed)
    )
    rows: list[list[str]] = []

    def add(name: str, values: list[Tensor]) -> None:
        rows.append([name, *map(mean_and_error, values)])
        print(*rows[-1], sep="  ", flush=True)
        write_table(options.out, "Choices of the fit, digit scenes", ["", *metrics], rows, note)

    add(DEFAULT, default)
    for name, choice in choices(kappa, options.steps).items():
        if options.rows and not name.startswith(tuple(options.rows)):
            continue
        same = choice == Choice(call=choice.call)
        other = attr if same else fitted(model, train, choice, options)
        values = measured(other, choice, evaluation)
        add(name, [value - base for value, base in zip(values, default)])


def as_photographs(scenes: Scenes) -> Photographs:
    """Scenes with the digit's own ink in place of a box."""
    return Photographs(scenes.images, scenes.labels[:, 0], scenes.masks[:, 0],
                       [str(digit) for digit in range(10)])


def fitted(
    model: nn.Module, train: Scenes, choice: Choice, options: argparse.Namespace
) -> InfoBottleneckAttribution:
    """A fit with a choice."""
    labels = train.labels[:, 0]
    loader: Any = list(zip(train.images.split(64), labels.split(64)))
    if choice.augment:
        loader = Augmented(loader, choice.augment, options.seed)
    attr = InfoBottleneckAttribution(model, **choice.design)
    fit = {"steps": options.steps, "seed": options.seed, **choice.fit}
    attr.fit(loader, **fit)
    return attr


def measured(
    attr: InfoBottleneckAttribution, choice: Choice, evaluation: Evaluation
) -> list[Tensor]:
    """Figures of merit per scene."""

    def explain(images: Tensor, target: Tensor) -> Tensor:
        if not len(images):
            return images
        return attr.attribute(
            images, **{"target": target, "internal_batch_size": 50, **choice.call})

    photos, grids = evaluation.photos, evaluation.grids
    heat = Heat(explain(photos.images, photos.labels), explain(grids.images, grids.targets))
    metrics = evaluation.possible(LEADING)
    return [evaluation.measure(metric, heat) for metric in metrics]


if __name__ == "__main__":
    main()
