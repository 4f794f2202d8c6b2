"""Few-shot attribution on episodes of novel classes: localisation, and evidence for each way.

    python benchmarks/few_shot.py --data photographs.npz --encoder resnet18 --size 96 \
        --mean 0.48 0.45 0.40 --std 0.28 0.27 0.28 --weights protonet18.pt --explained 400 \
        --out benchmarks/results/few_shot

All methods explain the same queries for their own way. Writes ``OUT.csv`` and ``OUT.md``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from evaluation import now
from peers.captum_methods import grad_cam, integrated_gradients, occlusion
from peers.method import Reduction, reduced
from report import elapsed, mean_and_error, provenance, write_table
from torch import Tensor, nn
from tqdm import tqdm

from captum_mi import InfoBottleneckAttribution
from captum_mi.fewshot import Episode, EpisodeSampler, PrototypicalNetwork
from captum_mi.metrics import effective_heat_ratio, inside_box, pointing

sys.path.append(str(Path(__file__).parents[1] / "examples"))
from cub_protonet import (
    arguments,
    build,
    few_shot_accuracy,
    fitted,
    images_of,
    open_data,
)

OURS = "captum_mi"
METRICS = (effective_heat_ratio, inside_box, pointing)


class Explained(NamedTuple):
    """A method, and how its attributions are reduced."""

    attribute: Callable[[Tensor, Tensor, Episode], Tensor]
    reductions: tuple[Reduction, ...] = ("signed",)


class LogProbabilities(nn.Module):
    """Log-probability of each way of an episode."""

    def __init__(self, network: PrototypicalNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, query: Tensor, episode: Episode) -> Tensor:
        return self.network(query, episode).log_softmax(1)


def methods(
    network: PrototypicalNetwork, attr: InfoBottleneckAttribution
) -> dict[str, Explained]:
    """From queries, ways and the episode to attributions of the queries' shape.

    Other methods explain log-probabilities of the ways, as ours does: the distances to prototypes
    have a part in common, the query's own length, which decides nothing.
    """
    explained = LogProbabilities(network)
    return {
        OURS: Explained(lambda x, way, episode: attr.attribute(x, way, episode)),
        f"{OURS}, weighting='none'": Explained(lambda x, way, episode: attr.attribute(
            x, way, episode, weighting="none")),
        "Integrated Gradients 50": Explained(
            partial(integrated_gradients, explained), ("signed", "absolute")),
        "Occlusion 16/8": Explained(partial(occlusion, explained), ("signed", "absolute")),
        "Grad-CAM": Explained(
            partial(grad_cam, explained, "network.encoder.layer4", relu=False),
            ("positive", "absolute")),
        "random": Explained(lambda x, way, episode: torch.rand_like(x)),
    }


def main() -> None:
    parser = arguments(argparse.ArgumentParser(description=__doc__.splitlines()[0]))
    parser.add_argument("--explained", type=int, default=60, help="episodes of one query a way")
    parser.add_argument("--largest-box", type=float, default=0.5, help="share of the image")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/few_shot"))
    options = parser.parse_args()
    base, novel = open_data(options)
    network = build(options)
    accuracy, interval = few_shot_accuracy(network, novel, options)
    attr = fitted(network, base, options)
    torch.manual_seed(options.seed)
    compared = methods(network, attr)
    rows: dict[str, list[list[Tensor]]] = {}
    seconds: dict[str, float] = {}
    inside: list[Tensor] = []
    ways = torch.arange(options.ways)
    sampler = EpisodeSampler(novel.labels, options.ways, options.shots, 1, options.explained,
                             options.seed + 1)
    for draw in tqdm(sampler, desc="explained episodes"):
        support, query = (images_of(novel, rows).to(options.device)
                          for rows in (draw.support, draw.query))
        masks = torch.stack([novel.mask(i) for i in draw.query])
        with torch.no_grad():
            episode = network.episode(support, ways.repeat_interleave(options.shots))
            right = network(query, episode).argmax(1).cpu() == ways
        share = masks.float().mean((1, 2))  # 0 of a box that is not in view
        kept = right & (share < options.largest_box) & (share > 0)
        if not kept.any():
            continue
        query, own, masks = query[kept], ways[kept], masks[kept]
        for name, method in compared.items():
            if not inside:  # a first call is slower
                method.attribute(query, own, episode)
            began = now()
            raw = method.attribute(query, own, episode).detach()
            spent = now() - began
            for reduction in method.reductions:
                row = f"{name} ({reduction})"
                heat = reduced(raw, reduction).sum(1).cpu()
                seconds[row] = seconds.get(row, 0.0) + spent
                rows.setdefault(row, []).append([m(heat, masks) for m in METRICS])
        inside.append(evidence_inside(attr, query, own, masks, episode))
    if not inside:
        sys.exit(f"no query of {options.explained} episodes is classified correctly and has a box "
                 f"under {options.largest_box:g} of the image; raise --explained")
    write(rows, seconds, torch.cat(inside), accuracy, interval, attr, options)


def evidence_inside(
    attr: InfoBottleneckAttribution, query: Tensor, own: Tensor, masks: Tensor, episode: Episode
) -> Tensor:
    """``(n, 2)``: total evidence in the box for the own way, and its mean over the others."""
    columns = []
    for way in range(episode.ways):
        heat = attr.attribute(query, way, episode, weighting="none").sum(1).cpu()
        columns.append((heat * masks).sum((1, 2)))
    values = torch.stack(columns, 1)
    right = values.gather(1, own[:, None])[:, 0]
    return torch.stack([right, (values.sum(1) - right) / (episode.ways - 1)], 1)


def write(
    rows: dict[str, list[list[Tensor]]], seconds: dict[str, float], inside: Tensor,
    accuracy: float, interval: float, attr: InfoBottleneckAttribution,
    options: argparse.Namespace,
) -> None:
    """Table with paired differences from the default."""
    values = {
        name: [torch.cat(column).float() for column in zip(*parts)]
        for name, parts in rows.items()
    }
    ours = f"{OURS} (signed)"
    n = len(values[ours][0])
    table = []
    for name, columns in values.items():
        paired = [mean_and_error(own - other) for own, other in zip(values[ours], columns)]
        table.append([
            name, *map(mean_and_error, columns),
            *(("", "") if name == ours else (paired[0], paired[2])),
            f"{1000 * seconds[name] / n:.1f}",
        ])
    difference = mean_and_error(inside[:, 0] - inside[:, 1])
    note = (
        f"{options.ways}-way {options.shots}-shot accuracy on novel classes: "
        f"{100 * accuracy:.1f} ± {100 * interval:.1f} % (95 % interval over {options.episodes} "
        f"episodes). {n} queries that are classified correctly and whose box is under "
        f"{options.largest_box:g} of the image, from {options.explained} episodes; mean ± "
        f"standard error; ours - other is paired. Evidence inside the box, in nats: own way "
        f"{mean_and_error(inside[:, 0])}, other ways {mean_and_error(inside[:, 1])}, paired "
        f"difference {difference}. Fit: {len(attr.history)} steps in "
        f"{attr.history.seconds:.0f} s.\n\n"
        + provenance(encoder=options.encoder, layers="+".join(attr.layers), seed=options.seed,
                     wall_time=elapsed())
    )
    header = ["method", "EHR", "box", "pointing", "EHR: ours - it", "pointing: ours - it",
              "ms/query"]
    print(write_table(options.out, "Few-shot queries of novel classes", header, table, note))


if __name__ == "__main__":
    main()
