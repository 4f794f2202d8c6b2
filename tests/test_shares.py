"""Shares in a decision: a slow twin, a known truth, and what they add up to."""

import dataclasses
import itertools

import pytest
import torch
from captum.attr import LayerIntegratedGradients
from torch import nn
from torch.utils.checkpoint import checkpoint

from captum_mi import InfoBottleneckAttribution, LayerInfoBottleneckAttribution
from captum_mi.maps.readout import Readout
from captum_mi.maps.shares import LEVELS, Decision
from captum_mi.model.replay import Replay


@pytest.fixture
def parts(net, images, quick_fit):
    """A fit with two bottlenecks, in float64: a decision, the finest site, and baselines."""
    attr = quick_fit(
        InfoBottleneckAttribution(net.double(), ["stage1", "stage2"], head_layers=[]),
        [images.double()],
    )
    with attr._reading():
        passes, networks = attr._reading_passes(), attr.networks.double()
        inputs = (images[:4].double(),)
        first = passes.first(inputs, (), networks.noised_sites)
        site = networks.finest_site(networks.standardise(first.layers))
        readout = Readout(networks.output.double(), None, None, torch.float64)
        index = torch.tensor([[0], [1], [2], [1]])
        decision = Decision(passes, readout, inputs, (), index, first.before)
        yield decision, site, (torch.full_like(inputs[0], 0.3),)


class Logits(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        logits = self.net(x)
        return logits - logits.mean(1, keepdim=True)


def test_shares_are_captums_integrated_gradients_of_the_logit(parts):
    decision, site, baselines = parts
    logits = Logits(decision.passes.model)
    captum = LayerIntegratedGradients(logits, logits.net.get_submodule(site.layer))
    with torch.enable_grad():
        expected = captum.attribute(
            decision.inputs[0], baselines[0], target=decision.index[:, 0],
            n_steps=len(LEVELS), method="riemann_middle",
        ).sum(1, keepdim=True)
    torch.testing.assert_close(decision.shares(site, baselines), expected.detach())


def test_shares_are_the_same_without_what_the_first_pass_kept(parts):
    decision, *where = parts
    anew = dataclasses.replace(decision, before=Replay())
    torch.testing.assert_close(
        decision.shares(*where), anew.shares(*where), rtol=1e-12, atol=1e-12)


def test_shares_add_up_to_what_the_decision_loses(parts):
    decision, site, baselines = parts
    logits = Logits(decision.passes.model)
    lost = (logits(decision.inputs[0]) - logits(baselines[0])).gather(1, decision.index)[:, 0]
    total = decision.shares(site, baselines, [(i + 0.5) / 400 for i in range(400)])
    torch.testing.assert_close(total.sum((1, 2, 3)), lost.detach(), rtol=1e-3, atol=1e-3)


class Sums(nn.Module):
    """Adds up what each position says for each class: its shares are known."""

    def __init__(self):
        super().__init__()
        self.body = nn.Conv2d(4, 4, 1, bias=False)
        nn.init.dirac_(self.body.weight)

    def forward(self, x):
        return self.body(x).sum((2, 3))


def scenes(n, seed):
    """Images (n, 4, 8, 8) with one patch for a class and a weaker one for another, and masks."""
    generator = torch.Generator().manual_seed(seed)
    x = 0.02 * torch.randn(n, 4, 8, 8, generator=generator)
    label = torch.randint(4, (n,), generator=generator)
    other = (label + torch.randint(1, 4, (n,), generator=generator)) % 4
    cells = torch.rand(n, 16, generator=generator).argsort(1)[:, :2]
    masks = torch.zeros(2, n, 8, 8, dtype=torch.bool)
    for i in range(n):
        for which, (c, size) in enumerate(((label[i], 1.0), (other[i], 0.6))):
            top, left = 2 * (cells[i, which] // 4), 2 * (cells[i, which] % 4)
            masks[which, i, top : top + 2, left : left + 2] = True
            x[i, c][masks[which, i]] += size
    return x, label, masks


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    x, _, _ = scenes(512, 0)
    attr = InfoBottleneckAttribution(Sums(), "body", head_hidden=(32,))
    attr.fit(list(x.split(64)), steps=60, lr=5e-3, beta1=0, progress=False)
    return attr


def test_what_speaks_for_the_class_is_told_from_what_speaks_against_it(trained, monkeypatch):
    x, label, (own, other) = scenes(200, 1)
    shares = measured(trained, x, label, monkeypatch)
    rest = shares[~(own | other)].mean()
    assert shares[own].mean() > 10 * rest.abs()
    assert shares[other].mean() < rest
    flat = shares.flatten(1)
    for cells, extreme in ((own, flat.argmax(1)), (other, flat.argmin(1))):
        assert cells.flatten(1).gather(1, extreme[:, None]).float().mean() > 0.95


def test_shares_depend_neither_on_the_batch_nor_on_the_call(trained, monkeypatch):
    x, label, _ = scenes(16, 3)
    together = measured(trained, x, label, monkeypatch)
    assert torch.equal(together, measured(trained, x, label, monkeypatch))
    alone = measured(trained, x[:1], label[:1], monkeypatch)
    torch.testing.assert_close(alone, together[:1], rtol=1e-4, atol=1e-5)


def measured(attr, x, label, monkeypatch):
    """Shares that a refined map is weighted by."""
    found = []
    original = Decision.shares
    monkeypatch.setattr(Decision, "shares", lambda *where: found.append(
        original(*where)) or found[-1])
    attr.attribute(x, label, refine_steps=4)
    monkeypatch.setattr(Decision, "shares", original)
    return found[-1][:, 0]


def test_what_is_measured_and_alpha_are_refined_apart_or_together(fitted, images):
    options = ({}, {"refine_steps": 2}, {"alpha_steps": 2}, {"refine_steps": 2, "alpha_steps": 2})
    maps = [fitted.attribute(images, 1, **one) for one in options]
    for one, other in itertools.combinations(maps, 2):
        assert not torch.allclose(one, other)
    general = [fitted.attribute(images, 1, information="general", **one) for one in options]
    assert torch.equal(general[0], general[2])  # which has no alpha
    assert torch.equal(general[1], general[3])


@pytest.mark.parametrize("information", ["sufficient", "general"])
def test_the_total_of_a_layer_is_kept_above_the_largest_loss(net, images, quick_fit, information):
    with torch.no_grad():
        net.fc.weight.mul_(10)  # a network that decides: heads that find nothing stay the marginal
    attr = quick_fit(LayerInfoBottleneckAttribution(net, "stage2"), [images], steps=30)
    plain = attr.attribute(images, 2, information=information, weighting="none")
    moved = attr.attribute(images, 2, information=information)
    torch.testing.assert_close(moved.sum((1, 2, 3)), plain.sum((1, 2, 3)))
    refined = attr.attribute(images, 2, information=information, refine_steps=4)
    in_favour = (refined - plain.clamp_max(0)).abs()  # evidence against stays where it is
    largest = largest_loss_of_a_quadrant(net, images, 2)
    total = plain.clamp_min(0).sum((1, 2, 3))
    assert 0 < (total > largest).sum() < len(images)
    torch.testing.assert_close(in_favour.sum((1, 2, 3)), total.maximum(largest))


@torch.no_grad()
def largest_loss_of_a_quadrant(net, images, target):
    log_p = net(images).log_softmax(1)[:, target]
    losses = []
    for rows, columns in itertools.product((slice(6), slice(6, 12)), repeat=2):
        without = images.clone()
        without[:, :, rows, columns] = 0
        losses.append(log_p - net(without).log_softmax(1)[:, target])
    return torch.stack(losses).amax(0)


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(10, 8)
        self.body = nn.Conv1d(8, 8, 3, padding=1)
        self.fc = nn.Linear(8, 3)

    def forward(self, words):
        return self.fc(self.body(self.embed(words).transpose(1, 2)).relu().mean(2))


def test_words_have_shares_too(quick_fit):
    words = torch.randint(10, (16, 6))
    attr = InfoBottleneckAttribution(Words(), "body", channel_axis="first")
    quick_fit(attr, [words], steps=20)
    refined = attr.attribute(words, 0, refine_steps=4)
    assert not torch.equal(refined, attr.attribute(words, 0))


class Detached(nn.Module):
    """Nothing above its first layer can be differentiated, its own parameter aside."""

    def __init__(self, net, trained):
        super().__init__()
        self.net = net
        self.scale = nn.Parameter(torch.ones(()), requires_grad=trained)

    def forward(self, x):
        return self.net(x).detach() * self.scale


def test_a_fit_to_a_prediction_that_cannot_be_differentiated_says_so(net, images, quick_fit):
    with pytest.raises(RuntimeError, match="alpha cannot be inferred"):
        quick_fit(InfoBottleneckAttribution(Detached(net, True), "net.stage1"), [images])


class Checkpointed(nn.Module):
    """Computes its second stage anew in the backward pass, whether it trains or not."""

    def __init__(self, net, use_reentrant):
        super().__init__()
        self.net, self.use_reentrant = net, use_reentrant

    def forward(self, x):
        x = self.net.pool(self.net.stage1(x))
        x = checkpoint(self.net.stage2, x, use_reentrant=self.use_reentrant)
        return self.net.fc(self.net.relu(x).mean((2, 3)))


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_features_that_are_computed_anew(net, images, quick_fit, use_reentrant):
    """Noise before a checkpointed stage is seen by it; noise inside of it would be lost."""
    model = Checkpointed(net, use_reentrant)
    with pytest.raises(RuntimeError, match="torch.utils.checkpoint"):
        quick_fit(InfoBottleneckAttribution(model, "net.stage2"), [images])
    if not use_reentrant:
        maps = [quick_fit(InfoBottleneckAttribution(one, layer), [images]).attribute(images, 1)
                for one, layer in ((model, "net.stage1"), (net, "stage1"))]
        torch.testing.assert_close(*maps)


@pytest.mark.parametrize("trained", [False, True])
def test_a_prediction_that_cannot_be_differentiated_says_so(net, images, quick_fit, trained):
    model = Detached(net, trained)
    attr = quick_fit(InfoBottleneckAttribution(model, "net.stage1", alpha=0.3), [images])
    with pytest.raises(RuntimeError, match="cannot be differentiated.*leave out refine_steps"):
        attr.attribute(images, 1, refine_steps=2)


@pytest.mark.parametrize(("options", "missing"), [
    ({}, "no target"), ({"target": 1, "estimator": "infomax"}, "estimator='infomax'"),
    ({"target": 1, "weighting": "none"}, "weighting='none'"),
])
def test_shares_that_cannot_be_measured_say_what_is_missing(fitted, images, options, missing):
    with pytest.raises(ValueError, match=f"refine_steps measures .* got .*{missing}"):
        fitted.attribute(images, refine_steps=4, **options)


def test_predictions_without_classes_have_no_shares(net, images, quick_fit):
    attr = quick_fit(InfoBottleneckAttribution(net, "stage1", output="gaussian"), [images])
    with pytest.raises(ValueError, match="a prediction without classes"):
        attr.attribute(images, refine_steps=4)
    assert attr.attribute(images, alpha_steps=1).shape == images.shape


def test_classes_of_a_global_layer_are_its_own(net, images, quick_fit, monkeypatch):
    """Logits, then a softmax: what a decision loses is read off the logits, wherever they are."""
    measured = []

    def spy(evidence, posterior, found, places):
        measured.append(found)
        return evidence

    monkeypatch.setattr("captum_mi.maps.evidence.weighted", spy)
    for model, prefix, options in (
        (nn.Sequential(net, nn.Softmax(1)), "0.", {"global_layer": "0", "output": "categorical"}),
        (net, "", {}),
    ):
        layer = f"{prefix}stage2"
        attr = InfoBottleneckAttribution(
            model, layer, head_layers=[], context_layers=layer, **options)
        quick_fit(attr, [images]).attribute(images, 2, refine_steps=4)
    for one, other in zip(*measured):
        torch.testing.assert_close(one, other)
