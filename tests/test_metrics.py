"""Metrics by hand on tiny inputs, at their limits, and against slow twins."""

from __future__ import annotations

import pytest
import torch

from captum_mi.metrics import (
    degradation,
    effective_heat_ratio,
    grid_pointing,
    inside_box,
    pointing,
)

MAP = torch.tensor([[[4.0, 3.0], [2.0, 1.0]]])
MASK = torch.tensor([[[True, False], [True, False]]])


def test_by_hand_on_four_pixels():
    assert inside_box(MAP, MASK).item() == 0.5  # top two: 4 (in) and 3 (out)
    assert pointing(MAP, MASK).item() == 1
    # One quantile, 50 % of 10: the pixels 4 and 3 hold it; one of the two lies inside.
    assert effective_heat_ratio(MAP, MASK, levels=1).item() == 0.5
    assert grid_pointing(MAP, torch.tensor([0])).item() == pytest.approx(0.4)


def slow_ehr(heat, mask, levels):
    pairs = sorted(zip(heat.flatten().tolist(), mask.flatten().tolist()), key=lambda p: -p[0])
    total, scores = sum(value for value, _ in pairs), []
    for level in range(1, levels + 1):
        mass, inside = 0.0, 0
        for count, (value, is_in) in enumerate(pairs, 1):
            mass, inside = mass + value, inside + is_in
            if mass >= total * level / (levels + 1):
                scores.append(inside / count)
                break
    return sum(scores) / levels


def test_ehr_equals_its_slow_twin_and_ignores_scale():
    maps = torch.rand(5, 7, 9, generator=torch.Generator().manual_seed(0)).double()
    masks = torch.rand(5, 7, 9, generator=torch.Generator().manual_seed(1)) > 0.6
    expected = torch.tensor([slow_ehr(a, b, 19) for a, b in zip(maps, masks)])
    torch.testing.assert_close(effective_heat_ratio(maps, masks), expected)
    torch.testing.assert_close(effective_heat_ratio(maps * 1e-6, masks), expected)
    torch.testing.assert_close(effective_heat_ratio(maps * 1e6, masks), expected)


def test_limits_of_localization():
    masks = torch.zeros(1, 8, 8, dtype=torch.bool)
    masks[:, 2:5, 2:5] = True
    perfect = masks.float()
    for metric in (effective_heat_ratio, inside_box, pointing):
        assert metric(perfect, masks).item() == pytest.approx(1)
    assert inside_box(-perfect, masks).item() == 0
    assert pointing(torch.ones(1, 8, 8), masks).item() == pytest.approx(9 / 64)
    assert grid_pointing(torch.zeros(1, 4, 4), torch.tensor([2])).item() == 0.25


def test_localization_rejects_other_shapes():
    with pytest.raises(ValueError, match="boolean masks of the same shape"):
        inside_box(MAP, MASK.float())
    with pytest.raises(ValueError, match="a mask is empty"):
        pointing(MAP, ~MASK & MASK)
    with pytest.raises(ValueError, match="even H and W"):
        grid_pointing(torch.zeros(1, 3, 4), torch.tensor([0]))


def brightness(images, target):
    return images.flatten(1).mean(1)


def test_degradation_by_hand():
    """Four tiles of brightness 4, 3, 2, 1, ranked rightly: the curves are sums of what is left."""
    image = MAP.repeat_interleave(2, 1).repeat_interleave(2, 2)[:, None]
    before = image.clone()
    result = degradation(brightness, image, image[:, 0], torch.zeros(1, dtype=torch.long), tile=2)
    torch.testing.assert_close(result.lerf, torch.tensor([[10, 9, 7, 4, 0]]) / 4.0)
    torch.testing.assert_close(result.morf, torch.tensor([[10, 6, 3, 1, 0]]) / 4.0)
    assert result.area.item() == pytest.approx((25 - 15) / 4 / 4)
    assert torch.equal(image, before)


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_degradation_does_not_depend_on_the_batch_size(batch_size):
    images, maps = torch.rand(3, 2, 8, 8), torch.rand(3, 8, 8)
    target = torch.zeros(3, dtype=torch.long)
    whole = degradation(brightness, images, maps, target, tile=2)
    parts = degradation(brightness, images, maps, target, tile=2, batch_size=batch_size)
    torch.testing.assert_close(parts, whole)
    flipped = degradation(brightness, images, -maps, target, tile=2)
    torch.testing.assert_close(flipped.area, -whole.area)


def test_degradation_rejects_other_shapes():
    with pytest.raises(ValueError, match="a tile that divides"):
        degradation(brightness, torch.zeros(1, 1, 4, 4), torch.zeros(1, 4, 4), MAP, tile=3)
