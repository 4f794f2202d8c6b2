"""How a stored photograph becomes a model's input, and its masks with it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import (
    InterpolationMode,
    center_crop,
    normalize,
    pil_to_tensor,
    resize,
)

__all__ = ["View", "box_mask", "check_mode"]


@dataclass(frozen=True)
class View:
    """The shorter side resized to ``size``, the middle cut out, normalised per channel.

    Args:
        size: height and width of the result, in pixels.
        mean: mean of each channel, of pixels in [0, 1].
        std: standard deviation of each channel.
        antialias: smooth before making smaller.

    Example::

        >>> view = View(size=32)
        >>> view(Image.new("RGB", (100, 50))).shape
        torch.Size([3, 32, 32])
    """

    size: int = 224
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    antialias: bool = True

    def __call__(self, image: Image.Image) -> Tensor:
        """Input ``(3, size, size)``.

        Raises:
            ValueError: for an image of more than 8 bits per channel.
        """
        check_mode(image)
        pixels = pil_to_tensor(image.convert("RGB")).float() / 255
        square = center_crop(
            resize(pixels, [self.size], antialias=self.antialias), [self.size]
        )
        return normalize(square, list(self.mean), list(self.std))

    def mask(self, mask: Tensor) -> Tensor:
        """A mask ``(H, W)`` in pixels of the stored image, seen the same way; boolean."""
        seen = resize(mask[None].float(), [self.size], InterpolationMode.BILINEAR, antialias=False)
        return center_crop(seen, [self.size])[0] > 0.5


def check_mode(image: Image.Image) -> None:
    """Raise ``ValueError`` for an image of more than 8 bits per channel."""
    if image.mode.startswith(("I", "F")):
        raise ValueError(
            f"an image has mode {image.mode!r}; expected 8 bits per channel, as white and "
            "black would be lost: scale its values to 0 to 255 first"
        )


def box_mask(box: tuple[float, float, float, float], width: int, height: int) -> Tensor:
    """Mask ``(height, width)`` of the box (xmin, ymin, xmax, ymax), at least one pixel.

    Raises:
        ValueError: for a box that is reversed, or does not touch the image.
    """
    xmin, ymin, xmax, ymax = box
    if not (xmin <= xmax and ymin <= ymax and xmin < width and ymin < height
            and xmax >= 0 and ymax >= 0):
        raise ValueError(
            f"a box is {tuple(box)} in an image of {width} x {height} pixels; expected (xmin, "
            "ymin, xmax, ymax) in rising order, within the image"
        )
    left, top = min(max(round(xmin), 0), width - 1), min(max(round(ymin), 0), height - 1)
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[top : max(round(ymax), top + 1), left : max(round(xmax), left + 1)] = True
    return mask
