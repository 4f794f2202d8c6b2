"""Fit on photographs and compare maps with those of other methods, on the same images.

    python benchmarks/real_photographs.py --data photographs.npz --weights resnet18.pt \
        --model resnet18 --out benchmarks/results/resnet18

Writes CSV, Markdown and figures of the results: ``OUT.csv``, ``OUT.md``, ``OUT_curves.png`` and
``OUT_history.png``; with ``--pictures DIR`` also a panel of maps on photographs.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from captum.attr import (
    IntegratedGradients,
    LayerAttribution,
    LayerGradCam,
    NoiseTunnel,
    Occlusion,
    Saliency,
)
from matplotlib.figure import Figure
from photographs import Photographs, load, load_model
from report import mean_and_error, provenance, write_table
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from tqdm import tqdm

from captum_mi import InfoBottleneckAttribution
from captum_mi.metrics import (
    Curves,
    degradation,
    effective_heat_ratio,
    grid_pointing,
    inside_box,
    pointing,
)
from captum_mi.visualize import panel

Method = Callable[[Tensor, Tensor], Tensor]


def methods(model: nn.Module, attr: InfoBottleneckAttribution, seed: int) -> dict[str, Method]:
    """Name -> function from images and targets to heat ``(N, H, W)``, summed over channels."""
    integrated, saliency = IntegratedGradients(model), NoiseTunnel(Saliency(model))
    occlusion, gradcam = Occlusion(model), LayerGradCam(model, model.get_submodule("layer4"))

    def smoothgrad(x: Tensor, t: Tensor) -> Tensor:
        return saliency.attribute(x, nt_samples=50, nt_samples_batch_size=10, stdevs=0.3, target=t)

    def grad_cam(x: Tensor, t: Tensor) -> Tensor:
        coarse = gradcam.attribute(x, t, relu_attributions=True)
        return LayerAttribution.interpolate(coarse, x.shape[2:], "bilinear")

    def noise(x: Tensor, t: Tensor) -> Tensor:
        return torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)).to(x.device)

    per_channel: dict[str, Method] = {
        "captum_mi": lambda x, t: attr.attribute(x, t),
        "captum_mi, weighting='none'": lambda x, t: attr.attribute(x, t, weighting="none"),
        "Integrated Gradients 50 (absolute)": lambda x, t: integrated.attribute(
            x, target=t, n_steps=50, internal_batch_size=500).abs(),
        "SmoothGrad 50 (absolute)": smoothgrad,
        "Occlusion 16/8 (signed)": lambda x, t: occlusion.attribute(
            x, (3, 16, 16), (3, 8, 8), target=t, perturbations_per_eval=4),
        "Grad-CAM layer4 (positive)": grad_cam,
        "random": noise,
    }
    return {
        name: lambda x, t, f=f: f(x, t).detach().sum(1)  # type: ignore[misc]
        for name, f in per_channel.items()
    }


def probability(model: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """Softmax probability of the target."""
    return lambda x, t: F.softmax(model(x), 1).gather(1, t[:, None])[:, 0]


@torch.no_grad()
def evaluation_set(model: nn.Module, photos: Photographs, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Correctly classified images whose box covers less than half of them: the first n."""
    predicted = torch.cat([model(part).argmax(1) for part in photos.images.split(200)])
    small = photos.boxes.float().mean((1, 2)) < 0.5
    keep = ((predicted == photos.labels) & small).nonzero()[:n, 0]
    return photos.images[keep], photos.labels[keep], photos.boxes[keep]


@torch.no_grad()
def mosaics(
    model: nn.Module, photos: Photographs, n: int, confidence: float, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """2x2 mosaics of confidently classified images of distinct classes, a class and its cell."""
    p = torch.cat([F.softmax(model(part), 1) for part in photos.images.split(200)])
    confident = (p.gather(1, photos.labels[:, None])[:, 0] >= confidence).nonzero()[:, 0]
    generator = torch.Generator().manual_seed(seed)
    grids, targets = [], []
    while len(grids) < n:
        four = confident[torch.randperm(len(confident), generator=generator)[:4]]
        if len(photos.labels[four].unique()) < 4:
            continue
        tiles = photos.images[four]
        rows = torch.cat([tiles[0], tiles[1]], 2), torch.cat([tiles[2], tiles[3]], 2)
        grids.append(torch.cat(rows, 1))
        targets.append(photos.labels[four[len(targets) % 4]])
    return torch.stack(grids), torch.stack(targets), torch.arange(n) % 4


def seconds_per_image(call: Callable[..., object], *batch: Tensor) -> float:
    """Median of three timed calls on a batch after a warm-up, synchronised."""
    times = []
    for _ in range(4):
        start = time.perf_counter()
        call(*batch)
        if batch[0].is_cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return sorted(times[1:])[1] / len(batch[0])


def in_parts(method: Method, images: Tensor, targets: Tensor, size: int, name: str) -> Tensor:
    """Heat of all images, a few at a time."""
    parts = list(zip(images.split(size), targets.split(size)))
    return torch.cat([method(x, t) for x, t in tqdm(parts, desc=name, unit="batch")])


def figure_of_curves(curves: dict[str, Curves], tile: int) -> Figure:
    """Mean MoRF and LeRF curves of every method."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for axis, kind, title in zip(
        axes, ("morf", "lerf"), ("most relevant tiles first", "least relevant tiles first")
    ):
        for name, result in curves.items():
            mean = getattr(result, kind).mean(0).cpu()
            axis.plot(torch.linspace(0, 100, len(mean)), mean, lw=1.2, label=name)
        axis.set(title=title, xlabel=f"{tile}x{tile} tiles removed, %")
    axes[0].set_ylabel("probability of the target")
    axes[1].legend(fontsize=7, frameon=False)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="npz file of photographs with boxes")
    parser.add_argument("--weights", required=True, help="state_dict of the model")
    parser.add_argument("--model", default="resnet18", help="torchvision name")
    parser.add_argument("--layers", nargs="+", default=["layer2", "layer3"])
    parser.add_argument("--n", type=int, default=120, help="evaluation images")
    parser.add_argument("--mosaics", type=int, default=60)
    parser.add_argument("--skip", type=int, default=0,
                        help="first validation images to leave out: settings were chosen there")
    parser.add_argument("--confidence", type=float, default=0.9, help="of images in mosaics")
    parser.add_argument("--train", type=int, default=6400, help="images to fit on")
    parser.add_argument("--steps", type=int, default=700)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fit", type=Path, help="load this fit, or save to it if it is missing")
    parser.add_argument("--only", nargs="+", help="names of methods to run, by their beginnings")
    parser.add_argument("--pictures", type=Path, help="folder for panels that show photographs")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/photographs"))
    options = parser.parse_args()

    origin = provenance(
        model=options.model, layers="+".join(options.layers), fitted_on=options.train,
        batch=options.batch, seed=options.seed, skipped=options.skip,
    )
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = load_model(options.model, options.weights).to(device)
    attr = fitted(model, options)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    attr.history.plot().savefig(f"{options.out}_history.png", dpi=110)

    photos = load(options.data, 1, None, options.seed)
    arrays = (x[options.skip:].to(device) for x in (photos.images, photos.labels, photos.boxes))
    photos = Photographs(*arrays, photos.names)
    images, labels, boxes = evaluation_set(model, photos, options.n)
    grids, grid_targets, cells = mosaics(
        model, photos, options.mosaics, options.confidence, options.seed
    )
    with torch.no_grad():
        forward = seconds_per_image(model, images[:50])

    rows, curves, maps = [], {}, {}
    for name, method in methods(model, attr, options.seed).items():
        if options.only and not any(name.startswith(start) for start in options.only):
            continue
        heat = maps[name] = in_parts(method, images, labels, 20, name)
        grid_heat = in_parts(method, grids, grid_targets, 5, f"{name}, mosaics")
        curves[name] = degradation(probability(model), images, heat, labels)
        many_passes = any(name.startswith(slow) for slow in ("Integrated", "Smooth", "Occlusion"))
        timed = 5 if many_passes else 50
        cost = seconds_per_image(method, images[:timed], labels[:timed])
        rows.append([
            name,
            mean_and_error(curves[name].area),
            mean_and_error(effective_heat_ratio(heat, boxes)),
            mean_and_error(inside_box(heat, boxes)),
            mean_and_error(pointing(heat, boxes)),
            mean_and_error(grid_pointing(grid_heat, cells)),
            f"{1000 * cost:.2f}",
            f"{cost / forward:.2f}",
        ])
        print(*rows[-1], sep="  ", flush=True)

    header = ["method", "degradation", "EHR", "box", "pointing", "GridPG", "ms/image",
              "forward passes"]
    note = (
        f"{len(images)} correctly classified validation images with a box under half of the "
        f"image, {len(grids)} mosaics; mean ± standard error. Plain forward pass: "
        f"{1000 * forward:.2f} ms/image. Fit: {len(attr.history)} steps in "
        f"{attr.history.seconds:.0f} s.\n\n{origin}"
    )
    print(write_table(options.out, f"Photographs, {options.model}", header, rows, note))
    figure_of_curves(curves, 8).savefig(f"{options.out}_curves.png", dpi=110)
    if options.pictures:
        options.pictures.mkdir(parents=True, exist_ok=True)
        shown = {name: heat[:6] for name, heat in maps.items()}
        units = {name: "nats / pixel" for name in shown if name.startswith("captum_mi")}
        panel(images[:6], shown, units=units).savefig(options.pictures / "panel.png", dpi=90)


def fitted(model: nn.Module, options: argparse.Namespace) -> InfoBottleneckAttribution:
    """The fit: loaded if it was saved, else made on training images."""
    if options.fit and options.fit.exists():
        return InfoBottleneckAttribution.load(options.fit, model)
    train = load(options.data, 0, options.train, options.seed)
    loader = DataLoader(
        TensorDataset(train.images, train.labels), options.batch, shuffle=True, drop_last=True
    )
    attr = InfoBottleneckAttribution(model, options.layers)
    attr.fit(loader, steps=options.steps, seed=options.seed)
    if options.fit:
        options.fit.parent.mkdir(parents=True, exist_ok=True)
        attr.save(options.fit)
    return attr


if __name__ == "__main__":
    main()
