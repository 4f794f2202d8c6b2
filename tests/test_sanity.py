"""Cascading randomisation changes what depends on the parameters, and nothing of the model."""

import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from torchvision.models import VisionTransformer

from captum_mi import InfoBottleneckAttribution
from captum_mi.metrics import cascading_randomization, mask_leak, structural_similarity


def test_similarity_is_one_for_the_same_map_whatever_its_scale():
    maps = torch.rand(3, 16, 16)
    torch.testing.assert_close(structural_similarity(5 * maps - 2, maps), torch.ones(3))
    assert (structural_similarity(torch.rand(3, 16, 16), maps) < 0.3).all()
    assert torch.isfinite(structural_similarity(torch.zeros(3, 16, 16), maps)).all()


@pytest.mark.parametrize("shapes", [[(2, 8, 8), (2, 8, 8)], [(2, 16, 16), (2, 16, 17)],
                                    [(2, 3, 16, 16), (2, 3, 16, 16)]])
def test_maps_that_have_no_similarity(shapes):
    with pytest.raises(ValueError, match=r"of one shape, H and W at least 11; got \(2, "):
        structural_similarity(*map(torch.rand, shapes))


def test_a_map_changes_from_the_first_step_on_that_it_depends_on(net, images):
    state = {k: v.clone() for k, v in net.state_dict().items()}
    random = torch.get_rng_state()
    early = cascading_randomization(net, lambda copy: copy.stage1(images).mean(1).detach(), seed=7)
    assert early.layers == ["fc", "stage2", "stage1"]
    assert early.similarity.shape == (3, 32)
    torch.testing.assert_close(early.similarity[:2], torch.ones(2, 32))
    assert early.similarity[2].mean() < 0.9
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)


def test_edge_detectors_fail_it(net, images):
    result = cascading_randomization(net, lambda copy: images.diff(dim=3).abs().sum(1))
    torch.testing.assert_close(result.similarity, torch.ones_like(result.similarity))


def test_it_takes_a_fit_bound_to_the_copy(net, images, quick_fit):
    with torch.no_grad():
        net.fc.weight.mul_(10)  # a network that decides: heads that find nothing stay the marginal
    attr = quick_fit(InfoBottleneckAttribution(net, "stage1"), [images], steps=40)

    def similarity(**options):
        return cascading_randomization(
            net, lambda copy: attr.bind(copy).attribute(images, 1, **options).sum(1),
            ["fc", "stage2"],
        ).similarity

    inferred = similarity()
    torch.testing.assert_close(inferred[0], torch.ones(32))  # fc lies above all heads
    assert inferred[1].mean() < 0.99
    measured = similarity(refine_steps=4)  # through fc
    assert measured[0].mean() < 0.999
    assert measured[1].mean() < 0.99


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1000))

    def forward(self, x):
        return self.scale.mean() * x


def test_parameters_that_nothing_initialises_are_drawn_like_they_were():
    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Sequential(Scaled()))
    seen = []
    with torch.no_grad():
        before = model[1][0].scale.normal_(3, 2).clone()
    cascading_randomization(
        model, lambda copy: seen.append(copy[1][0].scale.detach()) or torch.rand(1, 16, 16))
    assert abs(float((seen[-1] * before).mean() - 9)) < 1  # of the same mean, and independent
    assert float(seen[-1].std()) == pytest.approx(2, rel=0.2)


def test_all_parameters_of_a_transformer_are_randomised():
    torch.manual_seed(0)
    model = VisionTransformer(16, 8, 1, 2, 8, 16, num_classes=3)
    with torch.no_grad():
        model.class_token.normal_()
    before = {name: value.clone() for name, value in model.named_parameters()}
    copies = []
    result = cascading_randomization(
        model, lambda copy: copies.append(copy) or torch.rand(1, 16, 16))
    assert result.layers == ["heads", "encoder", "conv_proj", ""]
    for name, value in copies[-1].named_parameters():
        assert value.std(correction=0) == 0 or not torch.equal(value, before[name]), name
    for name, value in model.named_parameters():
        assert torch.equal(value, before[name])


def classes_by_brightness(n=30):
    """Images of three classes: their number is their mean."""
    labels = torch.arange(n) % 3
    noise = 0.1 * torch.randn(n, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    return labels[:, None, None, None] + noise, labels


def read(images):
    return -(images.mean((1, 2, 3))[:, None] - torch.arange(3)).square() * 20


def test_a_mask_that_carries_the_class_leaks_and_one_that_does_not_does_not():
    images, labels = classes_by_brightness()
    told = mask_leak(lambda masks, features: read(masks), images, labels, batch_size=7)
    assert told.nats.min() > 5
    assert told.found.mean() == 1
    assert told.chance.mean() == 0
    honest = mask_leak(lambda masks, features: read(features), images, labels)
    torch.testing.assert_close(honest.nats, torch.zeros(30))
    assert honest.found.sum() == honest.chance.sum() == 0


def test_a_leak_needs_three_classes():
    images, labels = classes_by_brightness()
    with pytest.raises(ValueError, match="images of at least three classes"):
        mask_leak(lambda masks, features: read(masks), images, labels % 2)


def test_predicting_from_x_prime(net, images, quick_fit):
    """Untouched features give the model's output, noised ones another; alpha may be another's."""
    clean = quick_fit(InfoBottleneckAttribution(net, "stage2", alpha=0.0), [images])
    torch.testing.assert_close(clean.predict_noised(images), net(images), atol=1e-5, rtol=1e-4)
    attr = quick_fit(InfoBottleneckAttribution(net, "stage2"), [images], steps=60)
    own = attr.predict_noised(images)
    assert torch.equal(own, attr.predict_noised(images))
    assert (own - net(images)).abs().max() > 1e-4
    torch.testing.assert_close(own[:3], attr.predict_noised(images[:3]))
    assert not torch.equal(own, attr.predict_noised(images, alpha_inputs=images.flip(0)))
    with pytest.raises(ValueError, match=r"alpha_inputs must have the inputs' shapes, .*32.*3"):
        attr.predict_noised(images, alpha_inputs=images[:3])
    leak = mask_leak(lambda m, f: attr.predict_noised(f, alpha_inputs=m), images,
                     torch.arange(32) % 5)
    assert leak.nats.shape == (32,)


@pytest.mark.parametrize("wrap", [
    lambda layer: nn.utils.weight_norm(layer),
    lambda layer: nn.utils.parametrizations.weight_norm(layer),
    lambda layer: prune.l1_unstructured(layer, "weight", 0.2),
])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_weights_that_are_computed_from_others_are_randomised(wrap):
    model = nn.Sequential(wrap(nn.Conv2d(1, 8, 5, padding=2)), nn.ReLU(), nn.Conv2d(8, 1, 1))
    images = torch.randn(4, 1, 24, 24)
    with torch.no_grad():
        model(images)  # weights that are computed with gradients cannot be copied
        result = cascading_randomization(model, lambda copy: copy(images)[:, 0], layers=["0"])
    assert float(result.similarity.mean()) < 0.7
