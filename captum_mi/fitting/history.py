"""The course of a fit: the terms of the objective at every step, to be read or plotted."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["History"]


@dataclass(repr=False)
class History:
    """Terms of the objective, one value per step; all in nats unless said otherwise.

    Attributes:
        distortion: KL between the predictions of the two passes (or the excess of the task
            loss over that of the clean pass, for ``task="labels"``).
        information: variational estimate of the information in x', mean over positions, layers.
        capacity: capacity per element, mean over elements and layers.
        info_nce: InfoNCE bound of the critics, mean over layers; empty without a critic.
        alpha: mean of alpha (no unit).
        beta2: multiplier of the information terms (no unit).
        head: negative log likelihood of the heads on examples that are held out from them; NaN
            in batches without any.
        marginal: negative log likelihood of the marginal r(y) on the same examples.
        kappa: the distortion that beta2 holds, or ``None`` for a beta2 set by hand.
        seconds: wall time of the steps, without the walks before and after them.
    """

    distortion: list[float] = field(default_factory=list)
    information: list[float] = field(default_factory=list)
    capacity: list[float] = field(default_factory=list)
    info_nce: list[float] = field(default_factory=list)
    alpha: list[float] = field(default_factory=list)
    beta2: list[float] = field(default_factory=list)
    head: list[float] = field(default_factory=list)
    marginal: list[float] = field(default_factory=list)
    kappa: float | None = None
    seconds: float = 0.0

    def __len__(self) -> int:
        return len(self.distortion)

    def __repr__(self) -> str:
        held = "" if self.kappa is None else f" (kappa {self.kappa:.3g})"
        ahead = self.recent("marginal") - self.recent("head")
        return (f"History({len(self)} steps in {self.seconds:.0f} s: distortion "
                f"{self.recent('distortion'):.3g} nats{held}, heads {ahead:.3g} nats ahead of the "
                "marginal on held-out examples)")

    def append(self, **terms: float) -> None:
        """Add one step."""
        for name, value in terms.items():
            getattr(self, name).append(value)

    def recent(self, name: str, steps: int = 50) -> float:
        """Mean of a term over the last steps that are finite."""
        values = [v for v in getattr(self, name)[-steps:] if v == v]
        return sum(values) / len(values) if values else float("nan")

    def plot(self) -> Figure:
        """Figure with a panel for each term over the steps.

        Returns:
            matplotlib figure; save it with ``.savefig(path)``.
        """
        from matplotlib.figure import Figure

        ahead = [marginal - head for marginal, head in zip(self.marginal, self.head)]
        panels = [
            ("Distortion held by beta2", "nats", self.distortion),
            ("Information in x'", "nats / position", self.information),
            ("Capacity", "nats / element", self.capacity),
            ("alpha, mean", "share of noise", self.alpha),
            ("beta2", "multiplier", self.beta2),
            ("Heads ahead of the marginal", "held-out log likelihood, nats", ahead),
        ]
        if self.info_nce:
            panels.append(("InfoNCE", "nats", self.info_nce))
        columns = 4
        rows = -(-len(panels) // columns)
        figure = Figure(figsize=(3.4 * columns, 2.6 * rows), layout="constrained")
        axes = list(figure.subplots(rows, columns, squeeze=False).flat)
        for axis, (title, unit, values) in zip(axes, panels):
            axis.plot(range(1, len(self) + 1), values, lw=1)
            axis.set(title=title, xlabel="step", ylabel=unit)
        if self.kappa is not None:
            axes[0].axhline(self.kappa, color="k", ls="--", lw=0.8, label="kappa")
            axes[0].legend(frameon=False, fontsize=8)
        axes[5].axhline(0, color="k", lw=0.8)
        for axis in axes[len(panels):]:
            axis.axis("off")
        if all(value > 0 for value in self.beta2):
            axes[4].set_yscale("log")
        return figure
