"""Maps beside images and behind signals, with units and colour bars."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["overlay", "panel", "timeline"]

_DIGITS = 2  # of magnitudes that are written without a power of ten


def panel(
    images: Tensor,
    maps: Mapping[str, Tensor],
    titles: Sequence[str] | None = None,
    units: Mapping[str, str] | None = None,
    title: str | None = None,
    cell: float = 1.9,
) -> Figure:
    """A row for each image: the image, then each map with a colour bar of its own.

    Args:
        images: ``(N, C, H, W)``; C is 1 or 3. Rescaled to [0, 1] for display.
        maps: title -> heat ``(N, H, W)`` or ``(N, C, H, W)`` (summed over channels). A column
            with negative values is drawn from blue to red around 0, others from white to red,
            each map up to the 99.5th percentile of its magnitudes. (Captum's own pictures have
            green where ours have red, and red where ours have blue.)
        titles: title of each row.
        units: title -> unit, shown at the colour bar.
        title: title of the figure.
        cell: inches per picture.

    Returns:
        matplotlib figure; save it with ``.savefig(path)``.

    Raises:
        ValueError: for images or maps of another shape.

    Example::

        >>> import torch
        >>> figure = panel(torch.rand(2, 3, 8, 8), {"evidence": torch.randn(2, 3, 8, 8)},
        ...                units={"evidence": "nats / pixel"})
        >>> len(figure.axes)  # two images, two maps and their colour bars
        6
    """
    from matplotlib.figure import Figure

    if images.dim() != 4:
        raise ValueError(
            f"expected images (N, C, H, W); got {tuple(images.shape)}. A signal (C, L) is drawn "
            "by timeline"
        )
    for name, heat in maps.items():
        if heat.dim() not in (3, 4) or len(heat) != len(images):
            raise ValueError(
                f"expected maps (N, H, W) or (N, C, H, W), one for each of {len(images)} images; "
                f"got {tuple(heat.shape)} for {name!r}"
            )
    rows, columns = len(images), 1 + len(maps)
    figure = Figure(figsize=(1.15 * cell * columns, cell * rows + 0.4), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    if title is not None:
        figure.suptitle(title)
    for i in range(rows):
        axes[i, 0].imshow(_displayable(images[i]))
        axes[i, 0].set(xticks=[], yticks=[])
        if titles is not None:
            axes[i, 0].set_ylabel(titles[i], fontsize=9)
        for j, (name, heat) in enumerate(maps.items(), 1):
            signed = bool((heat.sum(1) if heat.dim() == 4 else heat).lt(0).any())
            _draw(figure, axes[i, j], heat[i], (units or {}).get(name, ""), signed)
            if i == 0:
                axes[i, j].set_title(textwrap.fill(name, int(11 * cell)), fontsize=9)
    axes[0, 0].set_title("image", fontsize=9)
    return figure


def overlay(
    image: Tensor, heat: Tensor, unit: str = "nats / pixel", cell: float = 3.0,
    title: str | None = None,
) -> Figure:
    """A map over its image in grey, with a colour bar.

    Args:
        image: ``(C, H, W)``; C is 1 or 3. Rescaled to [0, 1] for display.
        heat: ``(H, W)`` or ``(C, H, W)`` (summed over channels).
        unit: shown at the colour bar.
        cell: inches.
        title: title of the figure.

    Returns:
        matplotlib figure; save it with ``.savefig(path)``.

    Raises:
        ValueError: for an image of another shape.

    Example::

        >>> import torch
        >>> figure = overlay(torch.rand(3, 8, 8), torch.randn(8, 8))
        >>> figure.axes[1].get_ylabel()
        'nats / pixel'
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.25 * cell, cell), layout="constrained")
    axis = figure.subplots()
    axis.imshow(_displayable(image).mean(2), cmap="gray", vmin=0, vmax=1)
    _draw(figure, axis, heat, unit, alpha=0.6)
    if title is not None:
        axis.set_title(textwrap.fill(title, int(11 * cell)), fontsize=9)
    return figure


def timeline(
    signal: Tensor, heat: Tensor, unit: str = "nats / sample", cell: float = 2.0,
    title: str | None = None,
) -> Figure:
    """The channels of a signal, one below the other, before its map, with a colour bar.

    Args:
        signal: ``(C, L)``. Each channel is as high as the others, whatever its range.
        heat: ``(L,)`` or ``(C, L)`` (summed over channels).
        unit: shown at the colour bar.
        cell: inches of height.
        title: title of the figure.

    Returns:
        matplotlib figure; save it with ``.savefig(path)``.

    Raises:
        ValueError: for a signal or a map of another shape.

    Example::

        >>> import torch
        >>> figure = timeline(torch.randn(2, 50), torch.randn(50))
        >>> figure.axes[0].get_xlabel()
        'sample'
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    if signal.dim() != 2 or heat.shape not in (signal.shape, signal.shape[1:]):
        raise ValueError(
            "expected a signal (C, L) and its map, (L,) or (C, L); got "
            f"{tuple(signal.shape)} and {tuple(heat.shape)}"
        )
    channels, length = signal.shape
    figure = Figure(figsize=(4 * cell, cell), layout="constrained")
    axis = figure.subplots()
    row = heat[None] if heat.dim() == 1 else heat.sum(0, keepdim=True)
    _draw(figure, axis, row, unit, extent=(-0.5, length - 0.5, channels, 0), aspect="auto")
    for channel, line in enumerate(signal.detach().float().cpu().numpy()):
        low, high = line.min(), line.max()
        axis.plot(channel + 0.9 - 0.8 * (line - low) / max(high - low, 1e-12), "k-", lw=0.8)
    axis.set(xlabel="sample", ylabel="channel")
    if title is not None:
        axis.set_title(title, fontsize=9)
    axis.set_yticks(np.arange(channels) + 0.5, list(map(str, range(channels))))
    for along in (axis.xaxis, axis.yaxis):
        along.set_tick_params(labelsize=7)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def _displayable(image: Tensor) -> np.ndarray:
    if image.dim() != 3 or len(image) not in (1, 3):
        raise ValueError(
            "only images (C, H, W) of 1 or 3 channels have colours to be drawn in; got "
            f"{tuple(image.shape)}. Choose channels to show"
        )
    pixels: np.ndarray = image.detach().float().cpu().permute(1, 2, 0).numpy()
    low, high = pixels.min(), pixels.max()
    pixels = (pixels - low) / max(high - low, 1e-12)
    return pixels.repeat(3, 2) if pixels.shape[2] == 1 else pixels


def _draw(
    figure: Figure, axis: object, heat: Tensor, unit: str, signed: bool | None = None,
    **drawn: Any,
) -> None:
    """One map in its own units: a colour bar in nats says more than one scaled to [-1, 1]."""
    from matplotlib.ticker import FuncFormatter

    values = (heat.sum(0) if heat.dim() == 3 else heat).detach().float().cpu().numpy()
    limit = float(np.percentile(abs(values), 99.5)) or float(abs(values).max()) or 1.0
    signed = bool((values < 0).any()) if signed is None else signed
    image = axis.imshow(  # type: ignore[attr-defined]
        values, cmap="RdBu_r" if signed else "Reds", vmin=-limit if signed else 0, vmax=limit,
        **drawn,
    )
    axis.set(xticks=[], yticks=[])  # type: ignore[attr-defined]
    bar = figure.colorbar(image, ax=axis, shrink=0.85)  # type: ignore[arg-type]
    bar.ax.tick_params(labelsize=6)
    power = math.floor(math.log10(limit)) if math.isfinite(limit) else 0
    power = power if abs(power) > _DIGITS else 0  # in the label: above the bar it met the titles
    bar.formatter = FuncFormatter(lambda value, _: f"{value / 10.0**power:.3g}")
    bar.set_label(f"$10^{{{power}}}$ {unit}" if power else unit, fontsize=7)
