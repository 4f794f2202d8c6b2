"""What does a representation keep of its input, what of that does it need, and what is left over?

    python examples/representation_analysis.py --out analysis_output
    python examples/representation_analysis.py --data photographs.npz --out analysis_output \
        --regimes classifier=resnet18:resnet18.pt prototypical=resnet18:protonet18.pt \
        --embeddings prototypical

Compares training regimes of one network on the same images: general information I(x; y),
sufficient information I(x'; y) and redundant information (their difference) of each layer, as
maps, as a bar chart with 95 % intervals in bits, as a table, and over checkpoints as an
information plane. Without ``--data`` the regimes are two networks on digit scenes, one trained to
tell the digit, one to tell the quadrant that it lies in, with a checkpoint after every epoch.
"""

from __future__ import annotations

import argparse
import copy
import csv
from pathlib import Path

import torch
import torchvision
from matplotlib.figure import Figure
from networks import classes_of
from torch import Tensor, nn

from captum_mi import Estimate, InfoBottleneckAttribution
from captum_mi.datasets import DigitResNet, IndexedPhotographs, Scenes, View, make_scenes
from captum_mi.visualize import panel

KINDS = ("general", "sufficient", "redundant")
Figures = dict[str, dict[str, Estimate]]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--data", type=Path,
                        help=".npz index of photographs (see captum_mi.datasets."
                             "IndexedPhotographs); default: digit scenes")
    parser.add_argument("--regimes", nargs="+", default=[], metavar="NAME=MODEL:WEIGHTS",
                        help="torchvision networks on --data, compared in this order")
    parser.add_argument("--embeddings", nargs="+", default=[], metavar="NAME",
                        help="regimes whose fc returns an embedding instead of class logits")
    parser.add_argument("--layers", nargs="+", default=["layer1", "layer2", "layer3"],
                        help="whose information is measured")
    parser.add_argument("--size", type=int, default=96,
                        help="height and width of inputs from --data")
    parser.add_argument("--train", type=int, default=4000, help="images to fit on")
    parser.add_argument("--test", type=int, default=500, help="images to measure on")
    parser.add_argument("--epochs", type=int, default=5, help="of training on digit scenes")
    parser.add_argument("--steps", type=int, default=300, help="of each fit")
    parser.add_argument("--batch", type=int, default=64, help="images in a batch")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu",
                        help="where everything runs")
    parser.add_argument("--seed", type=int, default=0, help="of all that is random")
    parser.add_argument("--out", type=Path, default=Path("analysis_output"),
                        help="folder of results")
    options = parser.parse_args()
    if bool(options.data) != bool(options.regimes):
        parser.error("--data and --regimes go together; without both, digit scenes are taken")
    options.out.mkdir(parents=True, exist_ok=True)

    if options.data:
        regimes, train, test = from_files(options)
        checkpoints: dict[str, list[nn.Module]] = {}
    else:
        regimes, checkpoints, train, test = on_digit_scenes(options)
    results: dict[str, Figures] = {}
    for name, model in regimes.items():
        attr = analysed(name, model, train, options)
        results[name] = figures_of(attr, test, options)
        maps_figure(attr, test[:4].to(options.device), name).savefig(
            options.out / f"maps_{name}.png", dpi=110)
    write_table(results, options.out / "information")
    bar_chart(results).savefig(options.out / "information.png", dpi=110)
    if checkpoints:
        plane = {
            name: [figures_of(analysed(name, model, train, options), test, options)
                   for model in course]
            for name, course in checkpoints.items()
        }
        information_plane(plane).savefig(options.out / "plane.png", dpi=110)
    print((options.out / "information.md").read_text())
    print(f"figures in {options.out}/")


def from_files(options: argparse.Namespace) -> tuple[dict[str, nn.Module], Tensor, Tensor]:
    """Networks with weights, and photographs to fit and to measure on."""
    view = View(options.size, (0.48, 0.45, 0.40), (0.28, 0.27, 0.28), antialias=False)
    train, test = (
        images_of(IndexedPhotographs(options.data, split, view), n, options.seed)
        for split, n in ((0, options.train), (1, options.test))
    )
    regimes = {}
    for choice in options.regimes:
        name, _, source = choice.partition("=")
        kind, _, path = source.partition(":")
        state = torch.load(path, map_location="cpu", weights_only=True)
        model = torchvision.models.get_model(kind, num_classes=classes_of(state))
        model.load_state_dict(state)
        regimes[name] = model.eval()
    return regimes, train, test


def images_of(photographs: IndexedPhotographs, n: int, seed: int) -> Tensor:
    """Some photographs, drawn at random."""
    order = torch.randperm(len(photographs), generator=torch.Generator().manual_seed(seed))
    return torch.stack([photographs[i][0] for i in order[:n].tolist()])


def on_digit_scenes(
    options: argparse.Namespace,
) -> tuple[dict[str, nn.Module], dict[str, list[nn.Module]], Tensor, Tensor]:
    """Two networks trained on the same scenes for independent factors, epoch by epoch."""
    train = make_scenes(options.train, seed=options.seed)
    test = make_scenes(options.test, split="test", seed=options.seed)
    regimes: dict[str, nn.Module] = {}
    checkpoints: dict[str, list[nn.Module]] = {}
    for name, labels, classes in (("digit", train.labels, 10), ("quadrant", quadrant(train), 4)):
        torch.manual_seed(options.seed)
        model = DigitResNet(classes=classes)
        course: list[nn.Module] = [copy.deepcopy(model).eval()]
        for epoch in range(options.epochs):
            model.fit(train._replace(labels=labels), 1, seed=options.seed + epoch)
            course.append(copy.deepcopy(model))
        regimes[name], checkpoints[name] = model, course
    return regimes, checkpoints, train.images, test.images


def quadrant(scenes: Scenes) -> Tensor:
    """Quadrant of the first digit's middle, ``(N, 1)``: 0 to 3, row by row."""
    mask = scenes.masks[:, 0].float()
    total = mask.sum((1, 2))
    axis = torch.arange(mask.shape[1], device=mask.device) + 0.5
    y, x = (mask.sum(2) @ axis) / total, (mask.sum(1) @ axis) / total
    half = mask.shape[1] / 2
    return (2 * (y > half) + (x > half)).long()[:, None]


def analysed(
    name: str, model: nn.Module, train: Tensor, options: argparse.Namespace
) -> InfoBottleneckAttribution:
    """One fit. Clean and noised features have heads of one kind, trained on the same examples.

    y is what ``fc`` returns: class probabilities of a classifier, an embedding otherwise.
    """
    attr = InfoBottleneckAttribution(
        model.to(options.device), options.layers, global_layer="fc",
        output="gaussian" if name in options.embeddings else "categorical",
    )
    attr.fit(list(train.split(options.batch)), options.steps, seed=options.seed)
    return attr


def figures_of(
    attr: InfoBottleneckAttribution, test: Tensor, options: argparse.Namespace
) -> Figures:
    """Dataset means per layer, in bits."""
    return attr.information(list(test.split(options.batch)), unit="bits", seed=options.seed)


def maps_figure(attr: InfoBottleneckAttribution, images: Tensor, name: str) -> Figure:
    """The three maps of some images, without a target: about y as a whole."""
    maps = {kind: attr.attribute(images, information=kind, unit="bits") for kind in KINDS}
    return panel(images, maps, units=dict.fromkeys(maps, "bits / pixel"), cell=2.3,
                 title=f"What y keeps of the input: {name}")


def write_table(results: dict[str, Figures], stem: Path) -> None:
    """``stem.csv`` and ``stem.md``."""
    rows = [
        [name, layer, *(f"{value[kind].mean:.4f} ± {1.96 * value[kind].standard_error:.4f}"
                        for kind in (*KINDS, "capacity"))]
        for name, figures in results.items() for layer, value in figures.items()
    ]
    header = ["regime", "layer", *KINDS, "capacity"]
    with open(stem.with_suffix(".csv"), "w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    lines = ["Bits per position, mean and 95 % interval over images.", "",
             "| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    stem.with_suffix(".md").write_text("\n".join(lines) + "\n")


def bar_chart(results: dict[str, Figures]) -> Figure:
    """General, sufficient and redundant information of each layer, regimes side by side."""
    figure = Figure(figsize=(3.6 * len(results), 3.4), layout="constrained")
    axes = figure.subplots(1, len(results), sharey=True, squeeze=False)[0]
    for axis, (name, figures) in zip(axes, results.items()):
        for k, kind in enumerate(KINDS):
            values = [figures[layer][kind] for layer in figures]
            axis.bar(
                [i + 0.27 * (k - 1) for i in range(len(values))], [v.mean for v in values], 0.25,
                yerr=[1.96 * v.standard_error for v in values], label=kind, capsize=2,
            )
        axis.set_xticks(range(len(figures)), list(figures))
        axis.set_title(name)
        axis.axhline(0, color="black", lw=0.6)
    axes[0].set_ylabel("bits per position (95 % interval)")
    axes[-1].legend(frameon=False, fontsize=8)
    return figure


def information_plane(plane: dict[str, list[Figures]]) -> Figure:
    """General against sufficient information of each layer, from the first checkpoint on."""
    figure = Figure(figsize=(4.4 * len(plane), 3.8), layout="constrained")
    axes = figure.subplots(1, len(plane), squeeze=False)[0]
    for axis, (name, course) in zip(axes, plane.items()):
        for layer in course[0]:
            x = [figures[layer]["general"].mean for figures in course]
            y = [figures[layer]["sufficient"].mean for figures in course]
            (line,) = axis.plot(x, y, "-", lw=1, label=layer)
            axis.scatter(x, y, s=[10 + 8 * i for i in range(len(x))], color=line.get_color())
        top = max(axis.get_xlim()[1], axis.get_ylim()[1])
        axis.plot([0, top], [0, top], ":", color="grey", lw=0.8)
        axis.set(title=name, xlabel="general: I(x; y), bits per position",
                 ylabel="sufficient: I(x'; y), bits per position")
    axes[-1].legend(frameon=False, fontsize=8, title="checkpoints grow")
    return figure


if __name__ == "__main__":
    main()
