"""What an output knows, whatever it is; and checks that several of them make."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

__all__ = ["LOG_FLOOR", "Output", "check_probabilities", "check_range", "check_sums", "gather"]

#: Least logarithm of a probability, in nats, that critics are shown.
LOG_FLOOR = -20.0


class Output(nn.Module):
    """Base class. ``raw`` is what the model or its global layer returns, ``(N, *shape)``.

    Args:
        shape: shape of one example's raw output.
    """

    #: How many numbers per local representation a head returns.
    head_size: int

    #: Whether evidence for a class comes from one of these numbers alone.
    independent = False

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.size = math.prod(self.shape)

    def encode(self, raw: Tensor) -> Tensor:
        """``(N, *shape) -> (N, size)``: what heads are trained to predict."""
        raise NotImplementedError

    def critic_input(self, raw: Tensor) -> Tensor:
        """``(N, *shape) -> (N, size)``: unbounded coordinates of y, for critics."""
        raise NotImplementedError

    def fit_marginal(self, raw: Tensor) -> None:
        """Estimate ``r(y)`` from the raw outputs of the fitting data, ``(n, *shape)``."""
        raise NotImplementedError

    def negative_log_likelihood(self, parameters: Tensor, y: Tensor) -> Tensor:
        """``-log q(y | x')`` in nats: parameters ``(..., head_size)``, y ``(..., size)``."""
        raise NotImplementedError

    def marginal_negative_log_likelihood(self, y: Tensor) -> Tensor:
        """``-log r(y)`` in nats: ``(..., size) -> (...)``."""
        raise NotImplementedError

    def kl(self, parameters: Tensor) -> Tensor:
        """``KL(q || r)`` in nats: ``(..., head_size) -> (...)``."""
        raise NotImplementedError

    def metric(self, changes: Tensor) -> Tensor:
        """Changes of parameters from r's, ``(head_size, n)``, as rows whose squares add up to
        ``2 KL(q || r)`` where they are small: by the root of Fisher's information."""
        raise NotImplementedError

    def evidence(self, parameters: Tensor) -> Tensor:
        """``log q(t | x') - log r(t)``, all classes: ``(..., head_size) -> (..., size)``."""
        raise NotImplementedError

    def evidence_for(self, parameters: Tensor, index: Tensor) -> Tensor:
        """Evidence for sets of classes: parameters ``(N, P, head_size)``, index ``(N, S)``.

        Several indices are one event: any of these classes, or all of these labels.
        """
        raise NotImplementedError

    def log_odds_ratio(self, parameters: Tensor, index: Tensor) -> Tensor:
        """How many times likelier the features are with the same event than without it, as a log.

        ``log q / (1 - q) - log r / (1 - r)``, shaped as the evidence. Unlike that it never
        levels: where q is nearly 1, evidence is ``-log r`` at most.
        """
        raise NotImplementedError

    def log_probability(self, raw: Tensor, index: Tensor) -> Tensor:
        """Of raw predictions, ``log p(index)`` ``(N,)`` of classes ``(N, S)``, one event."""
        raise NotImplementedError

    def logit(self, raw: Tensor, index: Tensor) -> Tensor:
        """Of raw predictions, the logit ``(N,)`` of an event; unlike ``log p`` it never levels."""
        raise NotImplementedError

    def distortion(self, first: Tensor, second: Tensor) -> Tensor:
        """How far raw predictions ``second`` are from ``first``, in nats: ``(N,)``."""
        raise NotImplementedError

    def uninformed(self, raw: Tensor) -> Tensor:
        """Mean distortion, in nats, of predicting the marginal for every example."""
        raise NotImplementedError

    def label_loss(self, raw: Tensor, labels: Tensor) -> Tensor:
        """Loss of raw predictions against labels, in nats: ``(N,)``."""
        raise NotImplementedError

    def check_labels(self, labels: Tensor) -> None:
        """Raise ValueError for values that no label has; apart from the loss, as it looks at them.
        """


def gather(per_class: Tensor, index: Tensor) -> Tensor:
    """``(N, P, K)`` at ``(N, S)`` -> ``(N, P, S)``."""
    return per_class.gather(2, index[:, None].expand(-1, per_class.shape[1], -1))


def check_probabilities(flat: Tensor, sum_to_one: bool) -> None:
    flat = flat.detach()
    low, high = float(flat.min()), float(flat.max())
    if low < -1e-4 or high > 1 + 1e-4:
        raise ValueError(
            f"'probabilities' expects values in [0, 1]; got {low:.4g} to {high:.4g}. For logits "
            "use 'categorical' or 'bernoulli'"
        )
    if sum_to_one:
        check_sums(
            flat, "'probabilities' of several classes expects rows that sum to 1",
            "For independent labels return logits, with 'bernoulli'")


def check_sums(flat: Tensor, expected: str, advice: str) -> None:
    """Raise, with what was expected and what to do, if rows ``(n, classes)`` do not sum to 1."""
    off = float((flat.sum(-1) - 1).abs().max())
    if off > 1e-2:
        raise ValueError(f"{expected}; a row is off by {off:.4g}. {advice}")


def check_range(labels: Tensor, most: int, kind: str) -> None:
    low, high = labels.min().item(), labels.max().item()
    if not (low >= 0 and high <= most):
        raise ValueError(
            f"labels go from {low:g} to {high:g}; expected {kind}, from 0 to {most}. Leave out "
            "examples without a label, or use task='prediction'"
        )
