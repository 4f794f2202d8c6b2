"""Scenes of real handwritten digits among strokes of clutter, with exact masks.

The digits are the scans that scikit-learn bundles (Alpaydin and Kaynak, 1998, UCI): no download.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from captum_mi.choices import check_choice

__all__ = ["SIZE", "Scenes", "make_scenes"]

SceneSplit = Literal["train", "test"]

#: Height and width of a scene in pixels.
SIZE = 48

_DIGIT = (15, 21)  # sides of a digit, in pixels
_STROKES = 5
_TEST_EVERY = 5  # every fifth scan is kept for tests
_INK = 0.25  # a pixel of at least this much ink belongs to the digit
_CHUNK = 512


class Scenes(NamedTuple):
    """Scenes and their truth.

    Attributes:
        images: ``(N, 1, 48, 48)``, ink in [0, 1] minus 0.2, so that 0 is a light grey: a
            scene's average is 0.04 to 0.08 below it.
        labels: digit of each object, ``(N, objects)``.
        masks: pixels of each digit's own ink, ``(N, objects, 48, 48)``, boolean.
    """

    images: Tensor
    labels: Tensor
    masks: Tensor


def make_scenes(
    n: int,
    objects: int = 1,
    split: SceneSplit = "train",
    seed: int = 0,
) -> Scenes:
    """Draw scenes.

    Args:
        n: number of scenes.
        objects: digits in each, 1 or 2; two are different and do not overlap.
        split: scans to draw from; train and test scenes share none.
        seed: of everything that is random.

    Returns:
        The scenes.

    Raises:
        ValueError: for another number of objects, or another split.

    Example::

        >>> scenes = make_scenes(4, seed=0)
        >>> scenes.images.shape, scenes.labels.shape, scenes.masks.shape
        (torch.Size([4, 1, 48, 48]), torch.Size([4, 1]), torch.Size([4, 1, 48, 48]))
    """
    if objects not in (1, 2):
        raise ValueError(f"objects must be 1 or 2; got {objects}")
    scans, digits = _scans(split)
    rng = np.random.default_rng([seed, objects, split == "test"])
    ink = torch.zeros(n, objects, SIZE, SIZE)
    labels = torch.zeros(n, objects, dtype=torch.long)
    for i in range(n):
        for k, (top, left, side) in enumerate(_places(rng, objects)):
            allowed = np.flatnonzero(~np.isin(digits, labels[i, :k].numpy()))
            j = rng.choice(allowed)
            scan = F.interpolate(scans[None, None, j], (side, side), mode="bilinear")[0, 0]
            ink[i, k, top : top + side, left : left + side] = scan
            labels[i, k] = int(digits[j])
    masks = ink > _INK
    images = torch.maximum(ink.amax(1), _clutter(rng, n))
    noise = torch.from_numpy(rng.normal(0, 0.05, images.shape)).float()
    return Scenes((images + noise)[:, None] - 0.2, labels, masks)


def _scans(split: str) -> tuple[Tensor, np.ndarray]:
    check_choice("split", split, SceneSplit)
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "digit scenes use the scans that scikit-learn bundles: pip install 'captum_mi[demo]'"
        ) from error
    bundle = load_digits()
    is_test = np.arange(len(bundle.target)) % _TEST_EVERY == 0
    chosen = is_test if split == "test" else ~is_test
    images = torch.from_numpy(bundle.images[chosen] / 16).float()
    return images, bundle.target[chosen]


def _places(rng: np.random.Generator, objects: int) -> list[tuple[int, int, int]]:
    """Top, left and side of each digit; two lie in different halves."""
    half = SIZE // objects
    sides = rng.integers(*_DIGIT, size=objects, endpoint=True)
    tops = [int(rng.integers(0, SIZE - side + 1)) for side in sides]
    lefts = [
        k * half + int(rng.integers(0, half - side + 1)) for k, side in enumerate(sides)
    ]
    places = [(top, left, int(side)) for top, left, side in zip(tops, lefts, sides)]
    if objects == 2 and rng.random() < 0.5:  # above each other instead of beside
        places = [(left, top, side) for top, left, side in places]
    return places


def _clutter(rng: np.random.Generator, n: int) -> Tensor:
    """Curved strokes of a pen as wide and dark as the digits': ``(n, 48, 48)``."""
    # Quadratic Bezier curves; their three control points lie a digit's size apart.
    start = rng.uniform(0, SIZE, (n, _STROKES, 1, 2))
    bends = start + rng.uniform(-11, 11, (n, _STROKES, 2, 2))
    controls = torch.from_numpy(np.concatenate([start, bends], 2)).float()
    t = torch.linspace(0, 1, 24)[:, None]
    weights = torch.cat([(1 - t) ** 2, 2 * t * (1 - t), t**2], 1)
    points = (weights @ controls).flatten(1, 2)  # (n, strokes * 24, 2)
    axis = torch.arange(SIZE) + 0.5
    parts = []
    for part in points.split(_CHUNK):
        near_y = (axis - part[..., :1]).square()
        near_x = (axis - part[..., 1:]).square()
        # The nearest point's bell, by products of separable bells.
        bells = torch.exp(-near_y / 3)[..., :, None] * torch.exp(-near_x / 3)[..., None, :]
        parts.append(bells.amax(1))
    return torch.cat(parts)
