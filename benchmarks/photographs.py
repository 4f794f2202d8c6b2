"""Photographs with one object box each, and the networks that were trained on them.

The data file is an ``.npz`` with the arrays ``blob`` (JPEG files one after another, uint8),
``off`` (n + 1 offsets), ``label``, ``split`` (0 train, 1 validation), ``box`` (xmin, ymin, xmax,
ymax in pixels of the stored size) and ``names``.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.functional import normalize, pil_to_tensor

SIZE = 96
MEAN, STD = (0.48, 0.45, 0.40), (0.28, 0.27, 0.28)


@dataclass(frozen=True)
class Photographs:
    """Normalised images ``(n, 3, 96, 96)`` with labels ``(n,)`` and box masks ``(n, 96, 96)``."""

    images: Tensor
    labels: Tensor
    boxes: Tensor
    names: list[str]


def load(path: str | Path, split: int, count: int | None, seed: int = 0) -> Photographs:
    """Read a split, or a random part of it."""
    with np.load(path, allow_pickle=True) as file:
        arrays = {name: file[name] for name in ("blob", "off", "label", "split", "box", "names")}
    chosen = np.flatnonzero(arrays["split"] == split)
    chosen = np.random.default_rng(seed).permutation(chosen)[:count]
    images, boxes = [], []
    for i in chosen:
        raw = arrays["blob"][arrays["off"][i] : arrays["off"][i + 1]].tobytes()
        pixels = pil_to_tensor(Image.open(io.BytesIO(raw)).convert("RGB"))
        image = F.interpolate(
            pixels[None].float() / 255, size=SIZE, mode="bilinear", align_corners=False
        )[0]
        images.append(normalize(image, MEAN, STD))
        boxes.append(_mask(arrays["box"][i], SIZE / pixels.shape[-1]))
    labels = torch.from_numpy(arrays["label"][chosen].astype(np.int64))
    names = [str(name) for name in arrays["names"]]
    return Photographs(torch.stack(images), labels, torch.stack(boxes), names)


def _mask(box: np.ndarray, scale: float) -> Tensor:
    xmin, ymin, xmax, ymax = (box * scale).round().astype(int).tolist()
    mask = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    mask[ymin : max(ymax, ymin + 1), xmin : max(xmax, xmin + 1)] = True
    return mask


def load_model(name: str, weights: str | Path) -> nn.Module:
    """A torchvision network with its classes counted from the weights file."""
    state = torch.load(weights, map_location="cpu", weights_only=True)
    model: nn.Module = getattr(torchvision.models, name)(num_classes=len(state["fc.bias"]))
    model.load_state_dict({key: value.float() if value.is_floating_point() else value
                           for key, value in state.items()})
    return model.eval()
