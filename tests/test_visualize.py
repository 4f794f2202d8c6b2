"""Panels: any image, any map, and a colour bar that is true."""

from __future__ import annotations

import torch

from captum_mi.visualize import panel


def test_flat_images_and_sparse_maps_have_true_colour_bars():
    sparse = torch.zeros(2, 32, 32)
    sparse[:, 3, 4] = 2
    figure = panel(torch.zeros(2, 1, 32, 32), {"sparse": sparse, "none": torch.zeros(2, 32, 32)},
                   units={"sparse": "nats / pixel"})
    figure.draw_without_rendering()
    images = [axis.images[0] for axis in figure.axes if axis.images]
    limits = sorted({image.get_clim()[1] for image in images if image.get_array().ndim == 2})
    assert limits == [1.0, 2.0]
    assert "nats / pixel" in [axis.get_ylabel() for axis in figure.axes]
