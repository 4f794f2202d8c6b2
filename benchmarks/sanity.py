"""Sanity: do maps depend on the model's parameters, and does the mask give the class away?

    python benchmarks/sanity.py --out benchmarks/results/sanity
    python benchmarks/sanity.py --data photographs.npz --weights resnet18.pt --fits fits

Parameters are randomised from the top down (Adebayo et al., 2018), with the fit kept and, on digit
scenes, fitted anew on every randomised network; the mask of one image is laid on another
(Jethani et al., 2021). Writes ``OUT.csv`` and ``OUT.md``.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from evaluation import DEVICE, digit_scenes, without_tf32
from peers.captum_methods import grad_cam, integrated_gradients
from photographs import load, load_model
from report import mean_and_error, provenance, write_table
from torch import Tensor, nn

from captum_mi import InfoBottleneckAttribution
from captum_mi.datasets import DigitResNet
from captum_mi.metrics import cascading_randomization, mask_leak

sys.path.append(str(Path(__file__).parents[1] / "examples"))
from fits import read_or_made

CASCADE = ["fc", "layer4", "layer3", "layer2", "layer1", "conv1"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="npz index of photographs; default: digit scenes")
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--weights")
    parser.add_argument("--fits", type=Path, help="folder of a fit, saved if missing")
    parser.add_argument("--train", type=int, default=4000)
    parser.add_argument("--epochs", type=int, default=5, help="of training on digit scenes")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--n", type=int, default=60, help="images of the cascade")
    parser.add_argument("--leak", type=int, default=500, help="images of the leak test")
    parser.add_argument("--refit", action="store_true", help="also fit every randomised network")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/sanity"))
    options = parser.parse_args()
    without_tf32()

    model, train, test, labels = on_photographs(options) if options.data else on_scenes(options)
    loader = list(train.split(64))
    attr = fitted(model, loader, options)
    images, targets = test[: options.n], labels[: options.n]
    explain = {
        "captum_mi, fit kept": lambda copy: attr.bind(copy).attribute(images, targets),
        "captum_mi, refine_steps=9, fit kept": lambda copy: attr.bind(copy).attribute(
            images, targets, refine_steps=9),
        "captum_mi, weighting='none', fit kept": lambda copy: attr.bind(copy).attribute(
            images, targets, weighting="none"),
        "Integrated Gradients (absolute)": lambda copy: integrated_gradients(
            copy, images, targets).abs(),
        "Grad-CAM (positive)": lambda copy: grad_cam(copy, "layer4", images, targets),
    }
    if options.refit:
        explain["captum_mi, fitted anew"] = lambda copy: fit(copy, loader, options).attribute(
            images, targets)
    rows = []
    for name, method in explain.items():
        cascade = cascading_randomization(
            model, lambda copy, f=method: f(copy).detach().sum(1), CASCADE, options.seed
        )
        rows.append([name, *map(mean_and_error, cascade.similarity)])
        print(*rows[-1], sep="  ", flush=True)

    leak = mask_leak(
        lambda masks, features: attr.predict_noised(features, alpha_inputs=masks),
        test[: options.leak], labels[: options.leak], seed=options.seed,
    )
    note = (
        f"Structural similarity with the maps of the trained network, {len(images)} images, mean "
        "± standard error, while parameters are randomised from the top down, each column on top "
        "of those to its left. The heads read layer2, layer3 and layer4, so that a random fc "
        "alone changes only refined maps. Leak of the mask, over "
        f"{len(leak.nats)} images: {mean_and_error(leak.nats)} nats; mask's own class predicted "
        f"{mean_and_error(leak.found)}, with another mask {mean_and_error(leak.chance)}.\n\n"
        + provenance(model=options.model if options.data else "DigitResNet",
                     layers="+".join(attr.layers), steps=options.steps, seed=options.seed)
    )
    title = "Sanity on " + ("photographs" if options.data else "digit scenes")
    print(write_table(options.out, title, ["method", *CASCADE], rows, note))


def on_scenes(options: argparse.Namespace) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """A network trained on digit scenes, images to fit on, images and labels to explain."""
    torch.manual_seed(options.seed)
    train = digit_scenes(options.train, "train", options.seed)
    test = digit_scenes(max(options.n, options.leak), "test", options.seed)
    model = DigitResNet().to(DEVICE).fit(train, options.epochs, seed=options.seed)
    return model, train.images, test.images, test.labels[:, 0]


def on_photographs(options: argparse.Namespace) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """The same with a given network."""
    model, view = load_model(options.model, options.weights)
    train, test = (
        load(options.data, split, n, options.seed, view).to(DEVICE)
        for n, split in ((options.train, "train"), (max(options.n, options.leak), "validation"))
    )
    return model.to(DEVICE), train.images, test.images, test.labels


def fit(
    model: nn.Module, loader: list[Tensor], options: argparse.Namespace
) -> InfoBottleneckAttribution:
    """A fit at the default layers."""
    attr = InfoBottleneckAttribution(model)
    attr.fit(loader, options.steps, seed=options.seed)
    return attr


def fitted(
    model: nn.Module, loader: list[Tensor], options: argparse.Namespace
) -> InfoBottleneckAttribution:
    """A fit, loaded if one of these settings was saved."""
    settings = f"{options.steps}-of-{options.train}-seed-{options.seed}"
    path = options.fits and options.fits / f"{settings}.safetensors"
    return read_or_made(path, model, lambda: fit(model, loader, options))


if __name__ == "__main__":
    main()
