"""Train a small ResNet on digit scenes, fit the bottleneck, and look at where the information is.

    python examples/digit_scenes_demo.py --out demo_output

Writes ``panel.png`` (our four maps beside four of Captum's methods), ``two_digits.png`` (one
scene explained for each of its digits) and ``history.png``, and prints a table.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from captum.attr import (
    IntegratedGradients,
    LayerAttribution,
    LayerGradCam,
    NoiseTunnel,
    Occlusion,
    Saliency,
)
from matplotlib.figure import Figure
from torch import Tensor, nn

from captum_mi import InfoBottleneckAttribution
from captum_mi.datasets import DigitResNet, Scenes, make_scenes
from captum_mi.metrics import effective_heat_ratio, inside_box, pointing
from captum_mi.visualize import panel

LAYERS = ["layer2", "layer3"]
NATS = "nats / pixel"

Method = Callable[[Tensor, Tensor], Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("demo_output"), help="folder of figures")
    parser.add_argument("--scenes", type=int, default=5000, help="training scenes")
    parser.add_argument("--test", type=int, default=60, help="scenes in the table")
    parser.add_argument("--epochs", type=int, default=5, help="of training the network")
    parser.add_argument("--steps", type=int, default=200, help="steps of the fit")
    parser.add_argument("--seed", type=int, default=0, help="of all that is random")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(options.seed)
    start = time.perf_counter()

    train = make_scenes(options.scenes, seed=options.seed)
    test = make_scenes(options.test, split="test", seed=options.seed)
    model = DigitResNet().fit(train, options.epochs, seed=options.seed)
    print(f"accuracy on scenes of unseen scans: {accuracy(model, test):.3f}")

    # The library in four lines: choose layers, fit once, attribute anything.
    attr = InfoBottleneckAttribution(model, LAYERS)
    history = attr.fit(list(train.images.split(64)), steps=options.steps, seed=options.seed)
    maps = attr.attribute(test.images, target=test.labels[:, 0])
    assert maps.shape == test.images.shape

    history.plot().savefig(options.out / "history.png", dpi=110)
    compared = methods(model, attr)
    panel_figure(compared, test).savefig(options.out / "panel.png", dpi=110)
    two_digits_figure(attr, options.seed).savefig(options.out / "two_digits.png", dpi=110)
    print(table(compared, test))
    print(f"figures in {options.out}/, {time.perf_counter() - start:.0f} s in all")


@torch.no_grad()
def accuracy(model: nn.Module, scenes: Scenes) -> float:
    return float((model(scenes.images).argmax(1) == scenes.labels[:, 0]).float().mean())


def methods(model: nn.Module, attr: InfoBottleneckAttribution) -> dict[str, Method]:
    """Title -> function from images and targets to maps of the images' shape."""
    integrated, tunnel, occlusion = (
        IntegratedGradients(model), NoiseTunnel(Saliency(model)), Occlusion(model)
    )
    gradcam = LayerGradCam(model, model.get_submodule("layer4"))

    def grad_cam(x: Tensor, t: Tensor) -> Tensor:
        coarse = gradcam.attribute(x, t, relu_attributions=True)
        return LayerAttribution.interpolate(coarse, x.shape[2:], "bilinear")

    return {
        "sufficient": lambda x, t: attr.attribute(x, t),
        "log ratio": lambda x, t: attr.attribute(x, t, weighting="none"),
        "general": lambda x, t: attr.attribute(x, t, information="general"),
        "redundant": lambda x, t: attr.attribute(x, t, information="redundant"),
        "Integrated Gradients": lambda x, t: integrated.attribute(
            x, target=t, n_steps=50, internal_batch_size=500).abs(),
        "SmoothGrad of magnitudes": lambda x, t: tunnel.attribute(
            x, nt_samples=50, nt_samples_batch_size=10, stdevs=0.2, target=t),
        "Occlusion": lambda x, t: occlusion.attribute(
            x, (1, 9, 9), (1, 3, 3), target=t, perturbations_per_eval=16),
        "Grad-CAM": grad_cam,
    }


def panel_figure(compared: dict[str, Method], test: Scenes) -> Figure:
    """Every method on the first scenes, for the digit that is there."""
    images, target = test.images[:5], test.labels[:5, 0]
    units = {"Integrated Gradients": "|logit|", "SmoothGrad of magnitudes": "|logit| / ink",
             "Occlusion": "logit", "Grad-CAM": "no unit"}
    return panel(
        images,
        {name: method(images, target).detach() for name, method in compared.items()},
        titles=[f"digit {int(t)}" for t in target],
        units={name: units.get(name, NATS) for name in compared},
        title="Where is the information about the digit?",
    )


def two_digits_figure(attr: InfoBottleneckAttribution, seed: int) -> Figure:
    """Scenes of two digits, explained for each: the same pass, another target."""
    scenes = make_scenes(4, objects=2, split="test", seed=seed)
    maps = {
        f"evidence for the {name} digit": attr.attribute(scenes.images, scenes.labels[:, k])
        for k, name in enumerate(("first", "second"))
    }
    titles = [f"{int(a)} and {int(b)}" for a, b in scenes.labels]
    return panel(
        scenes.images, maps, titles, dict.fromkeys(maps, NATS),
        title="One scene, two digits: evidence for each", cell=2.3,
    )


def table(compared: dict[str, Method], test: Scenes) -> str:
    """Localization against the digits' own ink, and milliseconds per image."""
    lines = [f"{'method':24}{'EHR':>8}{'in mask':>9}{'pointing':>10}{'ms/image':>10}"]
    images, target, masks = test.images, test.labels[:, 0], test.masks[:, 0]
    for name, method in compared.items():
        method(images[:4], target[:4])  # warm-up
        start = time.perf_counter()
        heat = method(images, target).detach().sum(1)
        ms = 1000 * (time.perf_counter() - start) / len(images)
        figures = [m(heat, masks).mean() for m in (effective_heat_ratio, inside_box, pointing)]
        lines.append(
            f"{name:24}{figures[0]:8.3f}{figures[1]:9.3f}{figures[2]:10.3f}{ms:10.2f}"
        )
    chance = masks.float().mean()
    lines.append(f"{'(chance)':24}{chance:8.3f}{chance:9.3f}{chance:10.3f}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
