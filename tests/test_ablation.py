"""What a decision loses without a block of its input: known truth, and Captum's own ablation."""

import pytest
import torch
from captum.attr import FeatureAblation

from captum_mi import LayerInfoBottleneckAttribution
from captum_mi.maps.ablation import ablated, block_counts, block_losses


@pytest.mark.parametrize(
    ("n", "sizes", "counts"),
    [
        (9, (96, 96), (3, 3)), (16, (48, 48), (4, 4)), (8, (10, 10), (3, 2)), (1, (9, 9), (1, 1)),
        (9, (16, 64), (2, 4)), (5, (100,), (5,)), (7, (4,), (4,)), (27, (8, 8, 8), (3, 3, 3)),
        (100, (2, 3), (2, 3)), (4, (1, 50), (1, 4)),
    ],
)
def test_blocks_are_nearly_square_and_at_most_so_many(n, sizes, counts):
    assert block_counts(n, sizes) == counts


@pytest.mark.parametrize(("shape", "first_axis"), [((2, 3, 7, 8), 2), ((2, 7, 8, 3), 1)])
def test_every_element_is_removed_once(shape, first_axis):
    x, baseline = torch.rand(shape) + 1, torch.zeros(())
    gone = [without == 0 for without in ablated(x, baseline, (3, 2), first_axis)]
    assert len(gone) == 6
    assert torch.equal(torch.stack(gone).int().sum(0), torch.ones(shape, dtype=torch.int))


def test_losses_are_what_captum_finds_for_a_mask_of_the_blocks(net, images):
    net.eval()
    x, baseline = images[:5, :, :12, :12], torch.full((), 0.3)

    def log_p(inputs):
        return net(inputs).log_softmax(1)

    with torch.no_grad():
        losses = block_losses(lambda one: log_p(one)[:, 2], log_p(x)[:, 2], x, baseline, 9, 2, 2)
        rows = torch.arange(12) // 4
        mask = (3 * rows[:, None] + rows)[None, None]
        truth = FeatureAblation(log_p).attribute(x, 0.3, target=2, feature_mask=mask)
    torch.testing.assert_close(losses, truth[:, :1, ::4, ::4], rtol=1e-4, atol=1e-6)


def test_baselines_take_the_place_of_blocks(fitted, images):
    zero = fitted.attribute(images, 1, refine_steps=4)
    for same in (0, 0.0, torch.zeros_like(images), (torch.zeros_like(images[:1]),)):
        refined = fitted.attribute(images, 1, refine_steps=4, baselines=same)
        torch.testing.assert_close(refined, zero)
    rows = torch.randn_like(images)
    other = fitted.attribute(images, 1, refine_steps=4, baselines=rows)
    assert not torch.allclose(other, zero, rtol=1e-3)
    parts = fitted.attribute(images, 1, refine_steps=4, baselines=rows, internal_batch_size=5)
    torch.testing.assert_close(parts, other, rtol=1e-4, atol=1e-5 * float(other.abs().max()))
    with pytest.raises(AssertionError, match="Baseline can be provided as a tensor for just one"):
        fitted.attribute(images, 1, refine_steps=4, baselines=torch.zeros(2, 3, 12, 12))


def test_a_layer_without_a_matching_input_says_so(quick_fit):
    """Rows of pixels that the model folds to images by itself have no blocks."""
    model = torch.nn.Sequential(
        torch.nn.Unflatten(1, (1, 6, 6)), torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(),
        torch.nn.Flatten(), torch.nn.Linear(64, 3),
    )
    rows = torch.randn(16, 36)
    attr = quick_fit(LayerInfoBottleneckAttribution(model, "2"), [rows])
    assert attr.attribute(rows, 0).shape == (16, 1, 4, 4)
    with pytest.raises(ValueError, match="no input matches features of 2 position axes"):
        attr.attribute(rows, 0, refine_steps=4)
