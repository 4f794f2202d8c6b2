"""Parts of the examples that whole runs do not show."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytest
import torch
from cub_protonet import arguments, told_by
from networks import torchvision_weights
from representation_analysis import quadrant
from stl10_resnet50 import open_data
from torch import nn
from torchvision.datasets import STL10
from training import train

from captum_mi.datasets import make_scenes


def trained(tmp_path, name, epochs, stop_after=None):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))
    data = torch.randn(32, 4, generator=torch.Generator().manual_seed(1))

    def batches(epoch):
        if epoch == stop_after:
            raise KeyboardInterrupt
        return data[torch.randperm(32, generator=torch.Generator().manual_seed(epoch))].split(8)

    try:
        train(model, batches, lambda x: model(x).square().mean(), epochs, 4,
              tmp_path / f"{name}.pt")
    except KeyboardInterrupt:
        return trained(tmp_path, name, epochs)
    assert not model.training
    return model.state_dict()


def test_training_goes_on_where_it_stopped(tmp_path, capsys):
    whole = trained(tmp_path, "whole", 4)
    stopped = trained(tmp_path, "stopped", 4, stop_after=2)
    assert "resuming after epoch 2 of 4" in capsys.readouterr().out
    for name, value in whole.items():
        assert torch.equal(stopped[name], value)


def test_another_seed_is_another_run(tmp_path):
    model = nn.Linear(2, 1)
    arguments = (model, lambda epoch: [torch.ones(1, 2)], lambda x: model(x).mean(), 1, 1,
                 tmp_path / "run.pt")
    train(*arguments, seed=0)
    for other in ({"seed": 1}, {"seed": 0, "settings": {"ways": "4"}}):
        with pytest.raises(ValueError, match="Remove it, or ask for the same"):
            train(*arguments, **other)


def test_weights_that_are_not_there():
    assert torchvision_weights("resnet18", "DEFAULT").name == "IMAGENET1K_V1"
    with pytest.raises(FileNotFoundError, match=r"'resnet18.pt' is neither a file nor weights of"):
        torchvision_weights("resnet18", "resnet18.pt")


def test_a_checkpoint_is_whole_or_not_there(tmp_path, monkeypatch):
    """Stopped while it is written, training goes on from the one before."""
    whole = trained(tmp_path, "whole", 3)
    save, calls = torch.save, []

    def interrupted(state, path):
        calls.append(path)
        if len(calls) == 2:
            Path(path).write_bytes(b"half of it")
            raise KeyboardInterrupt
        save(state, path)

    monkeypatch.setattr(torch, "save", interrupted)
    for name, value in trained(tmp_path, "stopped", 3).items():
        assert torch.equal(whole[name], value)


def test_training_refuses_the_checkpoint_of_another_run(tmp_path):
    trained(tmp_path, "run", 2)
    message = "belongs to a run with .*'epochs': 2.*this one has .*'epochs': 3"
    with pytest.raises(ValueError, match=message):
        trained(tmp_path, "run", 3)


def test_stl10_in_its_own_format(tmp_path, monkeypatch):
    folder = tmp_path / STL10.base_folder
    folder.mkdir()
    monkeypatch.setattr(STL10, "_check_integrity", lambda self: True)
    for part, n in (("train", 3), ("test", 2)):
        np.zeros((n, 3, 96, 96), np.uint8).tofile(folder / f"{part}_X.bin")
        np.arange(1, n + 1).astype(np.uint8).tofile(folder / f"{part}_y.bin")
    (folder / "class_names.txt").write_text("\n".join(f"class {i}" for i in range(10)))
    options = argparse.Namespace(data=Path(tmp_path), download=False, size=64,
                                 mean=(0, 0, 0), std=(1, 1, 1))
    training, validation = open_data(options)
    assert (len(training), len(validation)) == (3, 2)
    image, label = training[2]
    assert image.shape == (3, 64, 64)
    assert label == 2


def test_quadrants_are_uniform_and_say_where_the_digit_is():
    scenes = make_scenes(400)
    found = quadrant(scenes)[:, 0]
    assert (torch.bincount(found, minlength=4) > 60).all()
    for mask, q in zip(scenes.masks[:, 0], found.tolist()):
        for second, heat in ((q >= 2, mask.sum(1)), (q % 2 == 1, mask.sum(0))):
            if not heat[24:].any():
                assert not second
            if not heat[:24].any():
                assert second


def test_a_run_does_not_go_on_with_pixels_normalised_otherwise():
    options = arguments(argparse.ArgumentParser()).parse_args(["--data", "birds"])
    options.pretrain = options.batch = 1
    before = told_by(options)
    options.mean = [0.1, 0.1, 0.1]
    assert told_by(options) != before
