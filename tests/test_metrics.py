"""Metrics by hand on tiny inputs, at their limits, and against slow twins."""

from __future__ import annotations

import pytest
import torch

from captum_mi.metrics import (
    degradation,
    deletion,
    effective_heat_ratio,
    grid_pointing,
    insertion,
    inside_box,
    pointing,
    sensitivity_n,
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
    with pytest.raises(ValueError, match=r"masks \[0\] are empty"):
        pointing(MAP, ~MASK & MASK)
    with pytest.raises(ValueError, match="even H and W"):
        grid_pointing(torch.zeros(1, 3, 4), torch.tensor([0]))
    with pytest.raises(ValueError, match="cells are 0, 1, 2 or 3; got 4 to 4"):
        grid_pointing(torch.zeros(1, 4, 4), torch.tensor([4]))
    for cells in (torch.tensor([0.0]), torch.tensor([[0]]), [0, 1]):
        with pytest.raises(ValueError, match="a whole number for each, its cell; got"):
            grid_pointing(torch.zeros(1, 4, 4), cells)
    assert grid_pointing(torch.zeros(1, 4, 4), [3]).item() == 0.25


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


def test_several_tiles_per_step_read_the_same_curve_more_coarsely():
    """Both ends included also where the step does not divide the number of tiles."""
    images, maps = torch.rand(3, 2, 12, 8), torch.rand(3, 12, 8)
    arguments = (brightness, images, maps, torch.zeros(3, dtype=torch.long), 2)
    fine, coarse = degradation(*arguments), degradation(*arguments, tiles_per_step=7)
    points = torch.tensor([0, 7, 14, 21, 24])
    torch.testing.assert_close(coarse.lerf, fine.lerf[:, points])
    torch.testing.assert_close(coarse.removed, points / 24)
    lerf, morf = (torch.trapezoid(curve[:, points], points / 24) for curve in fine[1:3])
    torch.testing.assert_close(coarse.area, lerf - morf)
    with pytest.raises(ValueError, match="tiles_per_step must be at least 1; got 0"):
        degradation(*arguments, tiles_per_step=0)


def test_degradation_rejects_other_shapes():
    with pytest.raises(ValueError, match="a tile that divides"):
        degradation(brightness, torch.zeros(1, 1, 4, 4), torch.zeros(1, 4, 4), MAP, tile=3)
    with pytest.raises(ValueError, match="a tile that divides.*tile 0"):
        degradation(brightness, torch.zeros(1, 1, 4, 4), torch.zeros(1, 4, 4), MAP, tile=0)


@pytest.mark.parametrize(("score", "target", "message"), [
    (lambda x, t: x.sum((1, 2, 3)), 3, "a target for each of 2 images; got 3"),
    (lambda x, t: x.sum((1, 2, 3)), torch.zeros(5), r"a target for each of 2 images; got \(5,\)"),
    (lambda x, t: x.sum(), torch.zeros(2), r"score returned \(\) for"),
    (lambda x, t: x.sum((1, 2, 3)) / 0, torch.zeros(2), r"score is NaN for images \[0, 1\]"),
])
def test_scores_that_cannot_be_measured(score, target, message):
    with pytest.raises(ValueError, match=message):
        degradation(score, torch.zeros(2, 1, 4, 4), torch.rand(2, 4, 4), target, tile=2)


def test_no_levels_of_heat():
    with pytest.raises(ValueError, match="levels must be at least 1; got 0"):
        effective_heat_ratio(torch.rand(1, 4, 4), torch.ones(1, 4, 4, dtype=torch.bool), levels=0)


def test_degradation_is_insertion_minus_deletion_on_one_canvas():
    images, maps = torch.rand(3, 2, 8, 8), torch.rand(3, 8, 8)
    target = torch.zeros(3, dtype=torch.long)
    arguments = (lambda x, t: brightness(x, t) ** 2, images, maps, target, 2, 0.3)
    torch.testing.assert_close(
        insertion(*arguments) - deletion(*arguments), degradation(*arguments).area
    )


def test_insertion_and_deletion_by_hand():
    image = MAP.repeat_interleave(2, 1).repeat_interleave(2, 2)[:, None]
    arguments = (brightness, image, image[:, 0], torch.zeros(1, dtype=torch.long), 2)
    assert deletion(*arguments).item() == pytest.approx((10 / 2 + 6 + 3 + 1) / 4 / 4)
    assert insertion(*arguments, baseline=0.0).item() == pytest.approx((4 + 7 + 9 + 5) / 4 / 4)
    own = torch.full_like(image, 7.0)  # a canvas for each image
    assert insertion(*arguments, baseline=own).item() == pytest.approx(
        insertion(*arguments, baseline=7.0).item()
    )


def test_insertion_starts_from_the_blurred_image():
    noise = torch.rand(2, 1, 16, 16)
    sharpness = lambda x, t: x.flatten(1).var(1)  # noqa: E731
    arguments = (sharpness, noise, noise[:, 0], torch.zeros(2, dtype=torch.long), 4)
    assert (insertion(*arguments) < sharpness(noise, None)).all()
    flat = torch.ones(1, 1, 16, 16)
    score = insertion(brightness, flat, flat[:, 0], torch.zeros(1, dtype=torch.long), 4)
    assert score.item() == pytest.approx(1)


def slow_sensitivity(score, image, heat, target, size, tile, samples, seed):
    generator = torch.Generator().manual_seed(seed)
    columns = image.shape[2] // tile
    tiles = columns * (image.shape[1] // tile)
    sums, drops = [], []
    for order in torch.rand(samples, tiles, generator=generator).argsort(1):
        changed, total = image.clone(), 0.0
        for index in order[:size].tolist():
            row, column = index // columns * tile, index % columns * tile
            changed[:, row : row + tile, column : column + tile] = 0.25
            total += heat[row : row + tile, column : column + tile].sum().item()
        sums.append(total)
        drops.append((score(image[None], target) - score(changed[None], target)).item())
    return torch.corrcoef(torch.tensor([sums, drops]))[0, 1]


def test_sensitivity_n_equals_its_slow_twin():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(3, 2, 6, 8, generator=generator)
    maps = torch.randn(3, 6, 8, generator=generator)
    score = lambda x, t: (x.flatten(1) ** 3).sum(1) * (t + 1)  # noqa: E731
    target = torch.tensor([0, 1, 2])
    result = sensitivity_n(
        score, images, maps, target, [5], tile=2, samples=20, baseline=0.25, batch_size=7, seed=3
    )
    expected = [
        slow_sensitivity(score, images[i], maps[i], target[i : i + 1], 5, 2, 20, 3)
        for i in range(3)
    ]
    torch.testing.assert_close(result[:, 0], torch.stack(expected), rtol=1e-4, atol=1e-4)


def test_sensitivity_n_is_one_for_an_additive_score_and_zero_for_a_flat_map():
    images, target = torch.rand(2, 1, 8, 8), torch.zeros(2, dtype=torch.long)
    sizes = [1, 4, 15]
    exact = sensitivity_n(brightness, images, images[:, 0], target, sizes, tile=2)
    torch.testing.assert_close(exact, torch.ones(2, 3), rtol=1e-4, atol=1e-4)
    reverse = sensitivity_n(brightness, images, -images[:, 0], target, sizes, tile=2)
    torch.testing.assert_close(reverse, -torch.ones(2, 3), rtol=1e-4, atol=1e-4)
    flat = sensitivity_n(brightness, images, torch.zeros(2, 8, 8), target, sizes, tile=2)
    assert torch.equal(flat, torch.zeros(2, 3))
    with pytest.raises(ValueError, match="between 1 and 15"):
        sensitivity_n(brightness, images, images[:, 0], target, [16], tile=2)


def test_equal_heat_is_ranked_by_nobody():
    """A blank map tells nothing, wherever the object lies."""
    images = torch.zeros(400, 1, 16, 16)
    images[:, :, 8:] = 1
    masks, blank = images[:, 0] > 0, torch.zeros(400, 16, 16)

    def brightness(x, target):
        return x.mean((1, 2, 3))

    target = torch.zeros(400, dtype=torch.long)
    for x, mask in ((images, masks), (images.flip(2), masks.flip(1))):
        torch.testing.assert_close(inside_box(blank, mask), torch.full((400,), 0.5))
        torch.testing.assert_close(effective_heat_ratio(blank, mask), torch.full((400,), 0.5))
        area = degradation(brightness, x, blank, target, tile=4).area
        assert area.mean().abs() < 3 * area.std() / 400**0.5
        assert area.std() > 0


@pytest.mark.parametrize("metric", [inside_box, effective_heat_ratio, pointing])
def test_localization_of_a_flipped_scene_is_the_same(metric):
    generator = torch.Generator().manual_seed(0)
    maps = torch.randint(-2, 3, (50, 8, 6), generator=generator).clamp_min(0).float()
    masks = torch.rand(50, 8, 6, generator=generator) < 0.4
    for axis in (1, 2):
        torch.testing.assert_close(metric(maps.flip(axis), masks.flip(axis)), metric(maps, masks))


def test_maps_that_are_not_finite():
    broken = MAP.clone()
    broken[0, 0, 0] = float("nan")
    images, target = torch.zeros(1, 1, *MAP.shape[1:]), torch.zeros(1, dtype=torch.long)
    for call in (
        lambda: inside_box(broken, MASK), lambda: effective_heat_ratio(broken, MASK),
        lambda: pointing(broken, MASK), lambda: grid_pointing(broken, target),
        lambda: degradation(lambda x, t: x.sum((1, 2, 3)), images, broken, target, tile=1),
    ):
        with pytest.raises(ValueError, match=r"maps \[0\] hold NaN or Inf"):
            call()


def test_single_pixels_are_put_into_a_blurred_image():
    images = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    heat, target = images[:, 0], torch.zeros(2, dtype=torch.long)

    def contrast(x, target):
        return x.std((1, 2, 3))

    scores = [insertion(contrast, images, one, target, tile=1) for one in (heat, heat * 0 + 1)]
    assert (scores[0] - scores[1]).abs().min() > 1e-3


def test_a_correlation_does_not_hang_on_the_scale():
    generator = torch.Generator().manual_seed(0)
    images, target = torch.rand(3, 1, 8, 8, generator=generator), torch.zeros(3, dtype=torch.long)
    for scale in (1.0, 1e-7):
        result = sensitivity_n(
            lambda x, t, scale=scale: scale * x.double().sum((1, 2, 3)), images,
            scale * images[:, 0], target, [3], tile=2)
        torch.testing.assert_close(result, torch.ones(3, 1), rtol=1e-4, atol=1e-4)


def test_insertion_into_images_of_one_row():
    images, maps = torch.rand(2, 3, 1, 40), torch.rand(2, 1, 40)
    found = insertion(lambda x, t: x.mean((1, 2, 3)), images, maps, torch.zeros(2).long(), tile=1)
    assert torch.isfinite(found).all()
