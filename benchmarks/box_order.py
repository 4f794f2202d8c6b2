"""What does faithfulness reward in a map that knows where the object is, and nothing else?

    python benchmarks/box_order.py --data photographs.npz --weights resnet18.pt \
        --model resnet18 --skip 1250 --out benchmarks/results/box_order_resnet18

Pixels are ranked by their distance from the object's box, which no method is shown: the first are
those inside. With the same ``--n``, ``--skip``, ``--seed`` and ``--tiles-per-step`` the images and
curves are those of ``compare_methods.py``. Writes ``OUT.csv`` and ``OUT.md``.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from evaluation import DEVICE, Evaluation, Heat, evaluation_set, mosaics, without_tf32
from peers.method import per_channel
from photographs import PLAIN, load, load_model
from report import mean_and_error, provenance, write_table
from torch import Tensor

METRICS = ("degradation", "insertion", "deletion")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="npz index with boxes")
    parser.add_argument("--model", default="resnet18", help="torchvision name or module:factory")
    parser.add_argument("--weights", help="state_dict, or the name of a torchvision weights enum")
    for name in ("mean", "std"):
        parser.add_argument(f"--{name}", nargs=3, type=float, default=getattr(PLAIN, name),
                            help="of pixels, if the weights have no preset: 0 is removed input")
    parser.add_argument("--n", type=int, default=200, help="images")
    parser.add_argument("--skip", type=int, default=0, help="first validation images to leave out")
    parser.add_argument("--tiles-per-step", type=int, default=1, help="of degradation curves")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/box_order"))
    return parser.parse_args()


def distance(boxes: Tensor) -> Tensor:
    """Distance of every pixel from the nearest one inside of the box, ``(n, H, W)``, in pixels."""
    grid = torch.ones_like(boxes[0]).nonzero().float()
    nearest = [torch.cdist(grid, box.nonzero().float()).amin(1) for box in boxes.cpu()]
    return torch.stack(nearest).view(boxes.shape).to(boxes.device)


def main() -> None:
    options = parse()
    without_tf32()
    plain = replace(PLAIN, mean=tuple(options.mean), std=tuple(options.std))
    model, view = load_model(options.model, options.weights, plain)
    model = model.to(DEVICE, memory_format=torch.channels_last)
    photos = load(options.data, "validation", None, options.seed, view)[options.skip :].to(DEVICE)
    chosen = evaluation_set(model, photos, options.n)
    if chosen.boxes is None:
        raise ValueError(f"{options.data} has no boxes; expected an npz index that has them")
    evaluation = Evaluation(
        model, chosen, mosaics(model, photos, 0, 0, options.seed), options.tiles_per_step,
        options.seed)
    heat = Heat(per_channel(-distance(chosen.boxes), chosen.images), chosen.images[:0])
    row = ["near the object first",
           *(mean_and_error(evaluation.measure(name, heat)) for name in METRICS)]
    note = (f"{len(chosen.images)} correctly classified validation images with a box under half "
            "of the image; mean ± standard error over images. Lower is better for deletion.\n\n"
            + provenance(model=options.model, seed=options.seed, skipped=options.skip,
                         tiles_per_step=options.tiles_per_step))
    print(write_table(options.out, f"The object's box as a map, {options.model}",
                      ["map", *METRICS], [row], note))


if __name__ == "__main__":
    main()
