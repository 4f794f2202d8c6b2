"""A torchvision network trained on digit scenes that lie in the layout of photographs.

    python benchmarks/train_on_scenes.py --model mobilenet_v3_large --out scenes
    python benchmarks/compare_methods.py --data scenes/scenes.npz --model mobilenet_v3_large \
        --weights scenes/mobilenet_v3_large.pt --mean 0.133 0.133 0.133 --std 0.243 0.243 0.243 \
        --out benchmarks/results/scenes_mobilenet_v3_large

Writes ``scenes.npz`` (see ``scenes_index.py``) and the weights: what the other benchmarks take.
Scenes have 48 pixels and are seen at 96, normalised by their own mean, so that 0 is their mean and
not the grey of photographs, which would be clutter.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
import torchvision
from photographs import Photographs, load
from scenes_index import write_index
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from captum_mi.datasets import View

sys.path.append(str(Path(__file__).parents[1] / "examples"))
from training import shuffled, train

VIEW = View(96, (0.133,) * 3, (0.243,) * 3, antialias=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="resnet18", help="torchvision name")
    parser.add_argument("--train", type=int, default=8000, help="scenes")
    parser.add_argument("--test", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("scenes"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    index = options.out / "scenes.npz"
    write_index(index, options.train, options.test, options.seed)
    torch.manual_seed(options.seed)
    model = torchvision.models.get_model(options.model, num_classes=10)
    model = model.to(memory_format=torch.channels_last)
    data = load(index, "train", view=VIEW)
    train_classifier(model, data, options)
    # Running statistics of a slow momentum are still those of the first steps.
    update_bn(data.images.split(options.batch), model)
    model.eval()
    accuracy = accuracy_on(model, load(index, "validation", view=VIEW))
    torch.save(model.state_dict(), options.out / f"{options.model}.pt")
    print(f"{options.model}: {100 * accuracy:.1f} % of {options.test} scenes of unseen scans")


def train_classifier(model: nn.Module, data: Photographs, options: argparse.Namespace) -> None:
    """Cross-entropy."""
    def batches(epoch: int) -> Iterator[Tensor]:
        return shuffled(len(data.images), options.batch, options.seed + epoch)

    def loss(rows: Tensor) -> Tensor:
        return F.cross_entropy(model(data.images[rows]), data.labels[rows])

    steps = max(1, len(data.images) // options.batch)
    train(model, batches, loss, options.epochs, steps,
          options.out / f"{options.model}_checkpoint.pt", options.lr, options.seed)


@torch.no_grad()
def accuracy_on(model: nn.Module, data: Photographs) -> float:
    """Share of the scenes that are classified correctly."""
    parts = zip(data.images.split(200), data.labels.split(200))
    return float(torch.cat([model(x).argmax(1) == y for x, y in parts]).float().mean())


if __name__ == "__main__":
    main()
