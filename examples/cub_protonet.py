"""Few-shot birds: a prototypical network, and where in a query the evidence for each way is.

    python examples/cub_protonet.py --data CUB_200_2011 --out cub_output

Trains on base classes (or takes ``--weights``), as a classifier for ``--pretrain`` epochs, then on
episodes; measures the accuracy on novel classes, fits the bottleneck once on base episodes, and
draws one novel episode: every query, explained for its own way and for the way that comes next,
and every support image. ``--data`` is the folder of CUB-200-2011, or an ``.npz`` index with the
splits 0 base and 2, 3 novel.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
import torchvision
from fits import read_or_made
from matplotlib.figure import Figure
from torch import Tensor, nn
from tqdm import tqdm
from training import shuffled, train

from captum_mi import InfoBottleneckAttribution
from captum_mi.datasets import CUB200, IndexedPhotographs, View
from captum_mi.fewshot import (
    Draw,
    Episode,
    EpisodeLoader,
    EpisodeSampler,
    PrototypicalNetwork,
    prototypes_of,
)
from captum_mi.visualize import panel

Photographs = CUB200 | IndexedPhotographs


def arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """What both this script and the benchmark on the same network take."""
    parser.add_argument("--data", type=Path, required=True,
                        help="folder with CUB_200_2011, or an .npz index of photographs (see "
                             "captum_mi.datasets.IndexedPhotographs) with the splits 0 (base), 2 "
                             "and 3 (novel)")
    parser.add_argument("--encoder", default="resnet50", help="torchvision name, with an fc")
    parser.add_argument("--weights", type=Path, help="state_dict of the encoder: no training")
    parser.add_argument("--size", type=int, default=84, help="height and width of inputs")
    parser.add_argument("--mean", type=float, nargs=3, default=(0.485, 0.456, 0.406),
                        help="mean of each colour, of pixels in [0, 1]")
    parser.add_argument("--std", type=float, nargs=3, default=(0.229, 0.224, 0.225),
                        help="standard deviation of each colour")
    parser.add_argument("--embedding", type=int, default=64, help="outputs of the encoder")
    parser.add_argument("--distance", default="euclidean", choices=("euclidean", "cosine"),
                        help="between embeddings and prototypes")
    parser.add_argument("--temperature", type=float, default=8.0,
                        help="divides the closeness to prototypes")
    parser.add_argument("--layers", nargs="+", default=["encoder.layer2", "encoder.layer3"],
                        help="where noise is injected and information is read")
    parser.add_argument("--ways", type=int, default=5, help="classes in an episode")
    parser.add_argument("--shots", type=int, default=1, help="supports of each class")
    parser.add_argument("--queries", type=int, default=12, help="queries of each class")
    parser.add_argument("--episodes", type=int, default=600,
                        help="that the accuracy is measured on")
    parser.add_argument("--steps", type=int, default=700,
                        help="of the fit, on a quarter as many episodes")
    parser.add_argument("--fit", type=Path, help="load this fit, or save to it if it is missing")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu",
                        help="where everything runs")
    parser.add_argument("--seed", type=int, default=0, help="of all that is random")
    return parser


def main() -> None:
    parser = arguments(argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter))
    parser.add_argument("--pretrain", type=int, default=20,
                        help="epochs as a classifier of the base classes, without --weights")
    parser.add_argument("--epochs", type=int, default=20,
                        help="of training on episodes, without --weights")
    parser.add_argument("--batch", type=int, default=64,
                        help="images in a batch of the classifier")
    parser.add_argument("--per-epoch", type=int, default=100,
                        help="episodes in an epoch of training")
    parser.add_argument("--out", type=Path, default=Path("cub_output"), help="folder of results")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    base, novel = open_data(options)
    network = build(options)
    if not options.weights:
        train_as_classifier(network, base, options)
        train_on_episodes(network, base, options)
    accuracy, interval = few_shot_accuracy(network, novel, options)
    print(f"{options.ways}-way {options.shots}-shot on novel classes: {100 * accuracy:.1f} % "
          f"± {100 * interval:.1f} (95 % interval over {options.episodes} episodes)")
    attr = fitted(network, base, options)
    attr.history.plot().savefig(options.out / "history.png", dpi=110)
    for name, figure in pictures(network, attr, novel, options).items():
        figure.savefig(options.out / f"{name}.png", dpi=110)
    print(f"figures in {options.out}/")


def open_data(options: argparse.Namespace) -> tuple[Photographs, Photographs]:
    """Photographs of base and of novel classes."""
    view = View(options.size, tuple(options.mean), tuple(options.std), antialias=False)
    if options.data.suffix == ".npz":
        return (IndexedPhotographs(options.data, 0, view),
                IndexedPhotographs(options.data, (2, 3), view))
    return CUB200(options.data, "base", view), CUB200(options.data, "novel", view)


def build(options: argparse.Namespace) -> PrototypicalNetwork:
    """The network, untrained or with weights, on its device."""
    torch.manual_seed(options.seed)
    encoder = torchvision.models.get_model(options.encoder, num_classes=options.embedding)
    if options.weights:
        encoder.load_state_dict(
            torch.load(options.weights, map_location="cpu", weights_only=True))
    network = PrototypicalNetwork(encoder, options.distance, options.temperature)
    return network.to(options.device).eval()


def train_as_classifier(
    network: PrototypicalNetwork, base: Photographs, options: argparse.Namespace
) -> None:
    """Cross-entropy of a linear layer on the embedding, which is dropped: episodes start from it.

    Source: Chen et al., 2021, https://arxiv.org/abs/2003.04390.
    """
    names, labels = torch.unique(torch.as_tensor(base.labels), return_inverse=True)
    classifier = nn.Sequential(network.encoder, nn.Linear(options.embedding, len(names)))
    classifier.to(options.device)
    steps = max(1, len(labels) // options.batch)

    def batches(epoch: int) -> Iterator[Tensor]:
        return shuffled(len(labels), options.batch, options.seed + epoch)

    def loss(rows: Tensor) -> Tensor:
        images = flipped(images_of(base, rows.tolist()).to(options.device))
        return F.cross_entropy(classifier(images), labels[rows].to(options.device))

    train(classifier, batches, loss, options.pretrain, steps,
          options.out / "classifier.pt", seed=options.seed, settings=told_by(options))


def train_on_episodes(
    network: PrototypicalNetwork, base: Photographs, options: argparse.Namespace
) -> None:
    """Cross-entropy of the queries; support and queries go through the encoder together."""
    ways = torch.arange(options.ways, device=options.device)

    def episodes(epoch: int) -> Iterator[Draw]:
        return iter(EpisodeSampler(base.labels, options.ways, options.shots, options.queries,
                                   options.per_epoch, seed=options.seed + epoch))

    def loss(draw: Draw) -> Tensor:
        images = flipped(images_of(base, draw.support + draw.query).to(options.device))
        embedded = network.encoder(images)
        support, query = embedded.split([len(draw.support), len(draw.query)])
        prototypes = prototypes_of(support, ways.repeat_interleave(options.shots))
        logits = network.classify(query, Episode(prototypes))
        return F.cross_entropy(logits, ways.repeat_interleave(options.queries))

    train(network, episodes, loss, options.epochs, options.per_epoch,
          options.out / "checkpoint.pt", lr=3e-4 if options.pretrain else 1e-3,
          seed=options.seed, settings=told_by(options))


def told_by(options: argparse.Namespace) -> dict[str, str]:
    """What training depends on besides its steps and its seed."""
    names = ("data", "encoder", "size", "mean", "std", "embedding", "distance", "temperature",
             "ways", "shots", "queries", "batch", "pretrain")
    return {name: str(getattr(options, name)) for name in names}


def flipped(images: Tensor) -> Tensor:
    """A batch mirrored, or not."""
    return images.flip(3) if torch.rand(()) < 0.5 else images


@torch.no_grad()
def few_shot_accuracy(
    network: PrototypicalNetwork, photographs: Photographs, options: argparse.Namespace
) -> tuple[float, float]:
    """Mean accuracy over episodes and half of its 95 % interval."""
    sampler = EpisodeSampler(photographs.labels, options.ways, options.shots, options.queries,
                             options.episodes, options.seed)
    loader = EpisodeLoader(network, photographs, sampler)
    rows = []
    for batch in tqdm(loader, desc="novel episodes", unit="episode"):
        predicted = network(batch.inputs[0].to(options.device), *batch.additional_forward_args)
        rows.append((predicted.argmax(1).cpu() == batch.labels).float().mean())
    values = torch.stack(rows)
    return float(values.mean()), 1.96 * float(values.std()) / len(values) ** 0.5


def fitted(
    network: PrototypicalNetwork, base: Photographs, options: argparse.Namespace
) -> InfoBottleneckAttribution:
    """A fit on base episodes, which serves every later episode; loaded if it was saved.

    The global representation is the encoder's last layer, the downstream network the distances.
    """

    def made() -> InfoBottleneckAttribution:
        sampler = EpisodeSampler(base.labels, options.ways, options.shots, options.queries,
                                 max(1, options.steps // 4), options.seed)
        attr = InfoBottleneckAttribution(
            network, options.layers, global_layer="encoder.fc", downstream=network.classify,
            marginal="uniform",
        )
        attr.fit(EpisodeLoader(network, base, sampler), steps=options.steps, seed=options.seed)
        return attr

    return read_or_made(options.fit, network, made, network.classify)


def pictures(
    network: PrototypicalNetwork, attr: InfoBottleneckAttribution, novel: Photographs,
    options: argparse.Namespace,
) -> dict[str, Figure]:
    """One novel episode: queries for two ways each, and what of the support makes prototypes."""
    sampler = EpisodeSampler(novel.labels, options.ways, options.shots, 1, 1, options.seed)
    draw = next(iter(sampler))
    support, query = (images_of(novel, rows).to(options.device)
                      for rows in (draw.support, draw.query))
    ways = torch.arange(options.ways)
    support_ways = ways.repeat_interleave(options.shots)
    with torch.no_grad():
        episode = network.episode(support, support_ways)
        p = network(query, episode).softmax(1).cpu()
    nats = "nats / pixel"
    other = (ways + 1) % options.ways
    maps = {
        "evidence for its own way": attr.attribute(query, ways, episode),
        "for the next way": attr.attribute(query, other, episode),
        "information in x' (no target)": attr.attribute(query, None, episode),
    }
    names = [novel.classes[c].split(",")[0] for c in draw.classes]  # of several, the first
    return {
        "queries": panel(
            query, maps, [f"{name}\np {p[i, i]:.2f}" for i, name in enumerate(names)],
            dict.fromkeys(maps, nats), "Queries of novel classes: where is the evidence?"),
        "support": panel(
            support,
            {"evidence for its own way": attr.attribute(support, support_ways, episode),
             "information in x' (no target)": attr.attribute(support, None, episode)},
            [names[int(w)] for w in support_ways], dict.fromkeys(
                ("evidence for its own way", "information in x' (no target)"), nats),
            "Support images: what of them makes the prototype?"),
    }


def images_of(photographs: Photographs, rows: list[int]) -> Tensor:
    """Inputs ``(n, 3, size, size)``."""
    return torch.stack([photographs[i][0] for i in rows])


if __name__ == "__main__":
    main()
