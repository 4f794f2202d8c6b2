"""From a head's numbers to information per position: for a class, for all, or in expectation."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from captum._utils.common import _select_targets
from torch import Tensor

from captum_mi.model.arguments import has_rows
from captum_mi.model.passes import Pass
from captum_mi.networks import Networks
from captum_mi.outputs import CategoricalOutput, GaussianOutput, Output

__all__ = ["Readout", "target_index"]


def target_index(target: Any, n: int, shape: tuple[int, ...]) -> Tensor | None:
    """Flat class indices ``(N, S)`` that a Captum target selects, ``None`` for ``None``.

    Captum's own selection is applied to a table of indices of the output's shape, so that every
    form of target means, and a bad one raises, what it does in Captum. On the CPU, where a bad
    index is an exception. One number per example, ``(N,)``, is taken for ``(N, 1)``.
    """
    if target is None:
        return None
    if isinstance(target, Tensor):
        target = target.cpu()
    shape = shape or (1,)
    table = torch.arange(math.prod(shape), device="cpu").view(1, *shape).expand(n, *shape)
    return _select_targets(table, target).reshape(n, -1)


@dataclass(frozen=True)
class Readout:
    """Reads ``q(y | x')`` at each position.

    Args:
        output: what y is.
        downstream: function from representations ``(M, D)`` to logits ``(M, classes)``.
        log_marginal: ``log r`` of the downstream function's classes ``(classes,)``: its mean
            prediction over the fitting data; ``None`` for a uniform one.
        dtype: of the representations that the downstream function takes: the model's.
    """

    output: Output
    downstream: Callable[..., Tensor] | None
    log_marginal: Tensor | None
    dtype: torch.dtype

    @classmethod
    def of(
        cls, networks: Networks, downstream: Callable[..., Tensor] | None, dtype: torch.dtype
    ) -> Readout:
        """How a fit's heads are read."""
        uniform = networks.design.marginal == "uniform"
        log_marginal = None if uniform else networks.class_log_marginal
        return cls(networks.output, downstream, log_marginal, dtype)

    def log_probability(self, one: Pass, index: Tensor) -> Tensor:
        """``log p`` of the classes ``(N, S)`` in a pass, together: ``(N,)``.

        The classes are those that evidence is read for: y's own, or the downstream function's.
        """
        output, raw = self._classes_of(one)
        return output.log_probability(raw, index)

    def logit(self, one: Pass, index: Tensor) -> Tensor:
        """The logit of the same, ``(N,)``, in nats."""
        output, raw = self._classes_of(one)
        return output.logit(raw, index)

    def _classes_of(self, one: Pass) -> tuple[Output, Tensor]:
        """Raw predictions of classes in a pass, and what they are."""
        if self.downstream is None:
            return self.output, one.y
        logits = one.prediction
        return CategoricalOutput(logits.shape[1:]).to(logits.device), logits

    def kl(self, parameters: Tensor) -> Tensor:
        """Expectation over q of the evidence about y itself: ``(N, P)``, never negative."""
        return self.output.kl(parameters)

    def evidence(self, parameters: Tensor, args: tuple[Any, ...]) -> Tensor:
        """Evidence for every class: ``(N, P, classes)``."""
        output, parameters = self._classes(parameters, args)
        return output.evidence(parameters)

    def evidence_for(self, parameters: Tensor, index: Tensor, args: tuple[Any, ...]) -> Tensor:
        """Evidence for the classes in ``index (N, S)``, taken together: ``(N, P)``."""
        output, parameters = self._classes(parameters, args)
        return output.evidence_for(parameters, index)

    def log_odds_ratio(self, parameters: Tensor, index: Tensor, args: tuple[Any, ...]) -> Tensor:
        """Log odds ratio of the same classes: ``(N, P)``."""
        output, parameters = self._classes(parameters, args)
        return output.log_odds_ratio(parameters, index)

    def _classes(self, parameters: Tensor, args: tuple[Any, ...]) -> tuple[Output, Tensor]:
        """What evidence is about, and the parameters of q for it at every position."""
        if self.downstream is None:
            return self.output, parameters
        log_q = self._class_log_probabilities(parameters, args)
        output = CategoricalOutput(log_q.shape[2:]).to(log_q)
        output.log_marginal = self._class_marginal(log_q)
        return output, log_q - output.log_marginal

    def _class_log_probabilities(self, parameters: Tensor, args: tuple[Any, ...]) -> Tensor:
        assert isinstance(self.output, GaussianOutput)
        assert self.downstream is not None
        y = self.output.expectation(parameters)
        n, p = y.shape[:2]
        y = y.to(self.dtype).unflatten(2, self.output.shape)
        has = [has_rows(arg, n) for arg in args]
        logits = self.downstream(y.flatten(0, 1), *(
            arg.repeat_interleave(p, 0) if rows else arg for arg, rows in zip(args, has)))
        if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != n * p:
            got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(
                f"downstream returned {got} for {n * p} representations; expected logits "
                f"({n * p}, classes)"
            )
        classes = self.downstream(y[:, 0], *args).shape[1] if any(has) else logits.shape[1]
        if logits.shape[1] != classes:
            raise ValueError(
                f"downstream returned {classes} classes, and {logits.shape[1]} with the rows of "
                f"its tensor arguments repeated for {p} positions: a tensor of {n} rows is taken "
                f"to have one for each of {n} examples. Pass what all examples share in something "
                "else than a tensor, such as a list"
            )
        return F.log_softmax(logits.to(parameters.dtype), -1).unflatten(0, (n, p))

    def _class_marginal(self, log_q: Tensor) -> Tensor:
        n_classes = log_q.shape[-1]
        if self.log_marginal is None:
            return log_q.new_full((n_classes,), 1 / n_classes).log()
        if n_classes != len(self.log_marginal):
            raise ValueError(
                f"downstream returned {n_classes} classes; the fit's marginal has "
                f"{len(self.log_marginal)}. Use marginal='uniform' where the classes change, as "
                "from episode to episode"
            )
        return self.log_marginal
