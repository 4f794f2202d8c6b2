"""Model, inputs and global state are as before, after success and after an exception."""

from __future__ import annotations

import copy
import random
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Event

import numpy as np
import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

from captum_mi import InfoBottleneckAttribution, LayerInfoBottleneckAttribution
from captum_mi.model.hooks import capture_only
from captum_mi.model.modules import held_by, modules_of
from captum_mi.model.preserve import evaluation_mode


class Counting(nn.Module):
    """Has a buffer of its own that changes with every call, and draws random numbers."""

    def __init__(self, fail_at=None):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.fail_at = fail_at

    def forward(self, x):
        self.calls += 1
        if self.fail_at is not None and self.calls >= self.fail_at:
            raise RuntimeError("the model failed")
        return x + 0 * torch.rand(())


def model_with(net, fail_at=None):
    model = nn.Sequential(net, Counting(fail_at))
    model.train()
    model[0].stage2.eval()  # mixed flags
    model[0].fc.bias.requires_grad_(False)
    model[0].fc.weight.grad = torch.ones_like(model[0].fc.weight)
    return model


def state_of(model):
    return {
        "weights": {k: v.clone() for k, v in model.state_dict().items()},
        "training": [m.training for m in model.modules()],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "grad": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "hooks": [
            (len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks))
            for m in model.modules()
        ],
        "torch": torch.get_rng_state(),
        "numpy": copy.deepcopy(np.random.get_state()[1]),
        "python": random.getstate(),
        "grad_mode": torch.is_grad_enabled(),
    }


def assert_same(before, after):
    assert before.keys() == after.keys()
    for key in before["weights"]:
        assert torch.equal(before["weights"][key], after["weights"][key]), key
    for key in ("training", "requires_grad", "hooks", "python", "grad_mode"):
        assert before[key] == after[key], key
    for a, b in zip(before["grad"], after["grad"]):
        assert (a is None and b is None) or torch.equal(a, b)
    assert torch.equal(before["torch"], after["torch"])
    assert (before["numpy"] == after["numpy"]).all()


@pytest.mark.parametrize("finetune_base", [False, True])
def test_after_success(net, images, quick_fit, finetune_base):
    model, inputs = model_with(net), images.clone().requires_grad_()
    before = state_of(model)
    loader = torch.utils.data.DataLoader(images, batch_size=16, shuffle=True)
    attr = quick_fit(
        InfoBottleneckAttribution(model, "0.stage2"), loader, finetune_base=finetune_base
    )
    assert_same(before, state_of(model))
    for options in ({}, {"refine_steps": 2}, {"alpha_steps": 2}, {"estimator": "infomax"}):
        attr.attribute(inputs, target=0, **options)
        assert_same(before, state_of(model))
    attr.information([images], progress=False)
    assert_same(before, state_of(model))
    assert torch.equal(inputs.detach(), images)
    assert inputs.grad is None
    assert inputs.requires_grad


class Overwriting(nn.Module):
    """Normalises its input, in place or not."""

    def __init__(self, net, in_place):
        super().__init__()
        self.net, self.in_place = net, in_place

    def forward(self, x):
        return self.net((x if self.in_place else x.clone()).sub_(0.5).div_(0.25))


def test_a_model_that_overwrites_its_input(net, images, quick_fit):
    maps, inputs = [], images.clone()
    for in_place in (True, False):
        attr = InfoBottleneckAttribution(Overwriting(net, in_place), "net.stage2")
        quick_fit(attr, [inputs])
        maps.append(attr.attribute(inputs, 1, refine_steps=4))
        attr.predict_noised(inputs)
        assert torch.equal(inputs, images)
    torch.testing.assert_close(*maps)


@pytest.mark.parametrize("fail_at", [1, 3, 5, 8])
def test_after_an_exception_in_fit(net, images, quick_fit, fail_at):
    model = model_with(net, fail_at)
    before = state_of(model)
    with pytest.raises(RuntimeError, match="the model failed"):
        quick_fit(InfoBottleneckAttribution(model, "0.stage2"), [images])
    assert_same(before, state_of(model))


class Merging(nn.Linear):
    """Merges a low-rank part into its weight in eval mode, as LoRA layers do (Hu et al., 2021)."""

    def __init__(self, size):
        super().__init__(size, size)
        self.part = nn.Parameter(torch.randn(size, size))
        self.merged = False

    def train(self, mode=True):
        if mode == self.merged:
            self.weight.data += -self.part if mode else self.part
            self.merged = not mode
        return super().train(mode)

    def forward(self, x):
        y = super().forward(x)
        return y if self.merged else y + x @ self.part.T


def test_weights_that_eval_merges_are_taken_apart_again(net, images, quick_fit):
    size = net.fc.out_features
    model = nn.Sequential(net, Merging(size), nn.Sequential(Merging(size)))
    model.train()
    model[2][0].eval()
    weights = [model[1].weight.clone(), model[2][0].weight.clone()]
    attr = quick_fit(InfoBottleneckAttribution(model, "0.stage1"), [images])
    attr.attribute(images, 1)
    assert model.training
    assert [model[1].merged, model[2][0].merged] == [False, True]
    assert [model[1].training, model[2][0].training] == [True, False]
    for module, weight in zip((model[1], model[2][0]), weights):
        torch.testing.assert_close(module.weight, weight)


@pytest.mark.parametrize(("options", "passes"), [
    ({"estimator": "infomax"}, 0), ({"refine_steps": 2}, 2), ({"alpha_steps": 2}, 1),
])
def test_after_an_exception_in_attribute(net, images, quick_fit, options, passes):
    model = model_with(net)
    attr = quick_fit(InfoBottleneckAttribution(model, "0.stage2"), [images])
    model[1].fail_at = 1 + passes
    before = state_of(model)
    with pytest.raises(RuntimeError, match="the model failed"):
        attr.attribute(images, target=0, **options)
    assert_same(before, state_of(model))


def test_the_seed_alone_decides_the_fit(net, images, quick_fit):
    def fit(seed):
        torch.rand(random.randint(1, 5))  # the global state must not matter
        loader = torch.utils.data.DataLoader(images, batch_size=16, shuffle=True)
        attr = quick_fit(InfoBottleneckAttribution(net, "stage2"), loader, seed=seed)
        return attr.attribute(images, target=0)

    assert torch.equal(fit(0), fit(0))
    assert not torch.equal(fit(0), fit(1))


def test_finetuning_trains_a_copy(net, images, quick_fit):
    attr = quick_fit(
        InfoBottleneckAttribution(net, "stage2"), [images], steps=5, finetune_base=True,
        base_lr=1e-2,
    )
    assert attr.model is not net
    assert attr.layer is attr.model.stage2
    assert not torch.equal(attr.model.stage2[0].weight, net.stage2[0].weight)
    assert attr.attribute(images, target=0).shape == images.shape


def test_moments_and_marginal_are_those_of_the_finetuned_copy(net, images, quick_fit):
    labels = (torch.arange(32) < 4).long()  # other predictions than the network's
    attr = quick_fit(
        InfoBottleneckAttribution(net, "stage2"), [(images, labels)], steps=30, task="labels",
        finetune_base=True, base_lr=0.1, beta1=0, beta2=0.1,
    )
    mean = attr.model(images).softmax(1).mean(0)
    assert (mean - net(images).softmax(1).mean(0)).abs().max() > 0.1
    torch.testing.assert_close(attr.networks.output.log_marginal.exp(), mean, atol=0.02, rtol=0)
    (site,) = attr.networks.sites
    layers = capture_only(attr.model, attr.layers, lambda: attr.model(images))
    z = attr.networks.moments_of(site).standardise(site.of(layers))
    assert z.mean((0, 2, 3)).abs().max() < 1e-4


def test_attribution_runs_the_model_no_further_than_the_deepest_layer_that_is_read(
    net, images, quick_fit
):
    """The classifier on top does not run, unless its output is read."""
    attr = quick_fit(InfoBottleneckAttribution(net, "stage1"), [images])
    calls = []
    handle = net.fc.register_forward_hook(lambda *_: calls.append(1))
    attr.attribute(images)
    attr.attribute(images, target=1)
    attr.evidence(images)
    assert not calls
    attr.attribute(images, estimator="infomax")
    attr.attribute(images, target=1, alpha_steps=1)
    assert len(calls) == 3  # refinement runs a second pass
    handle.remove()
    assert not any(module._forward_hooks for module in net.modules())


@pytest.mark.parametrize("marginal", ["data", "uniform"])
def test_a_downstream_module_in_train_mode(net, images, quick_fit, marginal):
    downstream = nn.Sequential(nn.Linear(16, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 3))
    before = {name: value.clone() for name, value in downstream.state_dict().items()}
    attr = quick_fit(
        InfoBottleneckAttribution(
            net, "stage2", global_layer="dropout", downstream=downstream, marginal=marginal),
        [images])
    maps = attr.attribute(images, 1)
    torch.testing.assert_close(attr.attribute(images, 1), maps, rtol=0, atol=0)
    torch.testing.assert_close(attr.attribute(images[:1], 1), maps[:1], rtol=1e-4, atol=1e-6)
    assert all(module.training for module in downstream.modules())
    for name, value in downstream.state_dict().items():
        assert torch.equal(value, before[name])


class Descending(nn.Module):
    """Takes its input downhill before it looks at it, by a backward pass of its own."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        with torch.enable_grad():
            lower = x.detach().requires_grad_()
            self.network(lower).square().sum().backward()
        return self.network(x - 0.1 * lower.grad)


def test_a_backward_pass_of_the_model_leaves_its_parameters_without_gradients(net, images):
    model = Descending(net)
    attr = InfoBottleneckAttribution(model, "network.stage2", on_repeat="last")
    attr.fit([images], 2, progress=False, bank_size=32, beta2=0.1)
    attr.attribute(images, 0)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_model_that_counts_its_calls_has_not_changed(net, images, quick_fit, recwarn):
    class Counting(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros((), dtype=torch.long))

        def forward(self, x):
            self.calls += 1
            return x

    net.stage1 = torch.nn.Sequential(Counting(), *net.stage1)
    attr = quick_fit(InfoBottleneckAttribution(net, ["stage1", "stage2"]), [images])
    for options in ({}, {"refine_steps": 2}, {"estimator": "infomax"}):
        attr.attribute(images, 0, **options)
    assert not [one for one in recwarn if "weights have changed" in str(one.message)]


def test_weights_that_the_model_has_let_go_of_are_free(net, images, quick_fit):
    """As of a model that has moved to another device: what is kept of weights does not own them.
    """
    model = copy.deepcopy(net)
    attr = quick_fit(InfoBottleneckAttribution(model, "stage2"), [images])
    attr.attribute(images, 0)
    before = [StorageWeakRef(parameter.untyped_storage()) for parameter in model.parameters()]
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    assert all(storage.expired() for storage in before)
    attr.attribute(images, 0)


def test_threads_with_one_model(fitted, images):
    """Flags are put back and maps are those of each thread's own images."""
    model = fitted.model.train()
    batches = [images[i : i + 4] for i in range(0, 16, 4)]
    expected = [fitted.attribute(x, 1) for x in batches]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda i: fitted.attribute(batches[i % 4], 1), range(40)))
    for i, one in enumerate(found):
        torch.testing.assert_close(one, expected[i % 4], rtol=1e-4, atol=1e-6)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(module.training for module in model.modules())


def test_threads_with_models_that_share_parts(net, images, quick_fit):
    """Whether they share modules or parameters alone."""
    tied = nn.Sequential(nn.Flatten(), nn.Linear(3 * 12 * 12, 5))
    tied[1].bias = net.fc.bias
    models = [net, nn.Sequential(net), nn.Sequential(nn.Identity(), net), tied]
    layers = ["stage2", "0.stage2", "1.stage2", "1"]
    kinds = [InfoBottleneckAttribution] * 3 + [LayerInfoBottleneckAttribution]
    attrs = [quick_fit(kind(model, layer), [images])
             for kind, model, layer in zip(kinds, models, layers)]
    for model in models:
        model.train()
    expected = [attr.attribute(images[:4], 1) for attr in attrs]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda i: attrs[i % 4].attribute(images[:4], 1), range(80)))
    for i, one in enumerate(found):
        torch.testing.assert_close(one, expected[i % 4], rtol=1e-4, atol=1e-6)
    for model in models:
        assert all(parameter.requires_grad for parameter in model.parameters())
        assert all(module.training for module in model.modules())


def test_threads_with_models_of_their_own_do_not_wait_for_one_another():
    together = Barrier(4)

    def meet(model):
        with evaluation_mode(model):
            return together.wait(timeout=20)

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(meet, [nn.Linear(2, 2) for _ in range(4)])) == [0, 1, 2, 3]


def test_passes_of_the_model_in_other_threads_are_their_own(fitted, images):
    model, done = fitted.model, Event()
    expected, logits = fitted.attribute(images, 1), model(images[:1])

    def predict():
        found = []
        while not done.is_set():
            found.append(model(images[:1]))
        return found

    with ThreadPoolExecutor(1) as pool:
        others = pool.submit(predict)
        try:
            for options in ({}, {"refine_steps": 4}) * 5:
                maps = fitted.attribute(images, 1, **options)
                if not options:
                    torch.testing.assert_close(maps, expected, rtol=1e-4, atol=1e-6)
        finally:
            done.set()
        for found in others.result():
            torch.testing.assert_close(found, logits, rtol=1e-4, atol=1e-6)


def test_all_of_a_model_is_found_once(net):
    shared = nn.Linear(3, 3)
    shared.register_parameter("none", None)
    model = nn.ModuleList([net, shared, nn.Sequential(shared, nn.BatchNorm1d(3)), Counting()])
    model.register_module("missing", None)
    every = modules_of(model)
    assert len(every) == len(set(every))
    assert set(every) == set(model.modules())
    held = [tensor.data_ptr() for tensor in held_by(model)]
    assert sorted(held) == sorted(
        x.data_ptr() for x in (*model.parameters(), *model.buffers()))


class _Graph(nn.Module):
    """A layer of a graph network, whose adjacency is sparse."""

    def __init__(self):
        super().__init__()
        self.lin, self.fc = nn.Linear(4, 8), nn.Linear(8, 3)
        self.register_buffer("adjacency", torch.eye(10).to_sparse())

    def forward(self, x):
        passed = [torch.sparse.mm(self.adjacency, one) for one in self.lin(x).relu()]
        return self.fc(torch.stack(passed).mean(1))


def test_a_model_with_a_sparse_buffer(quick_fit, tmp_path):
    model, x = _Graph().eval(), torch.randn(12, 10, 4)
    attr = quick_fit(InfoBottleneckAttribution(model, "lin", channel_axis="last"), [x])
    assert attr.attribute(x, 1).shape == x.shape
    assert torch.equal(model.adjacency.to_dense(), torch.eye(10))


class _Skips(nn.Module):
    """Keeps features in an attribute until the end of a pass."""

    def __init__(self):
        super().__init__()
        self.down = nn.ModuleList([nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)])
        self.up = nn.ModuleList([nn.Conv2d(8, 8, 3, padding=1) for _ in range(2)])
        self.fc = nn.Linear(8, 3)
        self.skips = []

    def forward(self, x):
        for down in self.down:
            x = down(x).relu()
            self.skips.append(x)
        for up, skip in zip(self.up, self.skips):
            x = up(x).relu() + skip
        self.skips.clear()
        return self.fc(x.mean((2, 3)))


def test_nothing_is_left_in_a_model_whose_passes_cannot_be_cut_short(quick_fit):
    model, (a, b) = _Skips().eval(), torch.randn(2, 8, 3, 16, 16)
    with torch.no_grad():
        right = model(b)
        attr = quick_fit(InfoBottleneckAttribution(model, "down.1", head_layers=[]), [a, a[:3]])
        attr.attribute(a[:5], 0)
        assert not model.skips
        torch.testing.assert_close(model(b), right)


def test_stale_weights_are_said_of_dataset_figures_too(net, images, quick_fit):
    attr = quick_fit(InfoBottleneckAttribution(net, "stage2"), [images])
    with torch.no_grad():
        net.fc.weight.add_(1)
    with pytest.warns(UserWarning, match="weights have changed"):
        attr.information([images], progress=False)


def test_threads_leave_the_random_state_to_one_another(net, images, quick_fit):
    """A fit of one seed is the same beside another model's maps, and all is put back."""
    other = quick_fit(InfoBottleneckAttribution(copy.deepcopy(net), "stage1"), [images])
    alone = quick_fit(InfoBottleneckAttribution(net, "stage2"), [images]).history.distortion
    before = torch.get_rng_state()
    beside = InfoBottleneckAttribution(net, "stage2")
    with ThreadPoolExecutor(1) as pool:
        fitting = pool.submit(quick_fit, beside, [images])
        while not fitting.done():
            other.attribute(images[:2], 0)
        fitting.result()
    assert beside.history.distortion == alone
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_hooks_of_the_user_see_what_modules_return():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(),
                          nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).eval()
    seen = []
    model[0].register_forward_hook(lambda module, args, output: seen.append(output.mean()))
    batches = [torch.randn(8, 3, 12, 12) for _ in range(2)]
    InfoBottleneckAttribution(model, "3").fit(batches, steps=5, progress=False)
    assert torch.stack(seen).isfinite().all()


class Leaving(nn.Module):
    """Leaves features, and a count, in attributes."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        self.features = self.one(x)
        return self.two(self.features).mean((2, 3))


def test_what_the_model_leaves_in_attributes_is_as_before(images, quick_fit):
    fresh, used = Leaving(), Leaving()
    used(images)
    features = used.features
    for model in (fresh, used):
        attr = quick_fit(InfoBottleneckAttribution(model, "two"), [images])
        attr.attribute(images, 0)
        attr.attribute(images, 0, refine_steps=2)
    assert "features" not in vars(fresh)
    assert fresh.calls == 0
    assert used.features is features
    assert used.calls == 1


class Building(nn.Module):
    """Makes its classifier in its first pass."""

    def __init__(self):
        super().__init__()
        self.conv, self.built = nn.Conv2d(3, 4, 3, padding=1), False

    def forward(self, x):
        code = self.conv(x)
        if not self.built:
            self.top, self.built = nn.Linear(4, 3), True
        return self.top(code.mean((2, 3)))


def test_what_a_model_builds_in_its_first_pass_stays(images, quick_fit):
    model = Building()
    quick_fit(InfoBottleneckAttribution(model, "conv"), [images])
    top = model.top
    model(images)
    assert model.top is top
