"""Digit scenes in the layout of photographs: what the examples and benchmarks take as ``--data``.

    python benchmarks/scenes_index.py --out scenes/scenes.npz
    python benchmarks/scenes_index.py --novel 4 --out scenes/few_shot.npz

An index of PNG files with labels, the box of the digit's ink, and splits: 0 for training, 1 for
validation on unseen scans. With ``--novel`` the last digits are in neither; split 2 holds them, of
unseen scans.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import masks_to_boxes
from torchvision.transforms.functional import to_pil_image

from captum_mi.datasets import make_scenes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", type=int, default=8000, help="scenes")
    parser.add_argument("--test", type=int, default=1000)
    parser.add_argument("--novel", type=int, default=0, help="digits kept for few-shot episodes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("scenes/scenes.npz"))
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_index(options.out, options.train, options.test, options.seed, options.novel)
    print(f"{options.out}: {options.train} training and {options.test} test scenes")


def write_index(path: Path, train: int, test: int, seed: int, novel: int = 0) -> None:
    """Scenes of both splits as PNG files, their labels and boxes."""
    drawn = make_scenes(train, seed=seed), make_scenes(test, split="test", seed=seed)
    images, labels, masks = (torch.cat(pair) for pair in zip(*drawn))
    split = np.repeat([0, 1], [train, test])
    is_novel = labels[:, 0].numpy() >= 10 - novel
    split[is_novel & (split == 1)] = 2
    keep = np.flatnonzero(~is_novel | (split == 2))
    files = [png(images[i]) for i in keep]
    boxes = masks_to_boxes(masks[:, 0])
    boxes[:, 2:] += 1  # the last pixel is inside
    np.savez(
        path, blob=np.frombuffer(b"".join(files), np.uint8),
        off=np.cumsum([0, *map(len, files)]), label=labels[keep, 0].numpy(), split=split[keep],
        box=boxes[keep].numpy().astype(np.int16), names=np.arange(10).astype(str),
    )


def png(image: Tensor) -> bytes:
    """A file of a scene; what is darker than full ink or lighter than none is clipped."""
    file = io.BytesIO()
    to_pil_image((image + 0.2).clamp(0, 1)).save(file, "PNG")
    return file.getvalue()


if __name__ == "__main__":
    main()
