"""On CUDA: what the CPU gives, in the same precision and in bfloat16; flat memory."""

from __future__ import annotations

import copy

import pytest
import torch

from captum_mi import InfoBottleneckAttribution
from captum_mi.datasets import DigitResNet, make_scenes

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

CALLS = [
    {}, {"target": None}, {"weighting": "none"}, {"information": "redundant"},
    {"estimator": "infomax"}, {"refine_steps": 9},
    {"refine_steps": 2, "weighting": "posterior"}, {"internal_batch_size": 7},
]


@pytest.fixture(autouse=True)
def _without_tf32():
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


@pytest.fixture(scope="module")
def digits():
    """A fit on the CPU, the same one for the network on CUDA, images and classes."""
    scenes = make_scenes(256, seed=0)
    torch.manual_seed(0)
    model = DigitResNet((8, 16, 32, 32)).fit(scenes, 6, progress=False)
    attr = InfoBottleneckAttribution(model)
    attr.fit(list(scenes.images.split(64)), 30, progress=False, bank_size=512)
    copied = copy.deepcopy(attr)  # networks follow a model to its device
    on_cuda = copied.bind(copy.deepcopy(model).cuda().to(memory_format=torch.channels_last))
    return attr, on_cuda, scenes.images[:40], scenes.labels[:40, 0]


def errors(maps, exact):
    """As shares of each map's maximum."""
    return (maps.cpu() - exact).abs().flatten(1) / exact.abs().flatten(1).amax(1, keepdim=True)


@pytest.mark.parametrize("call", CALLS, ids=str)
def test_maps_are_those_of_the_cpu(digits, call):
    attr, on_cuda, images, labels = digits
    call = {"target": labels, **call}
    maps = on_cuda.attribute(images, **call)
    assert maps.is_cuda
    # Gradients through a unit at the edge of its ReLU, and Adam's steps, magnify rounding.
    bound = 1e-4 if not call.get("refine_steps") else 1e-3
    assert errors(maps, attr.attribute(images, **call)).max() < bound


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


def test_first_passes_that_are_remembered_change_nothing(digits):
    attr, _, images, labels = digits
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
    assert used[1] == used[-1]
