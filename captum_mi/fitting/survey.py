"""The first walk over the fitting data: moments of features, marginals of predictions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from captum_mi import ranks
from captum_mi.fitting.example_keys import example_bits
from captum_mi.fitting.first_passes import FirstPasses
from captum_mi.fitting.settings import Settings
from captum_mi.model.batches import Batch
from captum_mi.model.inputs import Signature, all_finite, check_inputs
from captum_mi.model.modules import device_of
from captum_mi.moments import StreamingMoments
from captum_mi.networks import Networks
from captum_mi.outputs import CategoricalOutput, Output, make_prediction
from captum_mi.outputs.output_warnings import warn_if_probabilities, warn_if_values
from captum_mi.progress import bar

__all__ = ["Survey", "Walk", "held_out_of", "survey"]

#: Starts a walk over the data.
Walk = Callable[[], Iterator[Batch]]

_HELD_OUT_EVERY = 8  # one example in eight is held out from the heads


@dataclass(frozen=True)
class Survey:
    """What the first walk over the data found.

    Attributes:
        examples: number of examples, over all processes.
        first: how many of them the processes before this one have.
        holds_out: whether enough examples are there to hold some out from the heads.
        task_output: what the model's prediction is, with its marginal.
        uninformed: distortion, in nats, of predicting the marginal for every example.
        varied: the same of predicting what another example's prediction is, in the mean.
    """

    examples: int
    first: int
    holds_out: bool
    task_output: Output
    uninformed: float
    varied: float


def held_out_of(batch: Batch) -> Tensor:
    """Which examples are held out from the heads, ``(N,)``: told by their bits."""
    return example_bits(*batch.inputs) % _HELD_OUT_EVERY == 0


@dataclass(frozen=True)
class _Seen:
    """What the passes gave, of all processes, on the CPU; labels of this one."""

    y: Tensor
    predictions: Tensor  # y itself, where that is what is predicted
    labels: list[Tensor]
    own: int
    held_out: int


@torch.no_grad()
def survey(
    firsts: FirstPasses, networks: Networks, walk: Walk, settings: Settings, signature: Signature
) -> Survey:
    """Set the moments of features, and the marginals of y and of the predictions.

    Raises:
        ValueError: for NaN or Inf in inputs, features or outputs, labels out of range, or batches
            of other inputs than the first.
    """
    device, asked = device_of(firsts.passes.model), networks.design
    seen = _seen(firsts, networks, walk, settings, signature)
    if asked.output is None and asked.prediction is None:
        warn_if_probabilities(networks.output, seen.y, (
            "Pass output='probabilities' if they are probabilities, or output='categorical' if "
            "they are logits"))
        warn_if_values(networks.output, seen.y)
    networks.output.cpu().fit_marginal(seen.y)
    coordinates = networks.output.critic_input(seen.y)
    networks.global_moments.set(coordinates.mean(0), coordinates.std(0, correction=0))
    task_output = networks.output
    if seen.predictions is not seen.y:
        task_output = _task_output(firsts, networks, seen.predictions)
    for labels in seen.labels:
        task_output.check_labels(labels)
    uninformed = float(task_output.uninformed(seen.predictions))
    shuffled = torch.randperm(len(seen.y), generator=torch.Generator().manual_seed(0))
    others = seen.predictions[shuffled]
    varied = task_output.distortion(seen.predictions, others).mean()
    networks.to(device)
    return Survey(
        examples=len(seen.y),
        first=ranks.first_row(seen.own, device),
        holds_out=0 < seen.held_out < len(seen.y) // 2,
        task_output=task_output.to(device),
        uninformed=uninformed,
        varied=float(varied),
    )


def _seen(
    firsts: FirstPasses, networks: Networks, walk: Walk, settings: Settings, signature: Signature
) -> _Seen:
    """Walk over the data and set the moments of features."""
    streams = {site: StreamingMoments() for site in networks.all_sites}
    model, dtype = firsts.passes.model, networks.global_moments.mean.dtype
    ys: list[Tensor] = []
    predictions: list[Tensor] = []
    labels: list[Tensor] = []
    held_out = torch.zeros((), dtype=torch.long, device=device_of(model))
    shown = bar(
        walk(), "fit 1/3: moments", "batch", settings.progress, firsts.batches, stays=False)
    for batch in shown:
        _check_alike(batch, signature)
        check_inputs(batch.inputs, model)
        first = firsts.surveyed(batch)
        kept = f"{firsts.bytes / 2**20:.0f} MiB kept" if firsts.bytes else ""
        shown.set_postfix_str(kept, refresh=False)
        for site, stream in streams.items():
            stream.update(_finite(site.of(first.layers), f"layer {site.name!r}"))
        ys.append(_finite(first.y, "the global representation").to(dtype).cpu())
        if first.prediction is not first.y:
            predictions.append(first.prediction.to(dtype).cpu())
        labels += settings.labels_of(batch)
        held_out += held_out_of(batch).sum()
    if networks.design.noise == "matched":
        for site, stream in streams.items():
            networks.moments_of(site).set(*stream.result())
    y = _of_all(ys, held_out.device)
    return _Seen(
        y, _of_all(predictions, held_out.device) if predictions else y, labels,
        sum(map(len, ys)), int(ranks.total(held_out)),
    )


def _check_alike(batch: Batch, signature: Signature) -> None:
    """Raise where a batch has other inputs than the first one had."""
    try:
        signature.check(batch.inputs)
    except (TypeError, ValueError) as error:
        raise type(error)(
            f"the loader's batches differ: {error}. (A loader of one batch of inputs and labels "
            "is [(inputs, labels)])"
        ) from None


def _task_output(firsts: FirstPasses, networks: Networks, predictions: Tensor) -> Output:
    """What the predictions are, where they are not y, with their marginal."""
    asked = networks.design.prediction
    output = make_prediction(asked, predictions.shape[1:]).to(predictions.dtype)
    output.fit_marginal(predictions)
    downstream = firsts.passes.downstream is not None
    if asked is None:
        warn_if_probabilities(output, predictions, (
            "If they are probabilities, let downstream return their logarithm" if downstream else
            "Pass prediction='probabilities' if they are probabilities, or "
            "prediction='categorical' if they are logits"))
    if downstream:
        assert isinstance(output, CategoricalOutput)
        networks.class_log_marginal = output.log_marginal
    return output


def _of_all(parts: list[Tensor], device: torch.device) -> Tensor:
    """Rows that batches left on the CPU, of all processes.

    Raises:
        ValueError: if their shape changes from batch to batch, as a number of classes may.
    """
    shapes = {part.shape[1:] for part in parts}
    if len(shapes) > 1:
        raise ValueError(
            "the model's predictions change shape from batch to batch: "
            f"{sorted(map(tuple, shapes))}; expected one number of classes"
        )
    rows = torch.cat(parts)
    return ranks.gather_rows(rows.to(device)).cpu() if ranks.world() > 1 else rows


def _finite(tensor: Tensor, name: str) -> Tensor:
    if not all_finite(tensor):
        raise ValueError(
            f"{name} holds NaN or Inf; the model must be finite on the fitting data (a model "
            "that overflows in half precision may need amp=False, and a class that is ruled out a "
            "large negative logit instead of -inf)"
        )
    return tensor
