"""What the global representation ``y`` is: a class, labels, or a continuous vector.

An output knows how a head's numbers describe ``q(y | x')``, what the marginal ``r(y)`` of the
fitting data is, and how far the predictions of two passes are from each other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_mi.bounds import bernoulli_kl, categorical_kl, gaussian_kl

__all__ = [
    "BernoulliOutput",
    "CategoricalOutput",
    "GaussianOutput",
    "Output",
    "OutputKind",
    "PredictionKind",
    "categorical_log_odds_ratio",
    "make_output",
    "make_prediction",
    "resolve_kind",
]

PredictionKind = Literal["categorical", "bernoulli", "probabilities"]
OutputKind = Literal[PredictionKind, "gaussian"]

_LOG_FLOOR = -20.0
_LARGEST_LOGIT = 80.0  # exp of it is finite
_MAX_WHITENED = 4096
_MAX_JOINT = 16384  # numbers of an output of several axes that are classes of one categorical


class Output(nn.Module):
    """Base class. ``raw`` is what the model or its global layer returns, ``(N, *shape)``.

    Args:
        shape: shape of one example's raw output.
    """

    #: How many numbers per local representation a head returns.
    head_size: int

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


def _gather(per_class: Tensor, index: Tensor) -> Tensor:
    """``(N, P, K)`` at ``(N, S)`` -> ``(N, P, S)``."""
    return per_class.gather(2, index[:, None].expand(-1, per_class.shape[1], -1))


def categorical_log_odds_ratio(scores: Tensor, log_r: Tensor, index: Tensor) -> Tensor:
    """Log odds ratio of classes ``(N, S)``, taken together: ``(N, P)``.

    What the other classes have in all is added up, so that nothing is lost where that is little.

    Args:
        scores: ``log q - log r`` up to a constant for each position, ``(N, P, K)``.
        log_r: the marginal, ``(K,)``.
        index: classes.
    """
    others = log_r.expand(len(index), -1).scatter(1, index, -math.inf)
    prior = log_r[index].logsumexp(1) - others.logsumexp(1)
    in_favour = (_gather(scores, index) + log_r[index][:, None]).logsumexp(-1)
    ratio = in_favour - (scores + others[:, None]).logsumexp(-1) - prior[:, None]
    return ratio.masked_fill(others.isneginf().all(1, keepdim=True), 0.0)  # there is no other


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
        _check_probabilities(flat, sum_to_one=True)
        return flat.clamp_min(math.exp(_LOG_FLOOR)).log()

    def encode(self, raw: Tensor) -> Tensor:
        return self._log_probabilities(raw).exp()

    def critic_input(self, raw: Tensor) -> Tensor:
        return self._log_probabilities(raw).clamp_min(_LOG_FLOOR)

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

    def _log_q(self, parameters: Tensor) -> Tensor:
        return self.evidence(parameters) + self.log_marginal

    def evidence(self, parameters: Tensor) -> Tensor:
        centred, normaliser = self._normalised(parameters)
        return centred - normaliser[..., None]

    def evidence_for(self, parameters: Tensor, index: Tensor) -> Tensor:
        centred, normaliser = self._normalised(parameters)
        if index.shape[1] == 1:
            return _gather(centred, index)[..., 0] - normaliser
        log_share = F.log_softmax(self.log_marginal[index], -1)  # of r within the set
        together = (_gather(centred, index) + log_share[:, None]).logsumexp(-1)
        return together - normaliser

    def log_odds_ratio(self, parameters: Tensor, index: Tensor) -> Tensor:
        return categorical_log_odds_ratio(parameters, self.log_marginal, index)

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
            _check_range(labels, 1, "probabilities")
        else:
            _check_range(labels, self.size - 1, f"indices of {self.size} classes")


def _log_odds(log_p: Tensor) -> Tensor:
    """``log p - log (1 - p)``."""
    tiny = torch.finfo(log_p.dtype).tiny
    return log_p - (-torch.expm1(log_p.clamp_max(-tiny))).log()


def _bernoulli_nll(logits: Tensor, y: Tensor) -> Tensor:
    y = y.expand_as(logits)
    return F.binary_cross_entropy_with_logits(logits, y, reduction="none").sum(-1)


class BernoulliOutput(Output):
    """``size`` independent labels (or one), given as logits or as probabilities.

    A head returns logits relative to the marginal's.
    """

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
        _check_probabilities(flat, sum_to_one=False)
        return torch.logit(flat, eps=1e-6)

    def encode(self, raw: Tensor) -> Tensor:
        return torch.sigmoid(self._logits(raw))

    def critic_input(self, raw: Tensor) -> Tensor:
        return self._logits(raw).clamp(_LOG_FLOOR, -_LOG_FLOOR)

    def fit_marginal(self, raw: Tensor) -> None:
        y = self.encode(raw).double()
        self.marginal_logits.copy_(torch.logit((y.sum(0) + 0.25) / (len(y) + 0.5)))

    def negative_log_likelihood(self, parameters: Tensor, y: Tensor) -> Tensor:
        return _bernoulli_nll(parameters + self.marginal_logits, y)

    def marginal_negative_log_likelihood(self, y: Tensor) -> Tensor:
        return _bernoulli_nll(self.marginal_logits.expand_as(y), y)

    def kl(self, parameters: Tensor) -> Tensor:
        return bernoulli_kl(parameters + self.marginal_logits, self.marginal_logits)

    def evidence(self, parameters: Tensor) -> Tensor:
        q_logits = parameters + self.marginal_logits
        return F.logsigmoid(q_logits) - F.logsigmoid(self.marginal_logits)

    def evidence_for(self, parameters: Tensor, index: Tensor) -> Tensor:
        return _gather(self.evidence(parameters), index).sum(-1)

    def log_odds_ratio(self, parameters: Tensor, index: Tensor) -> Tensor:
        log_q = _gather(F.logsigmoid(parameters + self.marginal_logits), index).sum(-1)
        log_r = F.logsigmoid(self.marginal_logits)[index].sum(-1)
        return _log_odds(log_q) - _log_odds(log_r)[:, None]

    def log_probability(self, raw: Tensor, index: Tensor) -> Tensor:
        return F.logsigmoid(self._logits(raw).gather(1, index)).sum(-1)

    def logit(self, raw: Tensor, index: Tensor) -> Tensor:
        """``log p - log (1 - p)``."""
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
        _check_range(labels, 1, "0 or 1")


class GaussianOutput(Output):
    """A continuous vector, whitened with the fitting data's mean and covariance.

    In whitened coordinates ``r(y)`` is N(0, I) and ``q(y | x')`` a diagonal Gaussian. Directions
    that hardly vary (dead units, or more of them than examples) can tell nothing and are left
    out: there y is 0 and q is r. It has no classes of its own: evidence for a class needs a
    downstream function.
    """

    mean: Tensor
    whiten: Tensor
    colour: Tensor

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__(shape)
        if self.size > _MAX_WHITENED:
            raise ValueError(
                f"the global representation has {self.size} numbers per example (shape "
                f"{self.shape}); at most {_MAX_WHITENED} can be whitened. Choose a pooled layer"
            )
        self.head_size = 2 * self.size
        self.register_buffer("mean", torch.zeros(self.size))
        self.register_buffer("whiten", torch.eye(self.size))
        self.register_buffer("colour", torch.eye(self.size))

    def encode(self, raw: Tensor) -> Tensor:
        return (raw.reshape(len(raw), -1).to(self.mean.dtype) - self.mean) @ self.whiten

    def decode(self, y: Tensor) -> Tensor:
        """Whitened ``(..., size)`` back to the representation's own coordinates."""
        return y @ self.colour + self.mean

    def critic_input(self, raw: Tensor) -> Tensor:
        return self.encode(raw)

    def fit_marginal(self, raw: Tensor) -> None:
        rows = raw.reshape(len(raw), -1).double()
        mean = rows.mean(0)
        covariance = (rows - mean).T @ (rows - mean) / len(rows)
        variance, axes = torch.linalg.eigh(covariance)
        varies = variance > 1e-4 * variance.mean().clamp_min(1e-12)
        scale = torch.where(varies, variance, 0.0).sqrt()
        inverse = torch.where(varies, 1 / scale, 0.0)
        # Near the representation's own coordinates, unless directions are to be left out.
        back = axes.T if bool(varies.all()) else torch.eye(self.size, dtype=axes.dtype)
        self.mean.copy_(mean)
        self.whiten.copy_((axes * inverse) @ back)
        self.colour.copy_(back.T @ (axes * scale).T)

    @property
    def _varies(self) -> Tensor:
        """Which whitened coordinates are used, ``(size,)``."""
        return self.whiten.any(0)

    def _split(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_var = (part * self._varies for part in parameters.chunk(2, -1))
        return mean, 8 * torch.tanh(log_var / 8)  # a variance within exp(+-8): finite always

    def expectation(self, parameters: Tensor) -> Tensor:
        """``E_q[y]`` in the representation's own coordinates."""
        return self.decode(self._split(parameters)[0])

    def negative_log_likelihood(self, parameters: Tensor, y: Tensor) -> Tensor:
        mean, log_var = self._split(parameters)
        terms = (y - mean).square() * torch.exp(-log_var) + log_var + math.log(2 * math.pi)
        return 0.5 * terms.sum(-1)

    def marginal_negative_log_likelihood(self, y: Tensor) -> Tensor:
        return 0.5 * (y.square() + math.log(2 * math.pi)).sum(-1)

    def kl(self, parameters: Tensor) -> Tensor:
        return gaussian_kl(*self._split(parameters))

    def evidence(self, parameters: Tensor) -> Tensor:
        raise ValueError(
            f"y is a continuous representation of shape {self.shape}, which has no classes; pass "
            "downstream= (a callable from representations to logits) for evidence of a class, or "
            "target=None for the information about the representation itself"
        )

    def evidence_for(self, parameters: Tensor, index: Tensor) -> Tensor:
        return self.evidence(parameters)

    def log_odds_ratio(self, parameters: Tensor, index: Tensor) -> Tensor:
        return self.evidence(parameters)

    def distortion(self, first: Tensor, second: Tensor) -> Tensor:
        """Half the squared whitened distance per dimension: 1/2 for an unrelated constant."""
        return self._per_dimension(self.encode(first) - self.encode(second))

    def uninformed(self, raw: Tensor) -> Tensor:
        return self._per_dimension(self.encode(raw)).mean()

    def _per_dimension(self, y: Tensor) -> Tensor:
        return 0.5 * y.square().sum(-1) / self._varies.sum().clamp_min(1)

    def label_loss(self, raw: Tensor, labels: Tensor) -> Tensor:
        """Labels are values of the representation, ``(N, *shape)``."""
        return self.distortion(labels, raw)


def resolve_kind(
    kind: OutputKind | None, shape: Sequence[int], is_model_output: bool
) -> OutputKind:
    """The kind that was asked for, or the usual one.

    Args:
        kind: ``None`` chooses Gaussian for a global layer, and for the model's own output
            Bernoulli if it is a single number, categorical otherwise.
        shape: shape of one example's raw output.
        is_model_output: whether y is what the model returns.

    Raises:
        ValueError: if a single number is to be categorical.
    """
    single = math.prod(shape) == 1
    if kind is None:
        return "gaussian" if not is_model_output else "bernoulli" if single else "categorical"
    if kind == "categorical" and single:
        raise ValueError(
            f"'categorical' needs more than one class; got shape {tuple(shape)} for each example. "
            "Use 'bernoulli' for a single logit"
        )
    return kind


def make_output(kind: OutputKind, shape: Sequence[int]) -> Output:
    """Output of a kind, for raw outputs of a shape."""
    if kind == "gaussian":
        return GaussianOutput(shape)
    if kind == "bernoulli":
        return BernoulliOutput(shape)
    probabilities = kind == "probabilities"
    if math.prod(shape) == 1:
        return BernoulliOutput(shape, probabilities)
    return CategoricalOutput(shape, probabilities)


def make_prediction(kind: PredictionKind | None, shape: Sequence[int]) -> Output:
    """What the second pass is held to, where that is not y: raw predictions of a shape."""
    return make_output(resolve_kind(kind, shape, is_model_output=True), shape)


def _check_probabilities(flat: Tensor, sum_to_one: bool) -> None:
    low, high = float(flat.min()), float(flat.max())
    if low < -1e-4 or high > 1 + 1e-4:
        raise ValueError(
            f"'probabilities' expects values in [0, 1]; got {low:.4g} to {high:.4g}. For logits "
            "use 'categorical' or 'bernoulli'"
        )
    if sum_to_one:
        off = float((flat.sum(-1) - 1).abs().max())
        if off > 1e-2:
            raise ValueError(
                "'probabilities' of several classes expects rows that sum to 1; a row is off by "
                f"{off:.4g}. For independent labels return logits, with 'bernoulli'"
            )


def _check_range(labels: Tensor, most: int, kind: str) -> None:
    low, high = labels.min().item(), labels.max().item()
    if not (low >= 0 and high <= most):
        raise ValueError(
            f"labels go from {low:g} to {high:g}; expected {kind}, from 0 to {most}. Leave out "
            "examples without a label, or use task='prediction'"
        )
