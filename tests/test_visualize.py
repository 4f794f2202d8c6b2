"""Panels: any image, any map, and a colour bar that is true."""

from __future__ import annotations

import pytest
import torch

from captum_mi.visualize import overlay, panel, timeline


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


def test_an_overlay_says_what_its_colours_mean(tmp_path):
    heat = torch.linspace(-1, 3, 64).view(8, 8)
    figure = overlay(torch.rand(3, 8, 8), heat)
    figure.savefig(tmp_path / "overlay.png")
    axis, bar = figure.axes
    drawn = axis.images[-1]
    assert bar.get_ylabel() == "nats / pixel"
    assert torch.equal(torch.from_numpy(drawn.get_array().data), heat)
    low, high = drawn.get_clim()
    assert low == -high
    assert 2.9 < high <= 3


def test_small_numbers_have_their_power_of_ten_in_the_unit():
    heat = torch.linspace(0, 4e-5, 64).view(8, 8)
    figure = overlay(torch.rand(1, 8, 8), heat, title="small")
    figure.draw_without_rendering()
    axis, bar = figure.axes
    assert axis.get_title() == "small"
    assert bar.get_ylabel() == "$10^{-5}$ nats / pixel"
    assert "2" in [label.get_text() for label in bar.get_yticklabels()]


def test_a_column_has_one_colour_map():
    signed = torch.stack([torch.rand(8, 8), torch.rand(8, 8) - 0.5])
    figure = panel(torch.rand(2, 1, 8, 8), {"signed": signed, "not": torch.rand(2, 8, 8)})
    maps = [axis.images[0] for axis in figure.axes if axis.images and
            axis.images[0].get_array().ndim == 2]
    assert [one.get_cmap().name for one in maps] == ["RdBu_r", "Reds"] * 2


def test_a_signal_is_drawn_before_its_map(tmp_path):
    signal = torch.stack([torch.arange(50.0), torch.full((50,), 7.0)])
    heat = torch.zeros(2, 50)
    heat[:, 10] = 2
    for one in (heat, heat.sum(0)):
        figure = timeline(signal, one)
        figure.savefig(tmp_path / "timeline.png")
        axis, bar = figure.axes
        assert bar.get_ylabel() == "nats / sample"
        drawn = axis.images[0]
        assert torch.equal(torch.from_numpy(drawn.get_array().data), heat.sum(0, keepdim=True))
        assert drawn.get_extent() == [-0.5, 49.5, 2, 0]  # sample 10 lies at 10
        rising, flat = (line.get_ydata() for line in axis.lines)
        assert rising[0] > rising[-1]  # as the axis points down
        assert 0 < min(rising) < max(rising) < 1 < min(flat) == max(flat) < 2


@pytest.mark.parametrize(("signal", "heat"), [
    ((2, 50), (2, 49)), ((50,), (50,)), ((1, 2, 50), (50,)),
])
def test_what_is_no_signal(signal, heat):
    with pytest.raises(ValueError, match=r"expected a signal \(C, L\) and its map"):
        timeline(torch.rand(signal), torch.rand(heat))


@pytest.mark.parametrize(("images", "heat", "message"), [
    ((2, 2, 8, 8), (2, 8, 8), r"1 or 3 channels .*got \(2, 8, 8\)"),
    ((3, 8, 8), (3, 8, 8), r"expected images \(N, C, H, W\); got \(3, 8, 8\)"),
    ((2, 3, 8, 8), (8, 8), r"one for each of 2 images; got \(8, 8\) for 'ours'"),
    ((2, 3, 8, 8), (3, 8, 8), r"one for each of 2 images; got \(3, 8, 8\) for 'ours'"),
])
def test_what_cannot_be_drawn(images, heat, message):
    with pytest.raises(ValueError, match=message):
        panel(torch.rand(images), {"ours": torch.rand(heat)})
