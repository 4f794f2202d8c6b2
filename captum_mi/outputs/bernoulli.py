"""Labels that may go together, or one of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_mi.bounds import bernoulli_kl
from captum_mi.outputs.output import LOG_FLOOR, Output, check_probabilities, check_range, gather

__all__ = ["BernoulliOutput"]


class BernoulliOutput(Output):
    """``size`` independent labels (or one), given as logits or as probabilities.

    A head returns logits relative to the marginal's.
    """

    independent = True
    marginal_logits: Tensor

    def __init__(self, shape: Sequence[int], probabilities: bool = False) -> None:
        super().__init__(shape)
        self.probabilities = probabilities
        self.head_size = self.size
        self.register_buffer("marginal_logits", torch.zeros(self.size))

    def _logits(self, raw: Tensor) -> Tensor:
        flat = raw.reshape(len(raw), -1).to(self.marginal_logits.dtype)
        if not self.probabilities:
            return flat
        check_probabilities(flat, sum_to_one=False)
        return torch.logit(flat, eps=1e-6)

    def encode(self, raw: Tensor) -> Tensor:
        return torch.sigmoid(self._logits(raw))

    def critic_input(self, raw: Tensor) -> Tensor:
        return self._logits(raw).clamp(LOG_FLOOR, -LOG_FLOOR)

    def fit_marginal(self, raw: Tensor) -> None:
        y = self.encode(raw).double()
        self.marginal_logits.copy_(torch.logit((y.sum(0) + 0.25) / (len(y) + 0.5)))

    def negative_log_likelihood(self, parameters: Tensor, y: Tensor) -> Tensor:
        return _bernoulli_nll(parameters + self.marginal_logits, y)

    def marginal_negative_log_likelihood(self, y: Tensor) -> Tensor:
        return _bernoulli_nll(self.marginal_logits.expand_as(y), y)

    def kl(self, parameters: Tensor) -> Tensor:
        return bernoulli_kl(parameters + self.marginal_logits, self.marginal_logits)

    def metric(self, changes: Tensor) -> Tensor:
        r = torch.sigmoid(self.marginal_logits)
        return (r * (1 - r)).sqrt()[:, None] * changes

    def evidence(self, parameters: Tensor) -> Tensor:
        q_logits = parameters + self.marginal_logits
        return F.logsigmoid(q_logits) - F.logsigmoid(self.marginal_logits)

    def evidence_for(self, parameters: Tensor, index: Tensor) -> Tensor:
        return gather(self.evidence(parameters), index).sum(-1)

    def log_odds_ratio(self, parameters: Tensor, index: Tensor) -> Tensor:
        log_q = gather(F.logsigmoid(parameters + self.marginal_logits), index).sum(-1)
        log_r = F.logsigmoid(self.marginal_logits)[index].sum(-1)
        return _log_odds(log_q) - _log_odds(log_r)[:, None]

    def log_probability(self, raw: Tensor, index: Tensor) -> Tensor:
        return F.logsigmoid(self._logits(raw).gather(1, index)).sum(-1)

    def logit(self, raw: Tensor, index: Tensor) -> Tensor:
        """``log p - log (1 - p)``: of one label its raw logit, which never levels."""
        if index.shape[1] == 1:
            return self._logits(raw).gather(1, index)[:, 0]
        return _log_odds(self.log_probability(raw, index))

    def distortion(self, first: Tensor, second: Tensor) -> Tensor:
        return bernoulli_kl(self._logits(first), self._logits(second))

    def uninformed(self, raw: Tensor) -> Tensor:
        return bernoulli_kl(self._logits(raw), self.marginal_logits).mean()

    def label_loss(self, raw: Tensor, labels: Tensor) -> Tensor:
        """Labels are 0 or 1, ``(N, *shape)``."""
        if labels[0].numel() != self.size:
            raise ValueError(
                f"labels have shape {tuple(labels.shape)}; expected 0 or 1 for each of "
                f"{self.size} independent labels of each example"
            )
        y = labels.reshape(len(labels), -1).to(self.marginal_logits.dtype)
        return _bernoulli_nll(self._logits(raw), y)

    def check_labels(self, labels: Tensor) -> None:
        check_range(labels, 1, "0 or 1")


def _bernoulli_nll(logits: Tensor, y: Tensor) -> Tensor:
    y = y.expand_as(logits)
    return F.binary_cross_entropy_with_logits(logits, y, reduction="none").sum(-1)


def _log_odds(log_p: Tensor) -> Tensor:
    """``log p - log (1 - p)``."""
    tiny = torch.finfo(log_p.dtype).tiny
    return log_p - (-torch.expm1(log_p.clamp_max(-tiny))).log()
