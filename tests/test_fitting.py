"""The fit learns what it should: known masks, held distortion, a head that beats the marginal."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch import nn

from captum_mi import InfoBottleneckAttribution, LayerInfoBottleneckAttribution
from captum_mi.fitting.example_keys import example_bits, example_keys
from captum_mi.fitting.filling import even_rows
from captum_mi.fitting.multiplier import Multiplier
from captum_mi.grid import locals_of
from captum_mi.metrics import pointing
from captum_mi.model.hooks import capture_only


class Quadrants(nn.Module):
    """Class = which of four colours the only bright patch has; everything else is noise."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(4, 16, 1), nn.ReLU())
        self.pool = nn.AdaptiveMaxPool2d(1)
        self.fc = nn.Linear(16, 4)

    def forward(self, x):
        return self.fc(self.pool(self.body(x)).flatten(1))


def patches(n, seed):
    """Images (n, 4, 8, 8) with a bright 2x2 patch in one channel, its class and its mask."""
    generator = torch.Generator().manual_seed(seed)
    x = 0.3 * torch.randn(n, 4, 8, 8, generator=generator)
    label = torch.randint(4, (n,), generator=generator)
    top, left = 2 * torch.randint(4, (2, n), generator=generator)
    mask = torch.zeros(n, 8, 8, dtype=torch.bool)
    for i in range(n):
        mask[i, top[i] : top[i] + 2, left[i] : left[i] + 2] = True
        x[i, label[i]][mask[i]] += 3
    return x, label, mask


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    model, (x, label, _) = Quadrants(), patches(512, 0)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(200):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), label).backward()
        optimizer.step()
    attr = InfoBottleneckAttribution(model, "body", head_hidden=(32,), critic_hidden=(32,))
    attr.fit(list(x.split(64)), steps=200, lr=1e-2, progress=False)
    return attr


def test_the_information_lies_on_the_patch(trained):
    x, label, mask = patches(128, 1)
    assert (trained.model(x).argmax(1) == label).float().mean() > 0.95
    for options in (
        {"target": label}, {"target": label, "refine_steps": 3}, {"estimator": "infomax"},
        {"information": "general", "target": label},
    ):
        maps = trained.attribute(x, **options).sum(1).clamp_min(0)
        share = (maps * mask).sum((1, 2)) / maps.sum((1, 2)).clamp_min(1e-9)
        assert share.mean() > 0.6, options  # chance: 1/16
        assert pointing(maps, mask).mean() > 0.95, options


def test_evidence_is_for_the_class_that_is_there(trained):
    x, label, mask = patches(128, 2)
    own = {}
    for kind in ("general", "sufficient"):
        on_patch = (trained.evidence(x, information=kind) * mask[:, None]).sum((2, 3)) / 4
        own[kind] = on_patch.gather(1, label[:, None])[:, 0]
        others = (on_patch.sum(1) - own[kind]) / 3
        assert (own[kind] > 0).float().mean() > 0.95
        assert (others < 0).float().mean() > 0.95
    # A clean patch position tells the class, log 4 = 1.39 nats. Less is needed of each of four.
    assert own["general"].mean() == pytest.approx(math.log(4), abs=0.25)
    assert own["sufficient"].mean() < own["general"].mean() - 0.3


def test_noise_goes_where_nothing_is_needed(trained):
    x, _, mask = patches(128, 3)
    networks = trained.networks
    with torch.no_grad():
        features = networks.moments_of(networks.sites[0]).standardise(trained.model.body(x))
        alpha = torch.sigmoid(networks.alpha_map({networks.sites[0]: features}))[:, 0]
    assert alpha[~mask].mean() > 0.95
    # The network takes a maximum over positions, so one of the patch's four is all it needs.
    most_open = alpha.masked_fill(~mask, 1.0).flatten(1).amin(1)
    assert (most_open < 0.6).float().mean() > 0.95


def test_the_distortion_is_held_and_the_head_beats_the_marginal(trained):
    history = trained.history
    assert history.recent("distortion") == pytest.approx(history.kappa, rel=0.5)
    ahead = torch.tensor(history.marginal[-100:]) - torch.tensor(history.head[-100:])
    assert ahead.mean() > 5 * ahead.std() / 10  # standard errors
    assert len(history) == 200


def test_history_can_be_plotted(trained, tmp_path):
    figure = trained.history.plot()
    figure.savefig(tmp_path / "history.png")
    titles = [axis.get_title() for axis in figure.axes if axis.get_title()]
    assert {"alpha, mean", "beta2", "InfoNCE", "Heads ahead of the marginal"} <= set(titles)
    assert all(axis.get_ylabel() for axis in figure.axes if axis.get_title())


def test_sufficient_information_falls_with_alpha():
    x, _, _ = patches(256, 4)
    model = Quadrants()
    means = []
    for alpha in (0.0, 0.6, 0.95):
        attr = LayerInfoBottleneckAttribution(model, "body", alpha=alpha, head_hidden=(32,))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            attr.fit(list(x.split(64)), steps=50, lr=1e-2, progress=False)
        figures = attr.information(list(x.split(64)), progress=False)["body"]
        assert figures["capacity"].mean >= figures["sufficient"].mean
        means.append(figures["sufficient"].mean)
    assert means[0] > means[1] > means[2]


@pytest.mark.parametrize("options", [{"beta2": 0.1}, {"kappa": 0.2}, {"task": "labels"}])
def test_ways_to_weigh_the_terms(net, images, quick_fit, options):
    labels = torch.zeros(32, dtype=torch.long)
    attr = quick_fit(InfoBottleneckAttribution(net, "stage2"), [(images, labels)], **options)
    if "beta2" in options:
        assert set(attr.history.beta2) == {0.1}
        assert attr.history.kappa is None
    if "kappa" in options:
        assert attr.history.kappa == 0.2
    if "task" in options:  # the excess over the loss of the clean pass, which may be negative
        plain = quick_fit(InfoBottleneckAttribution(net, "stage2"), [(images, labels)])
        assert attr.history.distortion != plain.history.distortion


def test_beta2_moves_towards_kappa():
    rising, falling = (Multiplier(None, 0.5, 1.0) for _ in range(2))
    before, information = torch.tensor(torch.nan), torch.tensor(0.25)
    rising.value = falling.value = rising.started(before, information).item()
    assert rising.value == 0.5 / 0.25  # giving up all information is worth kappa
    assert rising.started(torch.tensor(3.0), information) == 3
    for _ in range(50):
        rising.update(0.0)
        falling.update(5.0)
    assert rising.value > 0.5 * 4
    assert falling.value < 0.5 / 100


def test_one_step_and_one_example_are_enough_to_run(net, images, quick_fit):
    attr = quick_fit(InfoBottleneckAttribution(net, "stage2"), [images[:1]], steps=1)
    assert torch.isfinite(attr.attribute(images, target=0)).all()


def test_the_bank_is_drawn_evenly_over_examples():
    z = torch.zeros(4, 3, 5, 5)
    counts = torch.zeros(8)
    for seen in (0, 4):
        example, position = even_rows(z, seen, 8, 20)
        assert len({*zip(example.tolist(), position.tolist())}) == len(example)
        counts[seen : seen + 4] += torch.bincount(example, minlength=4)
    assert counts.sum() == 20
    assert counts.max() - counts.min() <= 1


def test_examples_are_recognised_in_any_batch(images):
    bits = example_bits(images)
    order = torch.randperm(32)
    assert torch.equal(example_bits(images[order]), bits[order])
    assert len(bits.unique()) == 32


@pytest.mark.parametrize("values", [
    torch.randn(4096, 3, 8, 8).bfloat16(), (torch.rand(4096, 64) > 0.5).float(),
    torch.eye(64).repeat(64, 1) + torch.arange(64.0).repeat_interleave(64)[:, None],
    torch.randint(256, (4096, 48)) / 256, torch.randint(10, (4096, 12)),
], ids=["bfloat16", "binary", "one-hot", "n/256", "words"])
def test_one_example_in_eight_is_held_out_of_any_data(values):
    share = float((example_bits(values) % 8 == 0).float().mean())
    assert 0.08 < share < 0.18


def test_no_value_of_one_input_is_held_out_by_itself():
    """The first of two inputs has few values: the other one tells examples apart."""
    flags = (torch.rand(4096, 1, generator=torch.Generator().manual_seed(0)) > 0.6).float()
    held_out = example_bits(flags, torch.randn(4096, 12)) % 8 == 0
    for value in (0, 1):
        share = float(held_out[flags[:, 0] == value].float().mean())
        assert 0.08 < share < 0.18


def test_a_layer_of_noise_warns_in_bfloat16_too():
    """Held-out examples are there to tell that a head has only learnt its data by heart."""

    class Unrelated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.noise, self.top = nn.Conv2d(1, 32, 1), nn.Linear(16, 3)

        def forward(self, x):
            self.noise(x[:, 1:])
            return self.top(x[:, 0].flatten(1)) * 5

    x = torch.randn(48, 2, 4, 4).bfloat16()
    attr = InfoBottleneckAttribution(Unrelated().bfloat16().eval(), "noise", alpha=0.05)
    with pytest.warns(UserWarning, match="no better than the marginal"):
        attr.fit([x], 300, beta1=0, progress=False)


def test_few_examples_of_which_none_is_held_out(net, images):
    attr = InfoBottleneckAttribution(net, "stage1")
    with pytest.warns(UserWarning, match="no examples were held out from the heads, of 2 "):
        attr.fit([images[:2]], 1, progress=False)
    assert math.isnan(attr.history.head[0])


def test_batches_of_one_train_no_critic(net, images):
    attr = InfoBottleneckAttribution(net, "stage1")
    with pytest.warns(UserWarning, match="the critics were not trained"):
        attr.fit(list(images[:4].split(1)), 2, progress=False)


@pytest.mark.parametrize("value", [8, (0,), (4.5,)])
@pytest.mark.parametrize("option", ["head_hidden", "critic_hidden"])
def test_widths_out_of_range(net, option, value):
    with pytest.raises(ValueError, match=rf"{option} must be a sequence of widths .* got "):
        InfoBottleneckAttribution(net, "stage1", **{option: value})


@pytest.mark.parametrize("option", ["lr", "base_lr", "locals_per_example", "bank_size"])
def test_options_out_of_range(net, images, option):
    with pytest.raises(ValueError, match=rf"{option} must be .* got 0"):
        InfoBottleneckAttribution(net, "stage1").fit([images], 1, **{option: 0})


def test_fit_and_refinement_inside_of_inference_mode(net, quick_fit):
    with torch.inference_mode():
        images = torch.randn(16, 3, 12, 12)
        attr = quick_fit(InfoBottleneckAttribution(net, "stage1"), [images], steps=4)
        refined = attr.attribute(images, 1, refine_steps=2)
    assert len(set(attr.history.head)) == 4
    assert not torch.equal(refined, attr.attribute(images, 1))


def test_arguments_made_inside_of_inference_mode(net, quick_fit):
    """Prototypes are often computed there; shares need gradients through what is made of them."""
    class WithWays(type(net)):
        def forward(self, x, ways):
            return super().forward(x)

    images = torch.randn(16, 3, 12, 12)
    ways = torch.randn(16, 3)
    attr = quick_fit(
        InfoBottleneckAttribution(WithWays().eval(), "stage1", global_layer="dropout",
                                  downstream=lambda y, ways: y @ ways[0]),
        [images], additional_forward_args=([ways],))
    outside = attr.attribute(images, 1, ([ways],), refine_steps=3)
    with torch.inference_mode():
        inside = attr.attribute(images, 1, ([ways.clone()],), refine_steps=3)
    torch.testing.assert_close(inside, outside)


def test_inputs_that_are_read_twice_inside_of_inference_mode(quick_fit):
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.top = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 4)

        def forward(self, x):
            return self.top((self.conv(x).relu() * x[:, :1]).mean((2, 3)))

    x = torch.randn(16, 3, 8, 8)
    attr = quick_fit(InfoBottleneckAttribution(
        Gated().eval(), "conv", head_layers=[], context_layers="conv"), [x])
    for options in ({"refine_steps": 4}, {"alpha_steps": 4}):
        expected = attr.attribute(x, 1, **options)
        with torch.inference_mode():
            inside = attr.attribute(x.clone(), 1, **options)
        torch.testing.assert_close(inside, expected)


def test_a_loader_is_started_once_in_a_walk(net, images, quick_fit):
    """A DataLoader that is started loads batches ahead, in processes of its own."""
    class Counting:
        walks = epoch = 0
        told = ()

        @property
        def sampler(self):
            return self

        def set_epoch(self, epoch):
            self.epoch = epoch
            self.told += (epoch,)

        def __iter__(self):
            self.walks += 1
            yield from images.split(16)

    loader = Counting()
    loader.epoch = 5
    quick_fit(InfoBottleneckAttribution(net, "stage2"), loader, steps=5)
    walks = 1 + 1 + 3 + 1  # a first batch, survey, five steps of two a walk, bank
    assert loader.walks == walks
    assert loader.told == (*range(5, 5 + walks), 5)


def test_the_bank_has_locals_of_every_kind_that_is_scored(net, images, quick_fit):
    """Draws of x' against draws, and x against x: else estimates have no meaning."""
    attr = quick_fit(InfoBottleneckAttribution(net, "stage2", alpha=0.8), [images])
    networks, site = attr.networks, attr.networks.sites[0]
    with torch.no_grad():
        names = {one.layer: None for one in networks.all_sites}
        z = networks.standardise(capture_only(net, [*names], lambda: net(images)))[site]
        kinds = {"clean": z, "noised": 0.2 * z + 0.8 * torch.randn_like(z)}
        for kind, features in kinds.items():
            embedded = networks.critic(site, kind).embed_local(locals_of(features)).flatten(0, 1)
            bank = networks.bank(site).get_buffer(kind)
            assert (bank.std(0) / embedded.std(0)).log().abs().mean() < 0.1


def test_a_copy_with_parameters_that_are_integers_is_fine_tuned(net, images, quick_fit):
    net.steps = nn.Parameter(torch.zeros(3, dtype=torch.long), requires_grad=False)
    attr = quick_fit(InfoBottleneckAttribution(net, "stage2"), [images], finetune_base=True)
    assert not torch.equal(attr.model.fc.weight, net.fc.weight)


def test_noise_everywhere_that_changes_nothing_is_said(recwarn):
    """The decision passes beside the chosen layers."""
    cases = ((0.99, "passes beside these layers"), (0.5, "a smaller kappa, such as 0.1"))
    for alpha, expected in cases:
        multiplier = Multiplier(None, 0.5, 1.0)
        multiplier.value = 1.0
        multiplier.update(0.1)
        multiplier.warn_if_missed(alpha)
        assert expected in str(recwarn.pop().message)
    Multiplier(None, None, 1e-2, varied=1e-5).warn_if_missed(0.99)
    assert "predicts nearly the same for all of the data" in str(recwarn.pop().message)


def test_several_labels_at_once_are_no_probabilities_of_classes(net, images):
    several = (torch.arange(32)[:, None] % torch.arange(1, 6) == 0).float()
    with pytest.raises(ValueError, match="which sum to 1; a row is off by 4.* output='bernoulli'"):
        InfoBottleneckAttribution(net, "stage1").fit([(images, several)], 1, task="labels")


def test_doubles_are_told_apart_by_all_their_bits():
    seconds = 1.7e9 + torch.randn(64, 1, 4, dtype=torch.float64)
    assert len(set(example_keys(seconds).tolist())) == 64
    assert torch.equal(example_keys(seconds.half()), example_keys(seconds.half().float()))


def test_complex_numbers_are_told_apart_by_both_parts():
    waves = 1j * torch.randn(64, 1, 4)
    for same in (waves, waves.conj().resolve_conj().conj()):
        assert len(set(example_keys(same).tolist())) == 64
