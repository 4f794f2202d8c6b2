"""On CUDA: what the CPU gives, in the same precision and in bfloat16; flat memory."""

from __future__ import annotations

import copy

import pytest
import torch

from captum_mi import InfoBottleneckAttribution, fitting
from captum_mi.datasets import make_scenes

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

CALLS = [
    {}, {"target": None}, {"weighting": "none"}, {"information": "redundant"},
    {"estimator": "infomax"}, {"refine_steps": 9},
    {"alpha_steps": 2}, {"internal_batch_size": 7},
]


@pytest.fixture(autouse=True)
def _without_tf32():
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


@pytest.fixture(scope="module")
def digits(digits):
    """A fit on the CPU, the same one for the network on CUDA, images and classes."""
    attr, images, labels = digits
    copied = copy.deepcopy(attr)  # networks follow a model to its device
    model = copy.deepcopy(attr.forward_func).cuda().to(memory_format=torch.channels_last)
    return attr, copied.bind(model), images, labels


def errors(maps, exact):
    """As shares of each map's maximum."""
    return (maps.cpu() - exact).abs().flatten(1) / exact.abs().flatten(1).amax(1, keepdim=True)


@pytest.mark.parametrize("call", CALLS, ids=str)
def test_maps_are_those_of_the_cpu(digits, call):
    attr, on_cuda, images, labels = digits
    call = {"target": labels, **call}
    for part in (images[::4], images[1::4], images[2::4]):  # once as it is, then recorded
        on_cuda.attribute(part, **{**call, "target": 0})
    maps = on_cuda.attribute(images, **call)
    assert maps.is_cuda
    # Gradients through a unit at the edge of its ReLU, and Adam's steps, magnify rounding.
    bound = 1e-4 if not {"refine_steps", "alpha_steps"} & call.keys() else 1e-3
    exact = attr.attribute(images, **call)
    for _ in range(4):
        assert errors(on_cuda.attribute(images, **call), exact).max() < bound


def test_what_our_networks_make_of_layers_is_recorded(digits):
    _, on_cuda, images, labels = digits
    for _ in range(3):
        on_cuda.attribute(images, labels)
    records = on_cuda._fit.recorder._records.values()
    assert any(record is not None and record.graph is not None for record in records)
    # Records read what weights hold, and not what they held.
    head = on_cuda.networks.noised_heads[0][-1]
    kept = head.bias.detach().clone()
    before = on_cuda.attribute(images, labels)
    head.bias.data[int(labels[0])] += 1
    changed = on_cuda.attribute(images, labels)
    head.bias.data.copy_(kept)
    assert not torch.allclose(changed[0], before[0], rtol=1e-2)
    assert torch.equal(on_cuda.attribute(images, labels), before)


def test_evidence_of_all_classes_is_that_of_the_cpu(digits):
    attr, on_cuda, images, _ = digits
    assert errors(on_cuda.evidence(images), attr.evidence(images)).max() < 1e-4


def test_maps_in_bfloat16(digits):
    attr, on_cuda, images, labels = digits
    exact = attr.attribute(images, labels)
    with torch.autocast("cuda", torch.bfloat16):
        mixed = on_cuda.attribute(images.cuda(), labels)
    assert mixed.dtype == torch.float32
    assert 0 < errors(mixed, exact).mean(1).max() < 0.01


def test_maps_hang_on_no_batch(digits):
    _, on_cuda, images, labels = digits
    maps = on_cuda.attribute(images, labels)
    alone = torch.cat([on_cuda.attribute(x[None], int(t)) for x, t in zip(images, labels)])
    assert errors(alone, maps.cpu()).max() < 1e-4


class Waits(torch.nn.Module):
    """Asks the device for a number in every pass: cannot be recorded."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network(x) * (1.0 if float(x.mean()) < 1e9 else 2.0)


class Synchronises(Waits):
    """Waits in a way that PyTorch does not tell of beforehand."""

    def forward(self, x):
        torch.cuda.synchronize()
        return self.network(x)


@pytest.mark.parametrize("wrap", [lambda net: net, Waits, Synchronises],
                         ids=["recorded", "waits", "synchronises"])
def test_steps_are_recorded_where_they_can_be(digits, wrap, monkeypatch):
    attr, _, images, labels = digits
    model = wrap(copy.deepcopy(attr.forward_func).cuda())
    data = [images[:16], images[16:32], images[32:]]  # the last one is smaller
    torch.cuda.manual_seed(5)
    drawn = torch.rand(1, device="cuda")
    torch.cuda.manual_seed(5)
    runs = []
    for on in (True, False):
        monkeypatch.setattr(fitting, "_records_steps", lambda model, on=on: on)
        other = InfoBottleneckAttribution(model)
        history = other.fit(data, 30, progress=False, bank_size=64, amp=False, cache_bytes=0)
        runs.append((torch.tensor(history.information), other.attribute(images, labels).cpu()))
    torch.testing.assert_close(runs[0][0], runs[1][0], rtol=0.05, atol=0.01)
    assert errors(runs[0][1], runs[1][1]).mean() < 0.05
    assert torch.equal(torch.rand(1, device="cuda"), drawn)  # random states were left alone


def test_a_copy_is_fine_tuned(digits):
    attr, _, images, labels = digits
    model = copy.deepcopy(attr.forward_func).cuda().to(memory_format=torch.channels_last)
    other = InfoBottleneckAttribution(model)
    other.fit([images], 6, progress=False, bank_size=64, finetune_base=True)
    pairs = zip(other.model.parameters(), model.parameters())
    assert any(not torch.equal(tuned, own) for tuned, own in pairs)
    assert other.attribute(images, labels).isfinite().all()


@pytest.mark.parametrize("amp", [False, None])
def test_a_fit_learns_there_what_it_learns_here(digits, amp):
    attr, _, images, labels = digits
    scenes = make_scenes(256, seed=0)
    other = InfoBottleneckAttribution(copy.deepcopy(attr.forward_func).cuda())
    history = other.fit(list(scenes.images.split(64)), 30, progress=False, bank_size=512, amp=amp)
    assert history.head[-1] == pytest.approx(attr.history.head[-1], rel=0.2)
    maps = other.attribute(images, labels).cpu().sum(1).flatten(1)
    exact = attr.attribute(images, labels).sum(1).flatten(1)
    together = torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(maps, exact)])
    assert together.mean() > 0.8


def test_first_passes_that_are_remembered_change_nothing(digits, monkeypatch):
    attr, _, images, labels = digits
    monkeypatch.setattr(fitting, "_records_steps", lambda model: False)
    maps = []
    for cache_bytes in (0, 2**31):
        other = InfoBottleneckAttribution(copy.deepcopy(attr.forward_func).cuda())
        other.fit(list(images.split(20)), 6, progress=False, bank_size=64, beta2=0.1,
                  cache_bytes=cache_bytes)
        maps.append(other.attribute(images, labels).cpu())
    assert errors(*maps).mean() < 1e-3


def test_weights_written_past_the_version_count_are_noticed(digits, recwarn):
    _, on_cuda, images, _ = digits
    weight = next(on_cuda.model.parameters())
    kept = weight.detach().clone()
    on_cuda.attribute(images, 0)
    assert not recwarn.list
    weight.data.mul_(1.01)
    with pytest.warns(UserWarning, match="weights have changed since the fit"):
        on_cuda.attribute(images, 0)
    weight.data.copy_(kept)
    recwarn.clear()
    on_cuda.attribute(images, 0)
    assert not recwarn.list


def test_memory_is_flat(digits):
    _, on_cuda, images, labels = digits
    used = []
    for _ in range(10):
        on_cuda.attribute(images, labels)
        used.append(torch.cuda.memory_allocated())
    assert used[3] == used[-1]
