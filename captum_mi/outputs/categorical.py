"""Classes that exclude one another."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_mi.bounds import categorical_kl
from captum_mi.outputs.output import (
    LOG_FLOOR,
    Output,
    check_probabilities,
    check_range,
    check_sums,
    gather,
)

__all__ = ["CategoricalOutput"]

_LARGEST_LOGIT = 80.0  # exp of it is finite
_MAX_JOINT = 16384  # numbers of an output of several axes that are classes of one categorical


class CategoricalOutput(Output):
    """One of ``size`` classes; the raw output is logits, or probabilities that sum to 1.

    Outputs of several axes are one categorical over all of them together. A head returns logits
    relative to the marginal: zeros are the marginal.
    """

    log_marginal: Tensor

    def __init__(self, shape: Sequence[int], probabilities: bool = False) -> None:
        super().__init__(shape)
        if len(shape) > 1 and self.size > _MAX_JOINT:
            raise ValueError(
                f"the model returns {self.size} numbers per example (shape {tuple(shape)}), which "
                f"would be classes of one categorical; at most {_MAX_JOINT}. Wrap the model so "
                "that it returns the classes to be told apart, such as logits pooled over a region"
            )
        self.probabilities = probabilities
        self.head_size = self.size
        self.register_buffer("log_marginal", torch.full((self.size,), -math.log(self.size)))

    def _log_probabilities(self, raw: Tensor) -> Tensor:
        flat = raw.flatten(1).to(self.log_marginal.dtype)
        if not self.probabilities:
            return F.log_softmax(flat, -1)
        check_probabilities(flat, sum_to_one=True)
        return flat.clamp_min(math.exp(LOG_FLOOR)).log()

    def encode(self, raw: Tensor) -> Tensor:
        return self._log_probabilities(raw).exp()

    def critic_input(self, raw: Tensor) -> Tensor:
        return self._log_probabilities(raw).clamp_min(LOG_FLOOR)

    def fit_marginal(self, raw: Tensor) -> None:
        # Half an example spread over all classes keeps r above 0 for classes that never occur.
        y = self.encode(raw).double()
        self.log_marginal.copy_(((y.sum(0) + 0.5 / self.size) / (len(y) + 0.5)).log())

    def negative_log_likelihood(self, parameters: Tensor, y: Tensor) -> Tensor:
        return -(y * self._log_q(parameters)).sum(-1)

    def marginal_negative_log_likelihood(self, y: Tensor) -> Tensor:
        return -(y * self.log_marginal).sum(-1)

    def kl(self, parameters: Tensor) -> Tensor:
        # categorical_kl would take log r off again, and with it the digits of small values.
        centred, normaliser = self._normalised(parameters)
        mean = (centred.exp() * centred) @ self.log_marginal.exp()
        return (mean * (-normaliser).exp() - normaliser).clamp_min(0)

    def metric(self, changes: Tensor) -> Tensor:
        r = self.log_marginal.exp()
        return r.sqrt()[:, None] * (changes - r @ changes)

    def _log_q(self, parameters: Tensor) -> Tensor:
        return self.evidence(parameters) + self.log_marginal

    def evidence(self, parameters: Tensor) -> Tensor:
        centred, normaliser = self._normalised(parameters)
        return centred - normaliser[..., None]

    def evidence_for(self, parameters: Tensor, index: Tensor) -> Tensor:
        centred, normaliser = self._normalised(parameters)
        if index.shape[1] == 1:
            return gather(centred, index)[..., 0] - normaliser
        log_share = F.log_softmax(self.log_marginal[index], -1)  # of r within the set
        together = (gather(centred, index) + log_share[:, None]).logsumexp(-1)
        return together - normaliser

    def log_odds_ratio(self, parameters: Tensor, index: Tensor) -> Tensor:
        # What the others have in all is added up: nothing is lost where that is little.
        log_r = self.log_marginal
        others = log_r.expand(len(index), -1).scatter(1, index, -math.inf)
        prior = log_r[index].logsumexp(1) - others.logsumexp(1)
        in_favour = (gather(parameters, index) + log_r[index][:, None]).logsumexp(-1)
        ratio = in_favour - (parameters + others[:, None]).logsumexp(-1) - prior[:, None]
        return ratio.masked_fill(others.isneginf().all(1, keepdim=True), 0.0)  # there is no other

    def _normalised(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Logits ``a`` with mean 0 under r, ``(..., size)``, and ``log sum r exp(a)``, ``(...)``.

        By Jensen's inequality that sum is never below 1: its distance from 1 keeps the digits
        of small evidence. Where the largest logit would overflow, all are shifted. Their
        difference does not depend on the centre, which therefore needs no gradient.
        """
        r, fixed = self.log_marginal.exp(), parameters.detach()
        centre = torch.maximum(fixed @ r, fixed.amax(-1) - _LARGEST_LOGIT)
        centred = parameters - centre[..., None]
        return centred, torch.log1p(torch.expm1(centred) @ r)

    def log_probability(self, raw: Tensor, index: Tensor) -> Tensor:
        return self._log_probabilities(raw).gather(1, index).logsumexp(-1)

    def logit(self, raw: Tensor, index: Tensor) -> Tensor:
        """``log p`` less its mean over all classes: what is added to all logits is no matter."""
        return self.log_probability(raw, index) - self._log_probabilities(raw).mean(-1)

    def distortion(self, first: Tensor, second: Tensor) -> Tensor:
        return categorical_kl(self._log_probabilities(first), self._log_probabilities(second))

    def uninformed(self, raw: Tensor) -> Tensor:
        return categorical_kl(self._log_probabilities(raw), self.log_marginal).mean()

    def label_loss(self, raw: Tensor, labels: Tensor) -> Tensor:
        """Labels are class indices ``(N,)`` or probabilities ``(N, *shape)``."""
        log_p = self._log_probabilities(raw)
        if labels.is_floating_point():
            if labels[0].numel() != self.size:
                raise ValueError(
                    f"labels of {labels.dtype} have shape {tuple(labels.shape)}; expected class "
                    f"indices as integers, or a probability for each of {self.size} classes"
                )
            return -(labels.reshape(len(labels), -1) * log_p).sum(-1)
        if labels.numel() != len(labels):
            raise ValueError(
                f"labels of {labels.dtype} have shape {tuple(labels.shape)}; expected one class "
                "index for each example"
            )
        return -log_p.gather(1, labels.reshape(-1, 1).long())[:, 0]

    def check_labels(self, labels: Tensor) -> None:
        if labels.is_floating_point():
            check_range(labels, 1, "probabilities")
            check_sums(
                labels.reshape(len(labels), -1),
                "labels that are floating-point numbers are probabilities of the classes, which "
                "sum to 1",
                "For several labels at once pass output='bernoulli' where the attribution is made")
        else:
            check_range(labels, self.size - 1, f"indices of {self.size} classes")
