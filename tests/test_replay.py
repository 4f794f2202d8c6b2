"""A second pass that skips what runs before the bottleneck gives what a whole one gives."""

from __future__ import annotations

import itertools
from typing import ClassVar

import pytest
import torch
import torchvision
from torch import nn

from captum_mi import InfoBottleneckAttribution
from captum_mi.fitting.example_keys import example_keys
from captum_mi.fitting.first_passes import _keys, _of_rows
from captum_mi.model.batches import Batch
from captum_mi.model.replay import Replay


class Awkward(nn.Module):
    """Overwrites in place, shares modules, calls some twice, and skips past the bottleneck."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.early = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(inplace=True))
        self.shared = nn.Tanh()
        self.twice = nn.Conv2d(4, 4, 1)
        self.layer = nn.Conv2d(4, 4, 1)
        self.late = nn.Conv2d(4, 2, 1)
        self.calls = []
        for name, module in self.named_children():
            module.register_forward_hook(lambda m, i, o, name=name: self.calls.append(name))

    def forward(self, x):
        h = self.stem(x)
        skip = self.early(h)
        h = self.shared(self.twice(self.twice(skip)))
        h += skip
        h = self.layer(h).relu_()
        skip *= 2
        return self.late(self.shared(h + skip))


class Rectified(nn.Module):
    """A block that rectifies what it is given in place, before its skip connection."""

    def __init__(self):
        super().__init__()
        self.relu, self.first = nn.ReLU(inplace=True), nn.Conv2d(4, 4, 1)
        self.second = nn.Conv2d(4, 4, 1)

    def forward(self, x):
        return self.second(self.first(self.relu(x)).relu()) + x


@pytest.mark.parametrize("name", ["1.first", "1.second", "1", "2.first", "2"])
def test_what_overwrites_its_input_does_so_again(name):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), Rectified(), Rectified()).eval()
    x, replay = torch.randn(2, 3, 4, 4), Replay()
    with torch.no_grad():
        with replay.record(model, [name]):
            whole = model(x)
        with replay.play():
            assert torch.equal(model(x), whole)


class Skips(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())
        self.middle, self.top = nn.Conv2d(4, 4, 1), nn.Linear(4, 3)

    def forward(self, x):
        encoded = self.encoder(x)
        return self.top((self.middle(encoded) + encoded).mean((2, 3)))


class Stacked(Skips):
    """Hands its skip over by a list, beside what modules return."""

    def __init__(self):
        super().__init__()
        self.stack = []
        self.encoder = Pushing(self.encoder, self.stack)

    def forward(self, x):
        return self.top((self.middle(self.encoder(x)) + self.stack.pop()).mean((2, 3)))


class Pushing(nn.Module):
    def __init__(self, inner, stack):
        super().__init__()
        self.inner, self.stack = inner, stack

    def forward(self, x):
        self.stack.append(self.inner(x))
        return self.stack[-1]


def test_models_that_cannot_be_replayed_run_whole(quick_fit):
    plain, stacked = Skips().eval(), Stacked().eval()
    stacked.encoder.inner.load_state_dict(plain.encoder.state_dict())
    for name in ("middle", "top"):
        getattr(stacked, name).load_state_dict(getattr(plain, name).state_dict())
    x = torch.randn(16, 3, 6, 6)
    fits = [
        quick_fit(InfoBottleneckAttribution(model, "middle", head_layers=[],
                                            context_layers="middle"), [x])
        for model in (plain, stacked)
    ]
    assert [fit._fitted().structure.replays for fit in fits] == [True, False]
    for options in ({}, {"refine_steps": 4}):
        torch.testing.assert_close(*(fit.attribute(x, 1, **options) for fit in fits))
    assert not stacked.stack


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "densenet121", "swin_t"])
def test_networks_return_the_same_in_less_work(name):
    model = torchvision.models.get_model(name, num_classes=5).eval()
    layer = {"resnet18": "layer2", "mobilenet_v3_small": "features.4",
             "densenet121": "features.denseblock2", "swin_t": "features.3"}[name]
    x, replay = torch.randn(2, 3, 64, 64), Replay()
    with torch.no_grad():
        whole = model(x)
        with replay.record(model, [layer]):
            assert torch.equal(model(x), whole)
        started = set()
        for module in model.modules():
            module.register_forward_pre_hook(lambda module, args: started.add(module))
        for _ in range(2):
            with replay.play():
                assert torch.equal(model(x), whole)
        inside = set(model.get_submodule(layer).modules()) - {model.get_submodule(layer)}
        assert not inside & started
    assert not any("forward" in module.__dict__ for module in model.modules())


def test_what_was_overwritten_shared_or_called_twice_is_computed_anew():
    model, x, replay = Awkward().eval(), torch.randn(2, 3, 6, 6), Replay()
    with torch.no_grad():
        whole = model(x)
        with replay.record(model, ["layer"]):
            model(x)
        for _ in range(3):
            with replay.play():
                torch.testing.assert_close(model(x), whole, rtol=0, atol=0)


def test_hooks_of_others_see_and_change_what_they_did():
    model, x, replay = Awkward().eval(), torch.randn(2, 3, 6, 6), Replay()
    model.stem.register_forward_hook(lambda module, args, output: output + 1)
    with torch.no_grad():
        with replay.record(model, ["layer"]):
            whole = model(x)
        first = list(model.calls)
        model.calls.clear()
        with replay.play():
            assert torch.equal(model(x), whole)
    assert model.calls == first


def test_a_changed_bottleneck_changes_what_comes_after():
    model = torchvision.models.resnet18(num_classes=5).eval()
    x, replay = torch.randn(2, 3, 32, 32), Replay()
    with torch.no_grad(), replay.record(model, ["layer2"]):
        model(x)
    scale = torch.ones((), requires_grad=True)
    handle = model.layer2.register_forward_hook(lambda module, args, output: output * scale)
    whole = model(x).sum()
    expected = torch.autograd.grad(whole, scale)[0]
    with replay.play():
        again = model(x).sum()
    torch.testing.assert_close(torch.autograd.grad(again, scale)[0], expected)
    handle.remove()


def test_a_call_that_raised_is_forgotten():
    class Forgiving(nn.Module):
        def __init__(self):
            super().__init__()
            self.bad, self.good, self.layer = nn.Linear(5, 5), nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x):
            try:
                self.bad(x)
            except RuntimeError:
                x = self.good(x)
            return self.layer(x)

    model, x, replay = Forgiving().eval(), torch.randn(2, 3), Replay()
    with torch.no_grad():
        with replay.record(model, ["layer"]):
            whole = model(x)
        with replay.play():
            assert torch.equal(model(x), whole)


class Stem(nn.Conv2d):
    """Notes how many examples it is given."""

    seen: ClassVar[list[int]] = []  # of all stems: attributes of one are put back after a fit

    def forward(self, x):
        self.seen.append(len(x))
        return super().forward(x)


class Counted(nn.Sequential):
    """A stem that notes what it is given, an overwritten bottleneck layer, and a rest."""

    def __init__(self):
        super().__init__(Stem(3, 4, 3, padding=1), nn.ReLU(inplace=True),
                         nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(inplace=True),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))


def counted():
    model = Counted().eval().requires_grad_(False)
    return InfoBottleneckAttribution(model, "2", head_layers=[], context_layers=["1", "2"])


def skipping():
    return InfoBottleneckAttribution(Skips().eval(), "middle", head_layers=[],
                                     context_layers="middle")


class Shuffled:
    """A loader that shuffles anew in each walk, and may change what it yields."""

    def __init__(self, change=lambda batch, walk: batch):
        self.x, self.change, self.walks = torch.randn(24, 3, 6, 6), change, 0

    def __len__(self):
        return 3

    def __iter__(self):
        self.walks += 1
        order = torch.randperm(24, generator=torch.Generator().manual_seed(self.walks))
        return (self.change(batch, self.walks) for batch in self.x[order].split(8))


def histories(attr, loader, quick_fit, **options):
    """Without and with remembered passes, and how many examples the model's stem has seen."""
    results, seen = [], []
    for each in ({"cache_bytes": 0}, options):
        loader.walks = 0
        Stem.seen.clear()
        quick_fit(attr, loader, steps=8, **each)
        results.append(attr.history)
        seen.append(sum(Stem.seen))
    for name, values in vars(results[0]).items():
        if isinstance(values, list):
            again = getattr(results[1], name)
            assert again == pytest.approx(values, rel=1e-4, nan_ok=True), name
    return seen


def test_first_passes_are_remembered_whatever_the_order(quick_fit):
    without, with_them = histories(counted(), Shuffled(), quick_fit)
    assert without - with_them == 8 * 8 + 24  # the steps' first passes, and the bank's


@pytest.mark.parametrize(("change", "limit"), [
    (lambda batch, walk: batch, 24 * 10 * 36 * 4),  # of the features alone, without the outputs
    (lambda batch, walk: batch + walk, 2**20),
    (lambda batch, walk: torch.cat([batch, batch[:1] + walk]), 2**20),
])
def test_passes_that_do_not_fit_or_come_again_are_run(quick_fit, change, limit):
    without, with_them = histories(counted(), Shuffled(change), quick_fit, cache_bytes=limit)
    assert without == with_them


def test_a_way_past_the_bottleneck_forbids_to_remember(quick_fit):
    attr = skipping()
    histories(attr, Shuffled(), quick_fit)
    structure = attr._fitted().structure
    assert (structure.replays, structure.resumes) == (True, False)


def test_inputs_of_few_values_have_different_keys():
    every = torch.tensor(list(itertools.product([0.0, 1.0], repeat=12)))
    assert len(example_keys(every).unique()) == len(every)
    assert torch.equal(example_keys(every[7:9]), example_keys(every)[7:9])


@pytest.mark.parametrize("axes", [(0, 1, 2, 3), (0, 3, 1, 2), (0, 2, 3, 1)])
def test_rows_are_put_together_as_they_lay_in_memory(axes):
    batches = [torch.randn(4, 3, 5, 6).permute(axes) for _ in range(2)]
    together = _of_rows([batches[1], batches[0], batches[1]], [3, 0, 1])
    assert torch.equal(together, torch.stack([batches[1][3], batches[0][0], batches[1][1]]))
    assert together.stride() == batches[0].stride()


def test_an_example_with_more_padding_is_another():
    tokens = torch.randint(1, 9, (6, 5))
    padded = nn.functional.pad(tokens, (0, 2))
    assert not set(_keys(Batch((tokens,)))) & set(_keys(Batch((padded,))))
    assert _keys(Batch((tokens[2:4],))) == _keys(Batch((tokens,)))[2:4]


def test_what_runs_before_the_bottleneck_may_return_integers(quick_fit):
    class Bins(nn.Module):
        def forward(self, x):
            return torch.bucketize(x, torch.linspace(-2, 2, 7))

    model = nn.Sequential(Bins(), nn.Embedding(8, 4), nn.Linear(4, 4), nn.ReLU(), nn.Flatten(),
                          nn.Linear(80, 3))
    x = torch.randn(16, 20)
    attr = quick_fit(InfoBottleneckAttribution(model, "2", channel_axis="last"), [x])
    assert attr.attribute(x, 1).shape == x.shape
