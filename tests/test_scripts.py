"""The demo and the benchmark scripts run end to end, small."""

from __future__ import annotations

import contextlib
import io
import json
import os
import runpy
import subprocess
import sys
import warnings
from pathlib import Path

import attribute_folder
import numpy as np
import pytest
import time_script
import torch
import torchvision
from box_order import distance
from safetensors import safe_open
from torchvision.transforms.functional import resize, to_pil_image

from captum_mi.datasets import DigitResNet, IndexedPhotographs, View, make_scenes

ROOT = Path(__file__).parent.parent


def run(script: str, *arguments: object) -> str:
    """What a script prints. In this process: another would spend seconds on imports."""
    printed = io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(),
        contextlib.redirect_stdout(printed),
    ):
        warnings.simplefilter("ignore")
        patch.chdir(ROOT)
        patch.setattr(sys, "argv", [script, *map(str, arguments)])
        patch.setattr(sys, "path", [str((ROOT / script).parent), *sys.path])
        runpy.run_path(str(ROOT / script), run_name="__main__")
    return printed.getvalue()


def run_alone(*command: object) -> str:
    """What a program prints, in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-W", "ignore", *map(str, command)],
        capture_output=True, text=True, env=environment, cwd=ROOT,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_demo(tmp_path):
    printed = run(
        "examples/digit_scenes_demo.py", "--out", tmp_path, "--scenes", 128, "--epochs", 1,
        "--steps", 2, "--test", 2,
    )
    assert "Grad-CAM" in printed
    for name in ("panel", "two_digits", "history"):
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000


def test_mi_ground_truth(tmp_path):
    printed = run(
        "benchmarks/mi_ground_truth.py", "--seeds", 1, "--workers", 1, "--steps", 3, "--fresh",
        512, "--out", tmp_path / "mi",
    )
    assert "an upper bound" in printed
    assert " NO " not in (tmp_path / "mi_capacity.md").read_text()
    assert (tmp_path / "mi.csv").read_text().count("\n") == 13


def jpeg(image: torch.Tensor) -> np.ndarray:
    file = io.BytesIO()
    to_pil_image(image).save(file, "JPEG", quality=95)
    return np.frombuffer(file.getvalue(), np.uint8)


def thin_resnet(num_classes=6):
    """Of ResNets' layers, for scripts that run a network thousands of times."""
    model = DigitResNet((8, 16, 16, 32), num_classes)
    model.conv1 = torch.nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
    return model


THIN = f"{__name__}:thin_resnet"


@pytest.fixture
def photographs(tmp_path):
    """A file in the exact format of the photographs, and weights of two networks."""
    torch.manual_seed(0)
    for name, model in (("weights", torchvision.models.resnet18(num_classes=6)),
                        ("thin", thin_resnet())):
        model.fc.weight.data.mul_(30)
        torch.save({k: v.half() if v.is_floating_point() else v
                    for k, v in model.state_dict().items()}, tmp_path / f"{name}.pt")
    generator = torch.Generator().manual_seed(0)
    smooth = torch.randint(0, 255, (48, 3, 4, 4), generator=generator, dtype=torch.uint8)
    files = [jpeg(image) for image in resize(smooth, [64, 64], antialias=True)]
    np.savez(
        tmp_path / "photographs.npz",
        blob=np.concatenate(files), off=np.cumsum([0, *map(len, files)]),
        label=np.arange(48) % 6, split=(np.arange(48) >= 16).astype(np.int8),
        box=np.tile(np.array([8, 8, 32, 40], np.int16), (48, 1)),
        names=np.array([f"class {i}" for i in range(8)]),  # two of them in no split
    )
    return tmp_path


def test_stl10_example(photographs):
    printed = run(
        "examples/stl10_resnet50.py", "--data", photographs / "photographs.npz", "--model",
        "resnet18", "--weights", photographs / "weights.pt", "--size", 64, "--batch", 8,
        "--steps", 1, "--images", 2, "--out", photographs / "stl10",
    )
    assert "default layers: layer2" in printed
    for stem in ("layer1", "layer2-layer3"):
        assert (photographs / "stl10" / f"{stem}.png").stat().st_size > 10_000
        assert (photographs / "stl10" / f"{stem}.safetensors").exists()


@pytest.fixture
def novel_classes(photographs):
    """The same file with 24 images of base and 24 of novel classes."""
    path = photographs / "photographs.npz"
    arrays = dict(np.load(path))
    np.savez(path, **{**arrays, "split": (np.arange(48) >= 24).astype(np.int8) * 2})
    return path


FEW_SHOT = ("--encoder", "resnet18", "--size", 32, "--ways", 3, "--queries", 2, "--episodes", 2,
            "--steps", 2)


def test_cub_example_trains_resumes_and_explains(novel_classes):
    out = novel_classes.parent / "cub"
    command = ("examples/cub_protonet.py", "--data", novel_classes, *FEW_SHOT, "--epochs", 1,
               "--per-epoch", 2, "--pretrain", 1, "--batch", 8, "--fit", out / "fit.safetensors",
               "--out", out)
    assert "3-way 1-shot on novel classes" in run(*command)
    assert run(*command).count("resuming after epoch 1 of 1") == 2
    for name in ("queries", "support", "history"):
        assert (out / f"{name}.png").stat().st_size > 10_000


def test_few_shot_benchmark(novel_classes):
    torch.save(torchvision.models.resnet18(num_classes=64).state_dict(),
               novel_classes.parent / "encoder.pt")
    printed = run(
        "benchmarks/few_shot.py", "--data", novel_classes, *FEW_SHOT, "--weights",
        novel_classes.parent / "encoder.pt", "--explained", 12, "--largest-box", 1,
        "--out", novel_classes.parent / "few_shot",
    )
    assert "own way" in printed
    assert len((novel_classes.parent / "few_shot.csv").read_text().splitlines()) == 1 + 9


def test_representation_analysis(tmp_path):
    printed = run(
        "examples/representation_analysis.py", "--train", 16, "--test", 8, "--epochs", 1,
        "--steps", 1, "--batch", 8, "--layers", "layer3", "--out", tmp_path,
    )
    assert "| quadrant | layer3 |" in printed
    for name in ("information", "plane", "maps_digit", "maps_quadrant"):
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000


def test_representation_analysis_of_two_networks(photographs):
    weights = photographs / "weights.pt"
    printed = run(
        "examples/representation_analysis.py", "--data", photographs / "photographs.npz",
        "--regimes", f"a=resnet18:{weights}", f"b=resnet18:{weights}", "--embeddings", "b",
        "--size", 32, "--test", 8, "--batch", 8, "--steps", 1, "--out", photographs / "analysis",
    )
    assert "| b | layer1 |" in printed


def test_representation_benchmark(tmp_path):
    printed = run(
        "benchmarks/representation.py", "--train", 64, "--test", 16, "--epochs", 1, "--steps", 1,
        "--alphas", 0.5, "--out", tmp_path / "representation",
    )
    assert "| entropy of the factor | 3.2" in printed
    for name in ("maps", "layers", "factors"):
        assert (tmp_path / f"representation_{name}.csv").exists()


def test_sanity_benchmark(tmp_path):
    printed = run(
        "benchmarks/sanity.py", "--train", 24, "--epochs", 1, "--steps", 1, "--n", 2, "--leak",
        8, "--refit", "--out", tmp_path / "sanity",
    )
    assert "captum_mi, fitted anew" in printed
    assert len((tmp_path / "sanity.csv").read_text().splitlines()) == 7


def test_speed_benchmark(tmp_path, monkeypatch):
    monkeypatch.setattr(
        torchvision.models, "get_model", lambda _, num_classes: thin_resnet(num_classes))
    run("benchmarks/speed.py", "--models", "thin", "--batches", 1, "--sizes",
        32, "--classes", 5, "--repeats", 1, "--peers", "--growth", "--calls", 5,
        "--out", tmp_path / "speed")
    assert len((tmp_path / "speed_attribution.csv").read_text().splitlines()) == 1 + 11
    assert len((tmp_path / "speed_growth.csv").read_text().splitlines()) == 1 + 1 + 3 + 3 + 4
    assert len((tmp_path / "speed_fit.csv").read_text().splitlines()) == 2
    assert len((tmp_path / "speed_memory.csv").read_text().splitlines()) == 1 + 6


def test_attribute_folder_on_two_processes_and_again(tmp_path, monkeypatch, capsys):
    generator = torch.Generator().manual_seed(0)
    for i in range(10):
        pixels = torch.randint(0, 255, (3, 40, 40), generator=generator, dtype=torch.uint8)
        folder = tmp_path / "images" / f"part{i % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        to_pil_image(pixels).save(folder / f"{i}.png")
    torch.manual_seed(0)
    torch.save(torchvision.models.resnet18(num_classes=5).state_dict(), tmp_path / "weights.pt")
    command = (
        "examples/attribute_folder.py", "--images", tmp_path / "images", "--model", "resnet18",
        "--weights", tmp_path / "weights.pt", "--size", 32, "--batch", 4, "--shard", 4,
        "--steps", 1, "--fit", tmp_path / "fit.safetensors",
    )
    two = ("-m", "torch.distributed.run", "--nproc-per-node", 2, "--standalone", *command)
    assert "maps of 10 images" in run_alone(*two, "--out", tmp_path / "two")
    shards = sorted((tmp_path / "two").iterdir())
    assert [path.name for path in shards] == [f"shard_{i:05d}.safetensors" for i in range(3)]
    with safe_open(shards[2], "pt") as file:
        assert file.get_tensor("maps").shape == (2, 32, 32)
        assert json.loads(file.metadata()["names"]) == ["part1/7.png", "part1/9.png"]
    shards[1].unlink()
    before = shards[0].stat().st_mtime_ns
    to_pil_image(pixels).save(tmp_path / "images" / "part1" / "99.png")
    again = [*map(str, command), "--out", str(tmp_path / "two")]
    monkeypatch.setattr(sys, "argv", again)
    attribute_folder.main()
    assert "maps of 11 images" in capsys.readouterr().out
    assert shards[1].exists()
    assert shards[0].stat().st_mtime_ns == before
    with safe_open(shards[2], "pt") as file:
        assert file.get_tensor("maps").shape == (3, 32, 32)
    monkeypatch.setattr(sys, "argv", [*again, "--overlays", "--target", "3"])
    attribute_folder.main()
    with safe_open(shards[0], "pt") as file:
        assert file.get_tensor("targets").tolist() == [3] * 4
    pictures = tmp_path / "two" / "pictures"
    assert len(list(pictures.rglob("*.png"))) == 11
    assert (pictures / "part0" / "0.png.png").exists()
    with safe_open(shards[0], "pt") as file:
        maps = file.get_tensor("maps")
    to_pil_image(255 - pixels).save(tmp_path / "images" / "part0" / "0.png")  # of the same name
    monkeypatch.setattr(sys, "argv", [*again, "--target", "3"])
    attribute_folder.main()
    with safe_open(shards[0], "pt") as file:
        assert not torch.equal(file.get_tensor("maps")[0], maps[0])
    assert not list(pictures.rglob("*.png"))  # which were of earlier maps
    (tmp_path / "fit.safetensors").unlink()
    before = shards[0].stat().st_mtime_ns
    monkeypatch.setattr(sys, "argv", [*again, "--target", "3", "--seed", "1"])
    attribute_folder.main()  # of another fit
    assert shards[0].stat().st_mtime_ns > before
    for image in (tmp_path / "images" / "part1").iterdir():
        image.unlink()
    shards[0].write_bytes(shards[0].read_bytes()[:-100])  # cut off
    monkeypatch.setattr(
        sys, "argv", [*map(str, command), "--out", str(tmp_path / "images" / "part1")])
    os.rename(tmp_path / "two", tmp_path / "images" / "part1")  # results among the images
    attribute_folder.main()
    left = sorted(path.name for path in (tmp_path / "images" / "part1").glob("shard*"))
    assert left == [path.name for path in shards[:2]]  # five images are left
    assert not list((tmp_path / "images" / "part1").rglob("*.png"))


def test_noisy_channel(tmp_path):
    printed = run("benchmarks/noisy_channel.py", "--dimensions", 2, "--alphas", 0.5, "--steps", 2,
                  "--seeds", 2, "--n", 1024, "--out", tmp_path / "channel")
    assert "| 2 | 0.5 | 0.7" in printed  # the truth needs no steps
    assert (tmp_path / "channel.csv").exists()


def test_train_on_scenes(tmp_path):
    printed = run("benchmarks/train_on_scenes.py", "--model", "mobilenet_v3_small", "--train", 64,
                  "--test", 8, "--epochs", 1, "--out", tmp_path)
    assert "% of 8 scenes" in printed
    scenes = make_scenes(8, split="test", seed=0)
    photos = IndexedPhotographs(tmp_path / "scenes.npz", 1, View(48, (0.2,) * 3, (1,) * 3))
    assert photos.labels == scenes.labels[:, 0].tolist()
    for i in range(8):
        torch.testing.assert_close(photos[i][0][:1], scenes.images[i].clamp(-0.2, 0.8),
                                   atol=1 / 255, rtol=0)
        inside = photos.mask(i)
        assert not (scenes.masks[i, 0] & ~inside).any()  # the box holds all ink
        assert scenes.masks[i, 0][inside.any(1)].any(1).all()  # and no empty row
    state = torch.load(tmp_path / "mobilenet_v3_small.pt", weights_only=True)
    torchvision.models.mobilenet_v3_small(num_classes=10).load_state_dict(state)


def test_novel_digits_are_in_no_base_split(tmp_path):
    run("benchmarks/scenes_index.py", "--train", 80, "--test", 80, "--novel", 4, "--out",
        tmp_path / "few_shot.npz")
    view = View(48, (0.2,) * 3, (1,) * 3)
    base, validation, novel = (IndexedPhotographs(tmp_path / "few_shot.npz", split, view)
                               for split in (0, 1, 2))
    assert set(base.labels) == set(validation.labels) == set(range(6))
    assert set(novel.labels) == {6, 7, 8, 9}
    assert len(validation) + len(novel) == 80


def test_choices(tmp_path):
    run("benchmarks/choices.py", "--train", 64, "--epochs", 1, "--steps", 1, "--n", 4, "--mosaics",
        0, "--rows", "tiles erased", "refined by 9", "--out", tmp_path / "choices")
    lines = (tmp_path / "choices.csv").read_text().splitlines()
    assert [line.split(",")[0].strip('"') for line in lines[2:]] == [
        "tiles erased at random", "refined by 9 blocks"]


def test_read_outs(photographs):
    printed = run(
        "benchmarks/read_outs.py", "--data", photographs / "photographs.npz", "--model", THIN,
        "--weights", photographs / "thin.pt", "--train", 16, "--batch", 8, "--steps", 1, "--n", 2,
        "--mosaics", 0, "--tiles-per-step", 72, "--out", photographs / "read_outs",
    )
    assert "by posterior (default)" in printed


def test_box_order(photographs):
    printed = run(
        "benchmarks/box_order.py", "--data", photographs / "photographs.npz", "--weights",
        photographs / "weights.pt", "--n", 4, "--tiles-per-step", 72,
        "--out", photographs / "box_order",
    )
    assert "4 correctly classified" in printed
    boxes = torch.zeros(2, 5, 6, dtype=torch.bool)
    boxes[0, 1, 2] = boxes[1, :, 3:] = True
    found = distance(boxes)
    assert found[0, 4, 6 - 1] == 18**0.5
    assert found[1].tolist() == [[3, 2, 1, 0, 0, 0]] * 5


def test_compare_methods(photographs):
    """Twice: the second run, on moved files, reads every method's result from the first."""
    command = (
        "benchmarks/compare_methods.py", "--data", photographs / "photographs.npz",
        "--model", THIN, "--weights", photographs / "thin.pt", "--n", 2, "--mosaics", 1,
        "--train", 16, "--steps", 2, "--batch", 8, "--confidence", 0, "--tiles-per-step", 12,
        "--refits", 2, "--size", 48, "--validation", 24,
        "--methods", "captum_mi", "Input x", "Grad-CAM", "LRP", "FastSHAP", "random",
        "--fastshap-steps", 2, "--fits", photographs / "fits", "--out", photographs / "result",
    )
    printed = run(*command, "--pictures", photographs / "pictures")
    assert "standard deviation over fits" in printed
    assert sorted(path.name for path in (photographs / "fits").iterdir()) == [
        "default-2x8-of-16-seed-0.safetensors", "default-2x8-of-16-seed-1.safetensors"]
    assert (photographs / "pictures" / "panel.png").exists()
    for name in ("curves", "cost", "history"):
        assert (photographs / f"result_{name}.png").stat().st_size > 5_000
    table = (photographs / "result.csv").read_text()
    assert len(table.splitlines()) == 1 + 1 + 2 + 1 + 2 + 1 + 1
    moved = photographs / "moved" / "photographs.npz"
    moved.parent.mkdir()
    moved.write_bytes((photographs / "photographs.npz").read_bytes())
    finished = {path: path.stat().st_mtime_ns for path in (photographs / "result_parts").iterdir()}
    run(*command, "--data", moved)
    assert (photographs / "result.csv").read_text() == table
    assert all(path.stat().st_mtime_ns == time for path, time in finished.items())
    kept = torch.load(photographs / "result_parts" / "random.pt")
    kept["results"]["random (signed)"]["seconds"] = 123456.0
    torch.save(kept, photographs / "result_parts" / "random.pt")
    again = run(*command, "--retime", "--methods", "random", "--out", photographs / "again",
                "--parts", photographs / "result_parts")
    before, after = (
        next(row for row in text.splitlines() if row.startswith("| random")).split("|")
        for text in ((photographs / "result.md").read_text(), again)
    )
    assert after[:-3] == before[:-3]  # all but the cost
    assert float(after[-3]) < 123456 * 1000
    with pytest.raises(ValueError, match="--metrics GridPG: these images have no boxes, or there"):
        run(*command, "--mosaics", 0, "--metrics", "GridPG", "degradation")
    bare = run(*command, "--mosaics", 0, "--methods", "captum_mi, weighting", "random",
               "--out", photographs / "bare")
    assert "GridPG" in printed
    assert "GridPG" not in bare


def test_time_script_replaces_its_rows(tmp_path, monkeypatch, capsys):
    script = tmp_path / "says.py"
    script.write_text("import sys; print('said', *sys.argv[1:])")
    for name in ("one", "two", "one"):
        monkeypatch.setattr(sys, "argv", [
            "time_script.py", "--name", name, "--out", str(tmp_path / "table"), str(script),
            "--loud", name])
        monkeypatch.setattr(sys, "path", list(sys.path))
        time_script.main()
        assert f"said --loud {name}" in capsys.readouterr().out
    rows = (tmp_path / "table.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["script", "two", "one"]
