"""The comparison's own implementations of other methods, against slow twins and known truths."""

from __future__ import annotations

import copy
import functools
import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from captum.attr import GuidedGradCam
from evaluation import Evaluation, mosaics
from peers import iba
from peers.captum_methods import methods, without_shared_modules
from peers.fastshap import FastSHAP, masked, shapley_sets
from peers.iba import PerSampleIBA
from peers.method import NotApplicable, reduced
from photographs import Photographs, load, load_model
from PIL import Image
from torch import nn
from torchvision.datasets import STL10
from torchvision.models.resnet import BasicBlock


def small_network(classes=3):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.AvgPool2d(4), nn.Flatten(),
        nn.Linear(6 * 16, classes),
    ).eval()


def slow_iba(model, image, label, moments, steps=4, copies=3, beta=10.0, lr=1.0):
    """One image, one copy at a time, with Adam written out."""
    mean, std, active = moments
    x = model[1](model[0](image[None]))[0].detach()
    z = (x - mean) / std
    kernel = torch.exp(-torch.arange(-2, 3.0) ** 2 / 2)
    kernel = torch.outer(kernel, kernel) / kernel.sum() ** 2
    logit = torch.full_like(z, 5.0).requires_grad_()
    m, v = torch.zeros_like(z), torch.zeros_like(z)
    generator = torch.Generator().manual_seed(0)
    for step in range(1, steps + 1):
        padded = F.pad(torch.sigmoid(logit)[:, None], (2, 2, 2, 2), mode="reflect")
        kept = F.conv2d(padded, kernel[None, None])[:, 0]
        capacity = 0.5 * ((kept * z) ** 2 + (1 - kept) ** 2 - 1) - torch.log(1 - kept)
        capacity = capacity * active
        noise = torch.randn((1, copies, *z.shape), generator=generator)[0]
        losses = []
        for k in range(copies):
            noised = (kept * z + (1 - kept) * noise[k]) * std + mean
            logits = model[4](model[3](model[2]((noised * active)[None])))
            losses.append(-logits.log_softmax(1)[0, label])
        loss = sum(losses) / copies + beta * capacity.mean()
        (gradient,) = torch.autograd.grad(loss, logit)
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        update = (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-8)
        logit = (logit - lr * update).detach().requires_grad_()
    return capacity.sum(0).detach() / math.log(2)


def test_batched_iba_equals_its_slow_twin():
    model, images = small_network(), torch.randn(5, 3, 16, 16)
    labels = torch.tensor([0, 1, 2, 1, 0])
    iba = PerSampleIBA(model, "1", images, steps=4, copies=3)
    together = iba.capacity(images, labels)
    moments = (iba.mean, iba.std, iba.active)
    for image, label, found in zip(images, labels, together):
        torch.testing.assert_close(found, slow_iba(model, image, label, moments),
                                   rtol=1e-3, atol=1e-3)


def test_iba_of_the_comparison_has_the_images_shape():
    model, images = small_network(), torch.randn(2, 3, 16, 16)
    (name, method), = iba.methods(model, ["1"], images, seed=0).items()
    assert name == "IBA per sample, 1"
    assert method.explain(images, torch.tensor([0, 1])).shape == images.shape


class Turned(nn.Module):
    """Moves an axis, as transformers of images do that have their channels last."""

    def __init__(self, old, new):
        super().__init__()
        self.axes = old, new

    def forward(self, x):
        return x.movedim(*self.axes)


def test_iba_reads_features_whatever_their_layout():
    model, images = small_network(), torch.randn(2, 3, 16, 16)
    turned = nn.Sequential(model[:2], Turned(1, -1), Turned(-1, 1), model[2:]).eval()
    labels = torch.tensor([0, 1])
    first = PerSampleIBA(model, "1", images, steps=3, copies=2)
    last = PerSampleIBA(turned, "1", images, steps=3, copies=2)
    torch.testing.assert_close(last.capacity(images, labels), first.capacity(images, labels))


def test_a_method_says_that_a_network_is_not_for_it():
    class Asking(nn.Module):
        def forward(self, x):
            return x.mean((2, 3)) if float(x.sum()) > 0 else -x.mean((2, 3))

    images, labels = torch.ones(2, 3, 32, 32), torch.tensor([0, 1])
    transformer = torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=4).eval()
    of_tokens = methods(transformer, "encoder.layers.encoder_layer_1", 0)
    with pytest.raises(NotApplicable, match=r"axis 1 for channels; encoder\S* has tokens"):
        of_tokens["Grad-CAM"].explain(images, labels)
    with pytest.raises(NotApplicable, match="torch.fx cannot trace"):
        methods(Asking().eval(), "", 0)["DeepLift"].explain(images, labels)


def test_images_that_are_no_whole_number_of_tiles():
    photos = Photographs(torch.zeros(2, 3, 20, 16), torch.zeros(2).long(), None, ["a"])
    with pytest.raises(ValueError, match=r"8x8 pixels do not divide images of \(20, 16\)"):
        Evaluation(small_network(), photos, mosaics(small_network(), photos, 0, 0, 0), 1, 0)


def test_perturbed_images_may_be_asked_about_in_bfloat16():
    model, images = small_network(), torch.randn(4, 3, 16, 16)
    photos = Photographs(images, model(images).argmax(1), None, list("abc"))
    none = mosaics(model, photos, 0, 0.9, seed=0)
    full, half = (Evaluation(model, photos, none, 1, 0, amp).probability(images, photos.labels)
                  for amp in (False, True))
    assert half.dtype == torch.float32
    assert not torch.equal(half, full)
    torch.testing.assert_close(half, full, atol=2e-2, rtol=0)


def test_iba_leaves_the_least_capacity_where_the_model_does_not_look():
    """A model that sees the left half alone."""
    model = small_network()
    weight = model[4].weight.data.view(3, 6, 4, 4)
    weight *= 30
    weight[..., 2:] = 0
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    iba = PerSampleIBA(model, "1", images, beta=0.1)
    capacity = iba.capacity(images, model(images).argmax(1))
    assert (capacity[..., :6].mean((1, 2)) > capacity[..., 10:].mean((1, 2))).all()


def test_sets_follow_the_shapley_kernel():
    sets = shapley_sets(20_000, 6, torch.Generator().manual_seed(0))
    assert torch.equal(sets[:20_000], ~sets[20_000:])
    sizes = torch.bincount(sets.sum(1), minlength=7)[1:6].double()
    expected = torch.tensor([1 / (k * (6 - k)) for k in range(1, 6)], dtype=torch.double)
    torch.testing.assert_close(sizes / sizes.sum(), expected / expected.sum(), atol=0.01, rtol=0)


class Additive(nn.Module):
    """Logits that sum over 8x8 tiles, close enough to 0 that probabilities nearly do, too."""

    def __init__(self):
        super().__init__()
        self.stage = nn.AvgPool2d(8)
        torch.manual_seed(0)
        self.weight = nn.Parameter(torch.randn(2, 3, 2, 2))

    def forward(self, x):
        return torch.einsum("nchw,kchw->nk", self.stage(x), self.weight)


def exact_shapley(model, image, target):
    """By the definition: every order of the four tiles."""
    def worth(tiles):
        kept = torch.zeros(1, 4, dtype=torch.bool)
        kept[0, list(tiles)] = True
        return model(masked(image[None], kept)).softmax(1)[0, target].item()

    values = torch.zeros(4)
    for order in itertools.permutations(range(4)):
        for i, tile in enumerate(order):
            values[tile] += worth(order[: i + 1]) - worth(order[:i])
    return values / 24


@pytest.mark.slow
def test_fastshap_learns_the_shapley_values_of_tiles():
    model = Additive().eval()
    generator = torch.Generator().manual_seed(1)
    tiles = torch.randn(512, 3, 2, 2, generator=generator)
    images = tiles.repeat_interleave(8, 2).repeat_interleave(8, 3)
    trained = FastSHAP(model, ["stage"], images, steps=600, lr=3e-3)
    values, _ = trained.values(images[:20])
    truth = torch.stack([exact_shapley(model, image, 1) for image in images[:20]])
    found = values[:, 1].detach()
    assert torch.corrcoef(torch.stack([found.flatten(), truth.flatten()]))[0, 1] > 0.95
    heat = trained.attribute(images[:20], torch.ones(20, dtype=torch.long))
    assert heat.shape == images[:20].shape


def test_fastshap_values_sum_to_what_all_tiles_are_worth():
    model = Additive().eval()
    images = torch.randn(8, 3, 16, 16)
    trained = FastSHAP(model, ["stage"], images, steps=1, batch=4)
    values, null = trained.values(images)
    grand = trained.surrogate(images).softmax(1)
    torch.testing.assert_close(values.sum(2) + null, grand)


def test_a_copy_without_shared_modules_computes_the_same():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.relu = nn.Conv2d(3, 3, 1), nn.ReLU(inplace=True)

        def forward(self, x):
            return self.relu(self.conv(self.relu(self.conv(x)))).mean((2, 3))

    model, x = Shared().eval(), torch.randn(2, 3, 4, 4)
    copy = without_shared_modules(model)
    assert torch.equal(copy(x), model(x))
    calls = [node.target for node in copy.graph.nodes if node.op == "call_module"]
    assert len(calls) == len(set(calls)) == 4
    assert not any(getattr(module, "inplace", False) for module in copy.modules())
    assert model.relu.inplace


def test_reductions():
    attributions = torch.tensor([[-2.0, 1.0]])
    assert reduced(attributions, "signed").tolist() == [[-2.0, 1.0]]
    assert reduced(attributions, "absolute").tolist() == [[2.0, 1.0]]
    assert reduced(attributions, "positive").tolist() == [[0.0, 1.0]]


def test_photographs_from_an_image_folder(tmp_path):
    for split in ("train", "val"):
        for name, level in (("a", 0), ("b", 255)):
            (tmp_path / split / name).mkdir(parents=True)
            Image.new("RGB", (40, 20), (level,) * 3).save(tmp_path / split / name / "1.png")
    photos = load(tmp_path, "validation")
    assert photos.images.shape == (2, 3, 96, 96)
    assert photos.names == ["a", "b"]
    assert photos.boxes is None
    bright = photos.labels == 1
    assert photos.images[bright].min() > photos.images[~bright].max()


def test_photographs_from_stl10(tmp_path, monkeypatch):
    """The binary format: uint8, channels, columns, rows; labels from 1."""
    folder = tmp_path / STL10.base_folder
    folder.mkdir()
    monkeypatch.setattr(STL10, "_check_integrity", lambda self: True)
    columns = np.tile(np.arange(96, dtype=np.uint8), (3, 3, 96, 1)).transpose(0, 1, 3, 2)
    for part in ("train", "test"):
        np.ascontiguousarray(columns).tofile(folder / f"{part}_X.bin")
        np.array([1, 2, 10], np.uint8).tofile(folder / f"{part}_y.bin")
    names = ["airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"]
    (folder / "class_names.txt").write_text("\n".join(names))
    photos = load(tmp_path, "train")
    assert sorted(photos.labels.tolist()) == [0, 1, 9]
    assert photos.names == names
    assert (photos.images[0, 0].diff(dim=1) > 0).all()  # brightness grows to the right
    assert (photos.images[0, 0].diff(dim=0) == 0).all()


def test_photographs_say_what_a_path_lacks(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected an .npz index, a folder with"):
        load(tmp_path, "train")


def test_models_by_factory_and_by_name(tmp_path):
    with pytest.raises(ValueError, match="needs --weights: a file, or an enum's name"):
        load_model("resnet18", None)
    model, view = load_model("torchvision.models:squeezenet1_1", None)
    assert not model.training
    assert view.size == 96


def test_mosaics_show_the_target_in_their_cell():
    """Images whose only content is their class."""
    images = torch.eye(4).repeat(3, 1)[:, :, None, None].expand(-1, -1, 8, 8)
    photos = Photographs(images, torch.arange(12) % 4, None, list("abcd"))
    grids = mosaics(lambda x: 50 * x.mean((2, 3)), photos, 8, 0.9, seed=0)
    assert grids.images.shape == (8, 4, 16, 16)
    for grid, target, cell in zip(*vars(grids).values()):
        row, column = divmod(int(cell), 2)
        assert (grid[target, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] == 1).all()
        assert grid[target].sum() == 64


def test_guided_grad_cam_of_a_residual_network_is_captums():
    """Blocks that the traced copy takes apart, and a ReLU that each of them uses twice."""
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=5).eval()
    x, target = torch.randn(2, 3, 64, 64), torch.tensor([1, 4])
    ours = methods(model, "layer4", 0)["Guided Grad-CAM"].explain(x, target)
    twin = copy.deepcopy(model)
    for module in twin.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    for block in twin.modules():
        if isinstance(block, BasicBlock):
            first, second = copy.deepcopy(block.relu), copy.deepcopy(block.relu)
            block.relu, block.second = first, second
            block.forward = functools.partial(unshared, block)
    truth = GuidedGradCam(twin, twin.layer4).attribute(x, target).detach()
    assert truth.abs().max() > 0
    torch.testing.assert_close(ours, truth, rtol=1e-4, atol=1e-5 * float(truth.abs().max()))


def unshared(block, x):
    """A residual block's pass with a ReLU for each use."""
    out = block.bn2(block.conv2(block.relu(block.bn1(block.conv1(x)))))
    return block.second(out + (x if block.downsample is None else block.downsample(x)))
