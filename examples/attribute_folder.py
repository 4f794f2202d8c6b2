"""Attribute a folder of images of any size, on one process or many, and go on where it stopped.

    python examples/attribute_folder.py --images photos/ --model resnet50 --weights DEFAULT \
        --fit fit.safetensors --out maps/
    torchrun --nproc-per-node 4 examples/attribute_folder.py ...

``--images`` is a folder of image files, at any depth. Each process takes every n-th shard of
``--shard`` images and writes it as ``shard_00000.safetensors``: ``maps`` (n, H, W) in nats per
pixel, ``targets`` (n,), and the file names in the metadata; shards that are there, of the same
images (by name, size and time), settings and fit, are not made again. Without ``--fit``, or if
that file is missing, the processes fit together first. With ``--overlays`` a picture of every
image is written too, as ``pictures/NAME.png``. Memory does not grow with their number. Shards that
are not of these images and settings any more are removed, with the pictures of what they name.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist
import torchvision
from fits import read_or_made
from networks import classes_of, torchvision_weights
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler
from tqdm import tqdm

from captum_mi import InfoBottleneckAttribution
from captum_mi.datasets import View
from captum_mi.model.weights import fingerprint
from captum_mi.visualize import overlay

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
PICTURES = "pictures"


class Folder(Dataset[tuple[Tensor, int]]):
    """Images of a folder but for pictures in ``out``, sorted; items are (input, index)."""

    def __init__(self, root: Path, out: Path, view: View) -> None:
        self.root, self.view = root.resolve(), view
        self.paths = sorted(p for p in self.root.rglob("*") if p.suffix.lower() in SUFFIXES
                            and not p.is_relative_to(out.resolve() / PICTURES))
        if not self.paths:
            raise FileNotFoundError(f"{root}: no image with a suffix of {SUFFIXES}")

    def name(self, i: int) -> str:
        """Path of an image in the folder."""
        return str(self.paths[i].relative_to(self.root))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        try:
            with Image.open(self.paths[i]) as image:
                return self.view(image), i
        except (OSError, ValueError) as error:
            raise ValueError(f"{self.paths[i]} cannot be read: {error}") from error


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="folder, searched recursively")
    parser.add_argument("--model", default="resnet50", help="torchvision name")
    parser.add_argument("--weights", required=True,
                        help="path of a state_dict, or a name of torchvision's weights enum, such "
                             "as DEFAULT")
    parser.add_argument("--size", type=int, default=224, help="height and width of inputs")
    for name in ("mean", "std"):
        parser.add_argument(f"--{name}", nargs=3, type=float, default=getattr(View, name),
                            help="of each channel, by which the network's inputs are normalised")
    parser.add_argument("--fit", type=Path, help="load this fit, or save to it if it is missing")
    parser.add_argument("--steps", type=int, default=700, help="of the fit")
    parser.add_argument("--batch", type=int, default=64, help="images in a batch")
    parser.add_argument("--shard", type=int, default=1024, help="images in a file of maps")
    parser.add_argument("--target", type=int, help="class to explain; without, the predicted one")
    parser.add_argument("--overlays", action="store_true", help="also write a PNG per image")
    parser.add_argument("--seed", type=int, default=0, help="of all that is random")
    parser.add_argument("--out", type=Path, default=Path("maps"), help="folder of results")
    options = parser.parse_args()
    rank, world = join_processes()
    options.out.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda", rank % torch.cuda.device_count()) if (
        torch.cuda.is_available()) else torch.device("cpu")
    model = build(options).to(device)
    view = View(options.size, tuple(options.mean), tuple(options.std))
    folder = Folder(options.images, options.out, view)
    attr = fitted(model, folder, options, world)
    shards = {
        options.out / f"shard_{start // options.shard:05d}.safetensors":
            range(start, min(start + options.shard, len(folder)))
        for start in range(0, len(folder), options.shard)
    }
    if rank == 0:
        discard_outdated(shards, attr, folder, options)
    meet(world)
    for path in tqdm(list(shards)[rank::world], desc="shards", disable=rank > 0):
        if not path.exists():
            write_shard(path, attr, folder, shards[path], options)
    meet(world)
    if world > 1:
        dist.destroy_process_group()
    if rank == 0:
        print(f"maps of {len(folder)} images in {options.out}/")


def discard_outdated(
    shards: dict[Path, range], attr: InfoBottleneckAttribution, folder: Folder,
    options: argparse.Namespace,
) -> None:
    """Remove shards of other images, settings or fits, and the pictures of what they name."""
    for path in options.out.glob("shard_*.safetensors"):
        found, rows = metadata(path), shards.get(path, range(0))
        drawn = not options.overlays or all(
            picture_of(folder.name(i), options).exists() for i in rows)
        if rows and drawn and found == described(attr, folder, rows, options):
            continue
        for name in json.loads(found.get("names", "[]")):
            picture_of(name, options).unlink(missing_ok=True)
        path.unlink()


def metadata(path: Path) -> dict[str, str]:
    """How a shard was made, as it says itself; of one that is cut off nothing is known."""
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except SafetensorError:
        return {}


def meet(world: int) -> None:
    """Wait for the other processes."""
    if world > 1:
        dist.barrier()


def join_processes() -> tuple[int, int]:
    """This process's number and how many there are, as ``torchrun`` says."""
    world = int(os.environ.get("WORLD_SIZE", 1))
    if world > 1:
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    return int(os.environ.get("RANK", 0)), world


def build(options: argparse.Namespace) -> nn.Module:
    """The network in eval mode."""
    if not Path(options.weights).exists():
        weights = torchvision_weights(options.model, options.weights)
        return torchvision.models.get_model(options.model, weights=weights).eval()
    state = torch.load(options.weights, map_location="cpu", weights_only=True)
    model = torchvision.models.get_model(options.model, num_classes=classes_of(state))
    model.load_state_dict(state)
    return model.eval()


def fitted(
    model: nn.Module, folder: Folder, options: argparse.Namespace, world: int
) -> InfoBottleneckAttribution:
    """A fit, loaded if it was saved; each process sees its share of the folder."""

    def made() -> InfoBottleneckAttribution:
        sampler = DistributedSampler(folder, seed=options.seed) if world > 1 else None
        loader = DataLoader(
            folder, max(1, options.batch // world), sampler=sampler, shuffle=sampler is None,
            num_workers=2,
        )
        attr = InfoBottleneckAttribution(model)
        attr.fit(loader, options.steps, seed=options.seed, prepare_batch=lambda item: item[0])
        return attr

    return read_or_made(options.fit, model, made, writes=int(os.environ.get("RANK", 0)) == 0)


def described(
    attr: InfoBottleneckAttribution, folder: Folder, rows: range, options: argparse.Namespace
) -> dict[str, str]:
    """What is in a shard and how it was made: its metadata."""
    states = [(path.stat().st_size, path.stat().st_mtime_ns)
              for path in folder.paths[rows.start : rows.stop]]
    settings = {name: str(getattr(options, name))
                for name in ("model", "weights", "size", "mean", "std", "target", "overlays")}
    return {"names": json.dumps([folder.name(i) for i in rows]), "files": json.dumps(states),
            "layers": json.dumps(attr.layers), "unit": "nats / pixel",
            "settings": json.dumps(settings), "fit": fingerprint(attr.networks)}


def picture_of(name: str, options: argparse.Namespace) -> Path:
    """Where the picture of an image is written."""
    path: Path = options.out / PICTURES / f"{name}.png"
    return path


def write_shard(
    path: Path, attr: InfoBottleneckAttribution, folder: Folder, rows: range,
    options: argparse.Namespace,
) -> None:
    """Maps of one shard; the file appears when it is whole."""
    description = described(attr, folder, rows, options)  # of the images before they are read
    maps, targets = zip(*explained(attr, folder, rows, options))
    unfinished = path.with_suffix(".unfinished")
    save_file({"maps": torch.cat(maps), "targets": torch.cat(targets)}, unfinished, description)
    unfinished.replace(path)


def explained(
    attr: InfoBottleneckAttribution, folder: Folder, rows: range, options: argparse.Namespace
) -> Iterator[tuple[Tensor, Tensor]]:
    """Maps ``(n, H, W)`` and targets ``(n,)`` of a few images at a time."""
    device = next(attr.model.parameters()).device
    loader = DataLoader(torch.utils.data.Subset(folder, rows), options.batch, num_workers=2)
    for images, indices in loader:
        images = images.to(device)
        with torch.no_grad():
            target = attr.model(images).argmax(1)
        if options.target is not None:
            target = torch.full_like(target, options.target)
        maps = attr.attribute(images, target).sum(1).cpu()
        if options.overlays:
            for image, heat, i, wanted in zip(
                    images.cpu(), maps, indices.tolist(), target.tolist()):
                path = picture_of(folder.name(i), options)
                path.parent.mkdir(parents=True, exist_ok=True)
                title = f"{folder.paths[i].name}: evidence for class {wanted}"
                overlay(image, heat, title=title).savefig(path, dpi=100)
        yield maps, target.cpu()


if __name__ == "__main__":
    main()
