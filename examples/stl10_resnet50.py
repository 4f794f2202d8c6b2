"""A ResNet-50 on STL-10: where in an image is the information about the network's output?

    python examples/stl10_resnet50.py --data stl10 --download --epochs 60 --out stl10_output

Trains the network (or takes ``--weights``), fits the bottleneck twice, at the last block of
``layer1`` as the source does and at our default layers, and draws for each overlay, heat map and
original of several images: I(x'; y), the information that passes the bottleneck. The global
representation is the output of ``fc``; the inference network reads the last block of every stage.
``--data`` is the folder of STL-10, or an ``.npz`` index with the splits 0 train and 1 validation.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
import torchvision
from matplotlib.figure import Figure
from networks import classes_of, torchvision_weights
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import STL10
from tqdm import tqdm
from training import train

from captum_mi import InfoBottleneckAttribution
from captum_mi.datasets import IndexedPhotographs, View

WORKERS = min(8, os.cpu_count() or 1)  # that read photographs
CHOICES = {"layer1, as the source": ["layer1"], "default layers": None}

Photographs = STL10 | IndexedPhotographs


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("stl10"),
                        help="folder with stl10_binary, or an .npz index of photographs (see "
                             "captum_mi.datasets.IndexedPhotographs)")
    parser.add_argument("--download", action="store_true", help="fetch STL-10 into --data")
    parser.add_argument("--model", default="resnet50", help="torchvision ResNet")
    parser.add_argument("--weights", help="state_dict, or a name of torchvision's weights enum")
    parser.add_argument("--epochs", type=int, default=60, help="of training, without --weights")
    parser.add_argument("--size", type=int, default=96, help="height and width of inputs")
    parser.add_argument("--mean", type=float, nargs=3, default=(0.48, 0.45, 0.40),
                        help="mean of each colour, of pixels in [0, 1]")
    parser.add_argument("--std", type=float, nargs=3, default=(0.28, 0.27, 0.28),
                        help="standard deviation of each colour")
    parser.add_argument("--batch", type=int, default=64, help="images in a batch")
    parser.add_argument("--steps", type=int, default=700, help="of each fit")
    parser.add_argument("--images", type=int, default=6, help="in the figures")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu",
                        help="where everything runs")
    parser.add_argument("--seed", type=int, default=0, help="of all that is random")
    parser.add_argument("--out", type=Path, default=Path("stl10_output"), help="folder of results")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    training, validation = open_data(options)
    model = build(options, len(training.classes))
    if not options.weights:
        train_classifier(model, training, options)
    print(f"accuracy: {accuracy(model, validation, options):.3f}")

    generator = torch.Generator().manual_seed(options.seed)
    chosen = torch.randperm(len(validation), generator=generator)[: options.images].tolist()
    images = torch.stack([validation[i][0] for i in chosen]).to(options.device)
    for name, layers in CHOICES.items():
        attr = InfoBottleneckAttribution(model, layers, global_layer="fc")
        history = attr.fit(loader_of(training, options), options.steps, seed=options.seed)
        print(f"{name}: {'+'.join(attr.layers)}, {history.seconds:.0f} s")
        stem = options.out / "-".join(attr.layers)
        attr.save(f"{stem}.safetensors")
        history.plot().savefig(f"{stem}_history.png", dpi=110)
        titles = [validation.classes[validation[i][1]].split(",")[0] for i in chosen]
        figure(images, attr.attribute(images), titles, name).savefig(f"{stem}.png", dpi=110)
    print(f"figures and fits in {options.out}/")


def open_data(options: argparse.Namespace) -> tuple[Photographs, Photographs]:
    """Training and validation photographs."""
    view = View(options.size, tuple(options.mean), tuple(options.std), antialias=False)
    if options.data.suffix == ".npz":
        return IndexedPhotographs(options.data, 0, view), IndexedPhotographs(options.data, 1, view)
    return (STL10(options.data, "train", transform=view, download=options.download),
            STL10(options.data, "test", transform=view, download=options.download))


def build(options: argparse.Namespace, classes: int) -> nn.Module:
    """The network: untrained, from a file, or pretrained with a new last layer."""
    torch.manual_seed(options.seed)
    if options.weights and not Path(options.weights).exists():
        weights = torchvision_weights(options.model, options.weights)
        model = torchvision.models.get_model(options.model, weights=weights)
        model.fc = nn.Linear(model.fc.in_features, classes)
        options.weights = None  # the last layer has yet to be trained
        return model.to(options.device)
    if not options.weights:
        model = torchvision.models.get_model(options.model, num_classes=classes)
        return model.to(options.device).eval()
    state = torch.load(options.weights, map_location="cpu", weights_only=True)
    model = torchvision.models.get_model(options.model, num_classes=classes_of(state))
    model.load_state_dict(state)
    return model.to(options.device).eval()


def loader_of(
    photographs: Dataset[tuple[Tensor, int]], options: argparse.Namespace, seed: int = 0
) -> DataLoader[tuple[Tensor, Tensor]]:
    """Shuffled batches."""
    return DataLoader(
        photographs, min(options.batch, len(photographs)),  # type: ignore[arg-type]
        shuffle=True, drop_last=True, num_workers=WORKERS,
        generator=torch.Generator().manual_seed(seed),
    )


def train_classifier(model: nn.Module, training: Photographs, options: argparse.Namespace) -> None:
    """Cross-entropy with flips and shifts."""

    def batches(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(loader_of(training, options, options.seed + epoch))

    def loss(batch: tuple[Tensor, Tensor]) -> Tensor:
        images, labels = (part.to(options.device) for part in batch)
        if torch.rand(()) < 0.5:
            images = images.flip(3)
        padded = F.pad(images, (8, 8, 8, 8), "reflect")
        top, left = torch.randint(17, (2,)).tolist()
        shifted = padded[..., top : top + options.size, left : left + options.size]
        return F.cross_entropy(model(shifted), labels, label_smoothing=0.1)

    train(model, batches, loss, options.epochs, len(loader_of(training, options)),
          options.out / "checkpoint.pt", seed=options.seed,
          settings={name: str(getattr(options, name)) for name in ("data", "model", "size")})


@torch.no_grad()
def accuracy(model: nn.Module, validation: Photographs, options: argparse.Namespace) -> float:
    """Share of the validation images that are classified correctly."""
    loader = DataLoader(validation, 200, num_workers=WORKERS)
    right = [
        (model(images.to(options.device)).argmax(1).cpu() == labels).float()
        for images, labels in tqdm(loader, desc="accuracy")
    ]
    return float(torch.cat(right).mean())


def figure(images: Tensor, maps: Tensor, titles: list[str], name: str) -> Figure:
    """Overlay, heat map and original of each image, a column each, in nats."""
    picture = Figure(figsize=(2.1 * len(images), 6.6), layout="constrained")
    axes = picture.subplots(3, len(images), squeeze=False)
    for i, (image, heat) in enumerate(zip(images.cpu(), maps.sum(1).cpu())):
        pixels = image.permute(1, 2, 0).numpy()
        pixels = (pixels - pixels.min()) / (pixels.max() - pixels.min())
        top = float(heat.max())
        axes[0, i].imshow(pixels)
        axes[0, i].imshow(heat, cmap="jet", vmin=0, vmax=top, alpha=0.5)
        scale = axes[1, i].imshow(heat, cmap="Reds", vmin=0, vmax=top)
        axes[2, i].imshow(pixels)
        axes[0, i].set_title(titles[i], fontsize=9)
        for axis in axes[:, i]:
            axis.set_axis_off()
        bar = picture.colorbar(scale, ax=axes[1, i], orientation="horizontal", shrink=0.8)
        bar.ax.locator_params(nbins=4)
        bar.ax.tick_params(labelsize=6)
        bar.set_label("nats / pixel", fontsize=7)
    picture.suptitle(f"I(x'; y) at {name}: overlay, heat map, original")
    return picture


if __name__ == "__main__":
    main()
