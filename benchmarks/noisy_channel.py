"""What a fit says about features whose information is known, clean and noised.

    python benchmarks/noisy_channel.py --out benchmarks/results/noisy_channel

Features are a mixture of three Gaussians in ``--dimensions``, the model is the mixture's true
posterior, and alpha is set by hand: what clean and noised features tell about the class (heads),
and noised ones about the model's output (critics), is known: its two free logits are the two
dimensions in which the Gaussians differ. Unlike ``mi_ground_truth.py`` this goes
through ``fit`` and ``information``. Writes ``OUT.csv`` and ``OUT.md``.
"""

from __future__ import annotations

import argparse
import math
import warnings
from itertools import product
from pathlib import Path

import torch
from report import elapsed, provenance, write_table
from torch import Tensor, nn
from tqdm import tqdm

from captum_mi import LayerInfoBottleneckAttribution

SHARES = torch.tensor([0.6, 0.3, 0.1])
TRIANGLE = torch.tensor([[2.0, 0.0], [-1.0, 1.7], [-1.0, -1.7]])
MANY = 200_000  # draws that the truth is a mean over


def centres(dimensions: int) -> Tensor:
    """Of the components: a triangle in the first two dimensions, 0 in the others."""
    return nn.functional.pad(TRIANGLE, (0, dimensions - 2))


def mixture(n: int, dimensions: int, seed: int) -> Tensor:
    """Draws ``(n, dimensions)`` of the features."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.multinomial(SHARES, n, True, generator=generator)
    return centres(dimensions)[label] + torch.randn(n, dimensions, generator=generator)


def posterior_model(dimensions: int) -> nn.Module:
    """From features to the logits of the true posterior."""
    model = nn.Sequential(nn.Identity(), nn.Linear(dimensions, len(SHARES))).eval()
    with torch.no_grad():
        model[1].weight.copy_(centres(dimensions))
        model[1].bias.copy_(SHARES.log() - TRIANGLE.square().sum(1) / 2)
    return model


class Truth:
    """Of features that are standardised and noised with one alpha, in the two dimensions in which
    the Gaussians differ: others tell nothing."""

    def __init__(self, alpha: float) -> None:
        self.alpha = alpha
        data = mixture(MANY, 2, 1)
        mean, deviation = data.mean(0), data.std(0)
        noise = torch.randn(data.shape, generator=torch.Generator().manual_seed(2))
        noised = (1 - alpha) * (data - mean) / deviation + alpha * noise
        kept = (1 - alpha) / deviation
        variances = kept**2 + alpha**2
        distance = noised[:, None] - kept * (TRIANGLE - mean)
        log_density = -0.5 * (
            (distance.square() / variances).sum(-1) + (2 * math.pi * variances).log().sum())
        self.joint = log_density + SHARES.log()

    def about_the_class(self) -> float:
        """I(x'; y) in nats, y the class."""
        posterior = self.joint.log_softmax(1)
        return float((posterior.exp() * (posterior - SHARES.log())).sum(1).mean())

    def about_the_output(self) -> float:
        """I(x'; y) in nats, y the model's output, which tells both dimensions."""
        noise = math.log(2 * math.pi * math.e * self.alpha**2)
        return float(-self.joint.logsumexp(1).mean()) - noise


def fitted(
    alpha: float, dimensions: int, steps: int, seed: int, width: int = 256
) -> LayerInfoBottleneckAttribution:
    """A fit at the model's input."""
    attr = LayerInfoBottleneckAttribution(
        posterior_model(dimensions), layer="0", alpha=alpha, head_hidden=(width,),
        critic_hidden=(width,))
    data = mixture(16384, dimensions, 3 + seed)
    with warnings.catch_warnings():  # of little noise, and of features that tell hardly anything
        warnings.simplefilter("ignore")
        attr.fit(list(data.split(256)), steps=steps, lr=3e-3, seed=seed, progress=False)
    return attr


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dimensions", type=int, nargs="+", default=(2, 32))
    parser.add_argument("--alphas", type=float, nargs="+", default=(0.2, 0.4, 0.6, 0.8, 0.9))
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--n", type=int, default=4096, help="examples that estimates are of")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/noisy_channel"))
    options = parser.parse_args()
    cases = list(product(options.dimensions, options.alphas))
    rows = [row(*case, options) for case in tqdm(cases, unit="channel")]
    header = ["dimensions", "alpha", "I(x; class)", "general", "I(x'; class)", "sufficient",
              "maps", "evidence", "capacity", "I(x'; output)", "sufficient, InfoMax", "its maps"]
    note = (
        "A mixture of three Gaussians, nats; beside each truth the estimate of `information`, the "
        "mean of `attribute`'s maps and, of the heads, of `evidence` for classes as the model "
        "predicts them, "
        f"mean ± standard deviation over {options.seeds} fits of {options.steps} steps.\n\n"
        + provenance(steps=options.steps, seeds=f"0-{options.seeds - 1}", wall_time=elapsed())
    )
    print(write_table(options.out, "A noisy channel with a known truth", header, rows, note))


def row(dimensions: int, alpha: float, options: argparse.Namespace) -> list[str]:
    """Truths and estimates."""
    clean, noised = Truth(0.0), Truth(alpha)
    found: dict[str, list[float]] = {}
    for seed in range(options.seeds):
        attr = fitted(alpha, dimensions, options.steps, seed)
        unseen = list(mixture(options.n, dimensions, 100 + seed).split(2048))
        evidence = torch.cat([(attr.evidence(x) * predicted(attr, x)).sum(1) for x in unseen])
        found.setdefault("evidence", []).append(float(evidence.mean()))
        for estimator in ("variational", "infomax"):
            maps = torch.cat([attr.attribute(x, estimator=estimator) for x in unseen])  # type: ignore[arg-type]
            found.setdefault(f"{estimator} maps", []).append(float(maps.mean()))
            figures = attr.information(unseen, estimator=estimator, progress=False)["0"]
            for name, estimate in figures.items():
                found.setdefault(f"{estimator} {name}", []).append(estimate.mean)

    def told(name: str) -> str:
        values = torch.tensor(found[name])
        return f"{values.mean():.3f} ± {values.std():.3f}"

    return [
        str(dimensions), f"{alpha:g}",
        f"{clean.about_the_class():.3f}", told("variational general"),
        f"{noised.about_the_class():.3f}", told("variational sufficient"),
        told("variational maps"), told("evidence"), told("variational capacity"),
        f"{noised.about_the_output():.3f}", told("infomax sufficient"), told("infomax maps"),
    ]


@torch.no_grad()
def predicted(attr: LayerInfoBottleneckAttribution, x: Tensor) -> Tensor:
    """Probabilities of the classes, by the model."""
    return attr.model(x).softmax(1)  # type: ignore[no-any-return]


if __name__ == "__main__":
    main()
