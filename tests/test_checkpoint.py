"""A saved fit gives the same maps, and says what is wrong with a file or a model."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from captum_mi import InfoBottleneckAttribution, LayerInfoBottleneckAttribution


@pytest.fixture
def path(tmp_path, fitted):
    target = tmp_path / "fit.safetensors"
    fitted.save(target)
    return target


def test_loading_leaves_the_random_state_and_serves_inside_of_inference_mode(path, net, images):
    state = torch.get_rng_state()
    with torch.inference_mode():
        loaded = InfoBottleneckAttribution.load(path, net)
        inside = loaded.attribute(images, 1, refine_steps=2, alpha_steps=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(loaded.attribute(images, 1, refine_steps=2, alpha_steps=1), inside)


def test_what_numpy_and_tensors_gave_can_be_saved(net, images, quick_fit, tmp_path):
    attr = InfoBottleneckAttribution(net, "stage1", map_input=np.int64(0))
    quick_fit(attr, [images], steps=np.int64(2), kappa=torch.tensor(0.5), bank_size=np.int32(64))
    attr.save(tmp_path / "fit")
    assert InfoBottleneckAttribution.load(tmp_path / "fit", net).history.kappa == 0.5


@pytest.mark.parametrize(
    "options", [{}, {"estimator": "infomax"}, {"refine_steps": 2}, {"alpha_steps": 2}])
def test_round_trip(path, fitted, net, images, options):
    loaded = InfoBottleneckAttribution.load(path, copy.deepcopy(net))
    expected = fitted.attribute(images, 1, **options)
    assert torch.equal(loaded.attribute(images, 1, **options), expected)
    assert loaded.history == fitted.history
    assert loaded.layers == fitted.layers


@pytest.mark.parametrize(
    "options",
    [
        {"critic": "concatenated", "inference": "mlp", "noise": "standard", "head_hidden": ()},
        {"alpha": torch.rand(6, 6)},
        {"global_layer": "dropout"},
        {"context_layers": ["stage1"], "output": "bernoulli"},
    ],
)
def test_round_trip_of_every_choice(tmp_path, net, images, quick_fit, options):
    attr = quick_fit(LayerInfoBottleneckAttribution(net, net.stage2, **options), [images])
    attr.save(tmp_path / "fit")
    loaded = LayerInfoBottleneckAttribution.load(tmp_path / "fit", net)
    assert torch.equal(loaded.attribute(images), attr.attribute(images))
    assert loaded.design == attr.design


def test_a_finetuned_copy_is_saved_with_the_fit(tmp_path, net, images, quick_fit):
    attr = quick_fit(
        InfoBottleneckAttribution(net, "stage2"), [images], finetune_base=True, base_lr=1e-2
    )
    attr.save(tmp_path / "fit")
    loaded = InfoBottleneckAttribution.load(tmp_path / "fit", net)
    assert loaded.model is not net
    assert torch.equal(loaded.attribute(images, 0), attr.attribute(images, 0))


def test_a_downstream_function_is_asked_for_again(tmp_path, net, images, quick_fit):
    attr = InfoBottleneckAttribution(net, "stage2", global_layer="dropout", downstream=net.fc)
    quick_fit(attr, [images]).save(tmp_path / "fit")
    with pytest.raises(ValueError, match="pass downstream= to load"):
        InfoBottleneckAttribution.load(tmp_path / "fit", net)
    loaded = InfoBottleneckAttribution.load(tmp_path / "fit", net, downstream=net.fc)
    assert torch.equal(loaded.attribute(images, 0), attr.attribute(images, 0))


def test_a_missing_folder_is_named(tmp_path, fitted):
    with pytest.raises(FileNotFoundError, match=r"no folder for .*there.fit.safetensors"):
        fitted.save(tmp_path / "not there" / "fit.safetensors")
    with pytest.raises(IsADirectoryError, match="is a folder; name a file in it"):
        fitted.save(tmp_path)


def test_missing_corrupted_and_foreign_files(tmp_path, path, net):
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        InfoBottleneckAttribution.load(tmp_path / "none", net)
    whole = path.read_bytes()
    for broken in (whole[: len(whole) // 2], b"not a checkpoint", b""):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match="corrupted, or not a safetensors file"):
            InfoBottleneckAttribution.load(path, net)
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match="not a captum_mi fit"):
        InfoBottleneckAttribution.load(path, net)
    save_file({"weight": torch.zeros(2)}, path, metadata={"captum_mi": '{"format": 99}'})
    with pytest.raises(ValueError, match="has format 99; this version of captum_mi reads"):
        InfoBottleneckAttribution.load(path, net)


def test_a_model_with_other_weights(path, net, images, recwarn):
    other = copy.deepcopy(net)
    nn.init.normal_(other.fc.weight)
    with pytest.raises(ValueError, match="weights are not those.*strict=False"):
        InfoBottleneckAttribution.load(path, other)
    loaded = InfoBottleneckAttribution.load(path, other, strict=False)
    assert loaded.attribute(images, target=0).shape == images.shape
    assert not recwarn.list  # it was asked for


def test_a_model_of_another_shape(path, net):
    other = copy.deepcopy(net)
    other.fc = nn.Linear(16, 7)
    with pytest.raises(ValueError, match=r"'fc.weight' has shape \(7, 16\).*has \(5, 16\)"):
        InfoBottleneckAttribution.load(path, other)
    with pytest.raises(ValueError, match="'stage1.0.weight' of shape .* no such tensor"):
        InfoBottleneckAttribution.load(path, nn.Sequential(nn.Linear(2, 2)))


def test_bind_uses_the_other_weights_without_a_warning(fitted, net, images, recwarn):
    other = copy.deepcopy(net)
    nn.init.normal_(other.stage2[0].weight)
    bound = fitted.bind(other)
    recwarn.clear()
    assert not torch.equal(bound.attribute(images, 0), fitted.attribute(images, 0))
    assert not recwarn.list
    assert bound.layer == [other.stage1, other.stage2]
    other.fc = nn.Linear(16, 2)
    with pytest.raises(ValueError, match=r"'fc\.weight' has shape"):
        fitted.bind(other)


def test_a_bound_fit_has_the_downstream_function_of_its_model(net, images, quick_fit):
    attr = quick_fit(InfoBottleneckAttribution(
        net, "stage2", global_layer="dropout", downstream=net.fc), [images])
    other = copy.deepcopy(net)
    torch.nn.init.normal_(other.fc.weight)
    bound = attr.bind(other)
    assert bound.downstream is other.fc
    assert not torch.allclose(bound.attribute(images, 1), attr.attribute(images, 1))
    given = attr.bind(other, downstream=net.fc)
    torch.testing.assert_close(given.attribute(images, 1), attr.attribute(images, 1))
    attr.downstream = net.fc.forward
    assert attr.bind(other).downstream == other.fc.forward
    attr.downstream = torch.neg
    assert attr.bind(other).downstream is torch.neg
