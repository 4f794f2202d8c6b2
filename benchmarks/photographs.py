"""Photographs to explain, with or without object boxes, and the networks that classify them.

Three layouts on disk are read, told apart by the path:

- an ``.npz`` index of JPEG files with labels and boxes (:mod:`captum_mi.datasets.indexed`; split 0
  is for training, 1 for validation);
- a folder that holds ``stl10_binary``: STL-10 (train, test);
- a folder with ``train/<class>/*`` and ``val/<class>/*``: torchvision's ``ImageFolder``.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torchvision
from torch import Tensor, nn
from torchvision.datasets import STL10, ImageFolder

from captum_mi.datasets import IndexedPhotographs, View

sys.path.append(str(Path(__file__).parents[1] / "examples"))
from networks import classes_of, torchvision_weights

Split = Literal["train", "validation"]

TILE = 8  # pixels: side of what faithfulness tests remove

#: What networks without a preset are taken to see.
PLAIN = View(96, (0.48, 0.45, 0.40), (0.28, 0.27, 0.28), antialias=False)


@dataclass(frozen=True)
class Photographs:
    """Normalised images ``(n, 3, H, W)``, labels ``(n,)``, and boxes ``(n, H, W)`` or none."""

    images: Tensor
    labels: Tensor
    boxes: Tensor | None
    names: list[str]

    def __getitem__(self, rows: slice | Tensor) -> Photographs:
        boxes = None if self.boxes is None else self.boxes[rows]
        return Photographs(self.images[rows], self.labels[rows], boxes, self.names)

    def to(self, device: torch.device) -> Photographs:
        boxes = None if self.boxes is None else self.boxes.to(device)
        return Photographs(self.images.to(device), self.labels.to(device), boxes, self.names)


def load(
    path: str | Path,
    split: Split,
    count: int | None = None,
    seed: int = 0,
    view: View = PLAIN,
) -> Photographs:
    """Read a split in a seeded random order, or a random part of it."""
    dataset = _dataset(Path(path), split, view)
    rows = np.random.default_rng(seed).permutation(len(dataset))[:count].tolist()
    pairs = [dataset[i] for i in rows]
    boxes = None
    if isinstance(dataset, IndexedPhotographs):
        boxes = torch.stack([dataset.mask(i) for i in rows])
    images = torch.stack([image for image, _ in pairs])
    labels = torch.tensor([label for _, label in pairs])
    return Photographs(images, labels, boxes, list(dataset.classes))


def _dataset(path: Path, split: Split, view: View) -> IndexedPhotographs | STL10 | ImageFolder:
    training = split == "train"
    if path.suffix == ".npz":
        return IndexedPhotographs(path, 0 if training else 1, view)
    if (path / STL10.base_folder).is_dir():
        return STL10(path, "train" if training else "test", transform=view)
    folder = path / ("train" if training else "val")
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{path}: expected an .npz index, a folder with {STL10.base_folder}, or one with "
            f"train/ and val/; {folder} is missing"
        )
    return ImageFolder(folder, view)


def load_model(
    name: str, weights: str | None, plain: View = PLAIN
) -> tuple[nn.Module, View]:
    """A network in eval mode and the view that it takes.

    Args:
        name: a torchvision name, or ``module:factory``, called without arguments.
        weights: a ``state_dict`` file (classes counted from its last bias), the name of a
            torchvision weights enum (``DEFAULT``), or ``None`` for what the factory returns.
        plain: the view of networks without a preset.
    """
    if ":" in name:
        module, factory = name.split(":")
        build: Callable[..., nn.Module] = getattr(importlib.import_module(module), factory)
        model = build()
        if weights is not None:
            model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        return model.eval(), plain
    if weights is None:
        raise ValueError("a torchvision network needs --weights: a file, or an enum's name")
    if not Path(weights).exists():
        choice = torchvision_weights(name, weights)
        preset = choice.transforms()
        size = preset.crop_size[0] // TILE * TILE  # of whole tiles, as 296 for 299
        view = View(size, tuple(preset.mean), tuple(preset.std))
        return torchvision.models.get_model(name, weights=choice).eval(), view
    state = torch.load(weights, map_location="cpu", weights_only=True)
    model = torchvision.models.get_model(name, num_classes=classes_of(state))
    model.load_state_dict(state)
    return model.eval(), plain
