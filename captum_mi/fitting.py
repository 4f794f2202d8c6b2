"""Fitting: survey the data, train the networks with the full objective, fill the bank."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm.auto import tqdm

from captum_mi import ranks
from captum_mi.batches import Batch, all_finite, check_inputs, device_of, dtype_of, example_bits
from captum_mi.bottleneck import inject_noise
from captum_mi.bounds import info_nce
from captum_mi.gradients import gradients_of, no_gradient
from captum_mi.graphs import Recorder
from captum_mi.grid import locals_of
from captum_mi.history import History
from captum_mi.moments import StreamingMoments
from captum_mi.networks import LOCALS, Networks
from captum_mi.outputs import BernoulliOutput, CategoricalOutput, Output, make_prediction
from captum_mi.passes import Pass, Passes
from captum_mi.remember import FirstPasses
from captum_mi.sites import Site
from captum_mi.warn import warn

__all__ = ["Settings", "Survey", "Walk", "fill_bank", "survey", "train"]

Walk = Callable[[], Iterator[Batch]]

_HELD_OUT_SHARE = 8  # one example in eight is held out from the heads
_KAPPA_SHARE = 1 / 4  # of the distortion of knowing nothing
_ASCENT_RATE = 0.03
_DESCENT = 5.0  # beta2 may shrink this many times faster than it grows
_EMA = 0.9
_TERMS = (
    "distortion", "information", "capacity", "alpha", "info_nce", "head", "marginal", "beta2",
)


@dataclass(frozen=True)
class Settings:
    """How the networks are trained; see :meth:`captum_mi.InfoBottleneckAttribution.fit`."""

    steps: int = 700
    lr: float = 1e-3
    weight_decay: float = 1e-2
    task: Literal["prediction", "labels"] = "prediction"
    beta1: float = 1.0
    beta2: float | None = None
    kappa: float | None = None
    locals_per_example: int = 8
    base_lr: float = 1e-4
    progress: bool = True

    def __post_init__(self) -> None:
        for name in ("steps", "locals_per_example"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}")
        for name in ("lr", "base_lr"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be a number > 0; got {getattr(self, name)}")
        if self.task not in ("prediction", "labels"):
            raise ValueError(f"task must be 'prediction' or 'labels'; got {self.task!r}")
        if self.beta2 is not None and self.kappa is not None:
            raise ValueError("beta2 and kappa exclude each other: kappa holds beta2; pass one")
        for name in ("beta1", "beta2"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"{name} must be a number >= 0; got {value}")
        if self.kappa is not None and not 0 < self.kappa < math.inf:
            raise ValueError(f"kappa must be a number of nats > 0; got {self.kappa}")


@dataclass(frozen=True)
class Survey:
    """What the first walk over the data found.

    Attributes:
        examples: number of examples, over all processes.
        first: how many of them the processes before this one have.
        holds_out: whether enough examples are there to hold some out from the heads.
        task_output: what the model's prediction is, with its marginal.
        uninformed: distortion, in nats, of predicting the marginal for every example.
    """

    examples: int
    first: int
    holds_out: bool
    task_output: Output
    uninformed: float


def _bar(iterable: Any, settings: Settings, **options: Any) -> Any:
    shown = settings.progress and ranks.is_first()
    return tqdm(iterable, disable=not shown, dynamic_ncols=True, **options)


def _held_out(batch: Batch) -> Tensor:
    return example_bits(*batch.inputs) % _HELD_OUT_SHARE == 0


def _told(batch: Batch, settings: Settings) -> list[Tensor]:
    """The labels, if the second pass is held to them."""
    if settings.task != "labels":
        return []
    if not isinstance(batch.labels, Tensor):
        got = "inputs alone" if batch.labels is None else (
            f"labels that are a {type(batch.labels).__name__} and no tensor")
        raise ValueError(
            f"task='labels' needs labels; the loader yielded {got}. Yield (inputs, labels), "
            "or use task='prediction'"
        )
    return [batch.labels]


def _warn_if_probabilities(output: Output, raw: Tensor, advice: str) -> None:
    """Probabilities that are taken for logits: what is made of them is nearly uniform."""
    if not isinstance(output, (CategoricalOutput, BernoulliOutput)) or output.probabilities:
        return
    if float(raw.min()) < 0 or float(raw.max()) > 1 + 1e-3:
        return
    if isinstance(output, BernoulliOutput):
        like = "lie between 0 and 1, as if they came from a sigmoid"
    elif bool(((raw.flatten(1).float().sum(1) - 1).abs() < 1e-3).all()):
        like = "are positive and sum to 1, as if they came from a softmax"
    else:
        like = "lie between 0 and 1, as if they were independent labels, from a sigmoid"
        advice = "For independent labels return their logits, and pass output='bernoulli'"
    warn(f"the model's predictions {like}; they are taken for logits. {advice}")


@torch.no_grad()
def survey(firsts: FirstPasses, networks: Networks, walk: Walk, settings: Settings) -> Survey:
    """First walk: moments of features, marginals of y and of the predictions.

    Raises:
        ValueError: for NaN or Inf in inputs, features or outputs, or labels out of range.
    """
    streams = {site: StreamingMoments() for site in networks.all_sites}
    ys: list[Tensor] = []
    predictions: list[Tensor] = []
    labels: list[Tensor] = []
    held_out = 0
    model, dtype = firsts.passes.model, networks.global_moments.mean.dtype
    bar = _bar(walk(), settings, desc="survey", unit="batch")
    for batch in bar:
        check_inputs(batch.inputs, dtype_of(model))
        first = firsts.surveyed(batch)
        kept = f"{firsts.bytes / 2**20:.0f} MiB kept" if firsts.bytes else ""
        bar.set_postfix_str(kept, refresh=False)
        for site, stream in streams.items():
            stream.update(_finite(site.of(first.layers), f"layer {site.name!r}"))
        ys.append(_finite(first.y, "the global representation").to(dtype).cpu())
        same = first.prediction is first.y
        predictions.append(ys[-1] if same else first.prediction.to(dtype).cpu())
        labels += _told(batch, settings)
        held_out += int(_held_out(batch).sum())

    if networks.design.noise == "matched":
        for site, stream in streams.items():
            networks.moments_of(site).set(*stream.result())
    device = device_of(model)
    own = len(torch.cat(ys))
    y = _of_all(ys, device)
    if networks.design.output is None and networks.design.prediction is None:
        _warn_if_probabilities(networks.output, y, (
            "Pass output='probabilities' if they are probabilities, or output='categorical' if "
            "they are logits"))
    held_out = int(ranks.total(torch.tensor(held_out, device=device)))
    networks.output.cpu().fit_marginal(y)
    coordinates = networks.output.critic_input(y)
    networks.global_moments.set(coordinates.mean(0), coordinates.std(0, correction=0))
    task_output = networks.output
    if not same:
        kinds = {p.shape[1:] for p in predictions}
        if len(kinds) > 1:
            raise ValueError(
                "the model's predictions change shape from batch to batch: "
                f"{sorted(tuple(k) for k in kinds)}; expected one number of classes"
            )
        shape = predictions[0].shape[1:]
        task_output = make_prediction(networks.design.prediction, shape).to(dtype)
        task_output.fit_marginal(_of_all(predictions, device))
        if networks.design.prediction is None:
            _warn_if_probabilities(task_output, _of_all(predictions, device), (
                "Pass prediction='probabilities' if they are probabilities, or "
                "prediction='categorical' if they are logits"
                if firsts.passes.downstream is None else
                "If they are probabilities, let downstream return their logarithm"))
    for told in labels:
        task_output.check_labels(told)
    uninformed = float(task_output.uninformed(_of_all(predictions, device)))
    networks.to(device)
    return Survey(
        examples=len(y),
        first=ranks.first_row(own, device),
        holds_out=0 < held_out < len(y) // 2,
        task_output=task_output.to(device),
        uninformed=uninformed,
    )


def _of_all(parts: list[Tensor], device: torch.device) -> Tensor:
    """Rows that batches left on the CPU, of all processes."""
    rows = torch.cat(parts)
    return ranks.gather_rows(rows.to(device)).cpu() if ranks.world() > 1 else rows


def _finite(tensor: Tensor, name: str) -> Tensor:
    if not all_finite(tensor):
        raise ValueError(
            f"{name} holds NaN or Inf; the model must be finite on the fitting data (a model "
            "that overflows in half precision may need amp=False)"
        )
    return tensor


class _Beta2:
    """Multiplier of the information terms: fixed, or moved so that the distortion stays at kappa.

    Dual ascent on the logarithm: a distortion below kappa leaves room for more noise, so beta2
    grows; above, it shrinks, and faster the further above: drowned features give hardly any
    gradient to come back by. It starts where giving up all information would be worth a
    distortion of kappa. With an alpha set by hand there is nothing to hold.
    """

    def __init__(self, settings: Settings, uninformed: float | None) -> None:
        self.kappa = settings.kappa
        if settings.beta2 is None and self.kappa is None and uninformed is not None:
            self.kappa = max(_KAPPA_SHARE * uninformed, 1e-6)
        self.value = settings.beta2
        self.average = 0.0
        self.seen = 0.0  # weight of the distortions in the average

    def started(self, value: Tensor, information: Tensor) -> Tensor:
        """The multiplier; where it is NaN, before the first step, chosen from the information."""
        start = torch.ones_like(value) if self.kappa is None else (
            self.kappa / information.clamp_min(1e-6))
        return torch.where(value.isnan(), start, value)

    def update(self, distortion: float) -> None:
        if self.kappa is None or self.value is None:
            return
        self.seen = _EMA * self.seen + 1 - _EMA
        self.average += (1 - _EMA) / self.seen * (distortion - self.average)
        gap = (self.kappa - self.average) / self.kappa
        self.value *= math.exp(_ASCENT_RATE * min(1.0, max(-_DESCENT, gap)))

    def warn_if_missed(self) -> None:
        if self.kappa is None:
            return
        if abs(self.average - self.kappa) > 0.5 * self.kappa:
            warn(
                f"the distortion ended at {self.average:.3g} nats, kappa is {self.kappa:.3g}: "
                "fit for more steps, or choose a kappa nearer to what the bottleneck reaches"
            )


class _Trainer:
    """One step of the objective; each network follows its own part of it."""

    def __init__(
        self,
        firsts: FirstPasses,
        networks: Networks,
        found: Survey,
        settings: Settings,
        teacher: Passes | None,
        recorder: Recorder | None,
    ) -> None:
        self.firsts, self.networks, self.found = firsts, networks, found
        self.settings, self.teacher, self.recorder = settings, teacher, recorder
        base = list(firsts.passes.model.parameters()) if teacher is not None else []
        self.base = [p for p in base if p.is_floating_point()]
        self.encoder = list(networks.inference.parameters()) + self.base
        self.beta2 = _Beta2(settings, found.uninformed if self.encoder else None)
        self.heads = list(networks.heads.parameters())
        self.critics = list(networks.critics.parameters()) if settings.beta1 else []
        own = list(networks.inference.parameters()) + self.heads + self.critics
        groups: list[dict[str, Any]] = [{"params": own, "lr": settings.lr}]
        if self.base:
            groups.append({"params": self.base, "lr": settings.base_lr})
        self.optimizer = torch.optim.AdamW(
            groups, weight_decay=settings.weight_decay,
            # Gradients of a base have layouts of their own, which the fused form does not take.
            fused=own[0].is_cuda and not self.base,
        )
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer,
            [group["lr"] for group in groups],
            total_steps=settings.steps,
        )

    def step(self, batch: Batch) -> dict[str, float]:
        """Update all networks on one batch and return the terms, in nats."""
        like = self.networks.global_moments.mean
        beta2 = like.new_full((), math.nan if self.beta2.value is None else self.beta2.value)
        inputs, labels = batch.inputs, _told(batch, self.settings)

        def work(beta2: Tensor, *tensors: Tensor) -> tuple[Tensor | None, ...]:
            given, told = tensors[: len(inputs)], tensors[len(inputs) :]
            return self._terms_and_gradients(Batch(given, told[0] if told else None), beta2)

        if self.recorder is None or batch.additional_forward_args:
            terms, *gradients = self._terms_and_gradients(batch, beta2)
        else:
            model = self.firsts.passes.model
            terms, *gradients = self.recorder("step", model, work, beta2, *inputs, *labels)
        assert terms is not None
        values = dict(zip(_TERMS, terms.tolist()))
        self._check(values)
        if self.beta2.value is None:
            self.beta2.value = values["beta2"]
        values["beta2"] = self.beta2.value
        for parameter, gradient in zip(self.encoder + self.heads + self.critics, gradients):
            parameter.grad = gradient
        self.optimizer.step()
        self.schedule.step()
        self.beta2.update(values["distortion"])
        if not self.critics:
            del values["info_nce"]
        return values

    def _terms_and_gradients(self, batch: Batch, beta2: Tensor) -> tuple[Tensor | None, ...]:
        """Terms of a step, in the order of their names, and the gradient of each parameter."""
        networks = self.networks
        with torch.set_grad_enabled(bool(self.base)):
            first = self.firsts.of(batch)
        z = networks.standardise(first.layers)
        logits = networks.alpha_logits(z)
        noise = {site: ranks.randn_rows(z[site]) for site in networks.noised_sites}
        noised = {
            site: inject_noise(z[site], logits[site], noise[site]) for site in networks.sites
        }
        task = self._task_loss(batch, first, networks.injections(logits, noise))
        self._check_gradient(task)
        held_out = _held_out(batch) & self.found.holds_out
        bound, likelihood, held, marginal = self._heads(z, noised, first.y, held_out)
        size = torch.stack([c.mean() for c in networks.capacity(z, logits).values()]).mean()
        nce, nce_loss = self._critics(z, noised, first.y)
        alpha = torch.stack([torch.sigmoid(logits[s]).mean() for s in networks.sites]).mean()
        weight = ranks.weight_of(len(first.y), first.y.device)
        averaged = _averaged(weight, task, bound, size, alpha)
        beta2 = self.beta2.started(beta2, averaged[1] + averaged[2])
        objective = weight * (task + beta2 * (bound + size)) / (1 + beta2)
        if self.base:  # every process has the whole InfoNCE, but the gradient of its own rows
            objective = objective - ranks.world() * self.settings.beta1 * nce
        gradients = self._gradients(objective, likelihood, self.settings.beta1 * nce_loss)
        rest = _averaged(1.0, nce, held, marginal)
        return torch.cat([averaged, rest, beta2[None]]), *gradients

    def _task_loss(
        self, batch: Batch, first: Pass, noised: dict[Site, Callable[[Tensor], Tensor]]
    ) -> Tensor:
        """Distortion of the second pass, whose features are the running ones, noised."""
        args = batch.additional_forward_args
        second = self.firsts.passes.second(batch.inputs, args, noised, first.before)
        output = self.found.task_output
        if self.settings.task == "labels":
            assert batch.labels is not None
            clean = output.label_loss(first.prediction.detach(), batch.labels)
            return (output.label_loss(second.prediction, batch.labels) - clean).mean()
        reference = first
        if self.teacher is not None:
            with torch.no_grad():
                reference = self.teacher.first(batch.inputs, args)
        return output.distortion(reference.prediction.detach(), second.prediction).mean()

    def _heads(
        self, z: dict[Site, Tensor], noised: dict[Site, Tensor], y: Tensor, held_out: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """KL of x', likelihood loss, held-out likelihood of x' and of the marginal."""
        output = self.networks.output
        target = output.encode(y.detach())
        bounds, losses, held = [], [], []
        trained = ~held_out
        count = ranks.total(trained.sum()).clamp_min(1) / ranks.world()
        for i, site in enumerate(self.networks.sites):
            # Likelihood reaches the head alone: _gradients differentiates it for nothing else.
            of_noised = self.networks.head(i, noised[site])
            of_clean = self.networks.head(i, z[site])
            nll = output.negative_log_likelihood(of_noised, target[:, None]).mean(1)
            nll_clean = output.negative_log_likelihood(of_clean, target[:, None]).mean(1)
            bounds.append(output.kl(of_noised).mean())
            losses.append((0.5 * (nll + nll_clean) * trained).sum() / count)
            held.append(_masked_mean(nll, held_out))
        for i, site in enumerate(self.networks.head_sites, len(self.networks.sites)):
            nll = output.negative_log_likelihood(self.networks.head(i, z[site]), target[:, None])
            losses.append((nll.mean(1) * trained).sum() / count)
        marginal = _masked_mean(output.marginal_negative_log_likelihood(target), held_out)
        mean = [torch.stack(values).mean() for values in (bounds, losses, held)]
        return mean[0], mean[1], mean[2], marginal

    def _critics(
        self, z: dict[Site, Tensor], noised: dict[Site, Tensor], y: Tensor
    ) -> tuple[Tensor, Tensor]:
        """InfoNCE of clean locals, and the critics' own loss on clean and noised ones."""
        zero = y.new_zeros((), dtype=self.networks.global_moments.mean.dtype)
        if not self.critics or len(y := ranks.gather_rows(y)) < 2:
            return zero, zero
        global_ = self.networks.global_input(y)
        bounds, losses = [], []
        for i, site in enumerate(self.networks.sites):
            n, p = len(z[site]), math.prod(z[site].shape[2:])
            order = ranks.rand_rows(n, p, z[site].device).argsort(1)
            chosen = order[:, : self.settings.locals_per_example]
            scores = [
                self._scores(i, features, chosen, global_)
                for features in (z[site], noised[site].detach())
            ]
            bounds.append(info_nce(scores[0]))
            losses += [
                -0.5 * (info_nce(s, "local") + info_nce(s, "global")) for s in scores
            ]
        return torch.stack(bounds).mean(), torch.stack(losses).mean()

    def _scores(self, i: int, features: Tensor, chosen: Tensor, global_: Tensor) -> Tensor:
        rows = locals_of(features)
        rows = rows.gather(1, chosen[..., None].expand(-1, -1, rows.shape[2]))
        rows = ranks.gather_rows(rows)
        scores: Tensor = self.networks.critics[i](rows.flatten(0, 1), global_)
        return scores.unflatten(0, rows.shape[:2])

    def _gradients(
        self, objective: Tensor, likelihood: Tensor, critic_loss: Tensor
    ) -> list[Tensor | None]:
        """Of each network's part of the objective, averaged over the processes."""
        result: list[Tensor | None] = []
        for loss, parameters in (
            (objective, self.encoder),
            (likelihood, self.heads),
            (critic_loss, self.critics),
        ):
            if not parameters or not loss.requires_grad:
                result += [None] * len(parameters)
                continue
            found = gradients_of(loss, parameters, retain_graph=True)
            ranks.average_([gradient for gradient in found if gradient is not None])
            result += found
        return result

    def _check_gradient(self, task: Tensor) -> None:
        if self.encoder and not task.requires_grad:
            raise no_gradient("alpha cannot be inferred", "set alpha by hand")

    def _check(self, values: dict[str, float]) -> None:
        for name in ("distortion", "information", "capacity", "info_nce", "alpha"):
            if not math.isfinite(values[name]):
                raise FloatingPointError(
                    f"the fit diverged: {name} became {values[name]}. Lower lr"
                    f" (now {self.settings.lr:g}), or fit with amp=False"
                )


def _masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean where the mask is set, over all processes; NaN where it never is."""
    return ranks.total((values * mask).sum()) / ranks.total(mask.sum())


def _averaged(weight: float, *terms: Tensor) -> Tensor:
    """Terms averaged over the processes, ``(terms,)``."""
    return ranks.total(weight * torch.stack(terms).detach()) / ranks.world()


def _endless(walk: Walk) -> Iterator[Batch]:
    while True:
        yield from walk()


def train(
    firsts: FirstPasses,
    networks: Networks,
    walk: Walk,
    found: Survey,
    settings: Settings,
    teacher: Passes | None = None,
    recorder: Recorder | None = None,
) -> tuple[History, float]:
    """Train the networks.

    Args:
        firsts: first passes of the model; its parameters are trained too if there is a teacher.
        networks: what is trained.
        walk: starts a walk over the data.
        found: the survey.
        settings: how to train.
        teacher: passes of the original model, when a copy is fine-tuned.
        recorder: records steps, where they can be.

    Returns:
        The history, and the last beta2.

    Raises:
        FloatingPointError: if a term of the objective is not finite.
    """
    trainer = _Trainer(firsts, networks, found, settings, teacher, recorder)
    history = History(kappa=trainer.beta2.kappa)
    start = time.perf_counter()
    data = _endless(walk)
    bar = _bar(range(settings.steps), settings, desc="fit", unit="step")
    for step in bar:
        batch = next(data)
        check_inputs(batch.inputs, dtype_of(firsts.passes.model))
        values = trainer.step(batch)
        history.append(**values)
        if step % 10 == 0 or step == settings.steps - 1:
            shown = ("distortion", "information", "capacity", "info_nce", "beta2")
            bar.set_postfix({k: f"{values[k]:.3g}" for k in shown if k in values})
    history.seconds = time.perf_counter() - start
    trainer.optimizer.zero_grad()
    if recorder is not None:
        recorder.clear()
    trainer.beta2.warn_if_missed()
    if trainer.critics and not any(history.info_nce):
        warn(
            "the critics were not trained: batches of one example have no negatives. Fit with "
            "larger batches for estimator='infomax', or pass beta1=0"
        )
    if not found.holds_out:
        warn(
            f"no examples were held out from the heads, of {found.examples} (about one in eight "
            "different ones would be): nothing tells whether the heads know more than the "
            "marginal does, and history.head is NaN. Fit on more data"
        )
    head, marginal = history.recent("head"), history.recent("marginal")
    if head >= marginal:
        warn(
            f"the heads predict held-out examples no better than the marginal does ({head:.3g} "
            f"against {marginal:.3g} nats): the maps will be empty or arbitrary. Fit for more "
            "steps or on more data, or choose a layer that knows more about y"
        )
    return history, history.beta2[-1]


@torch.no_grad()
def fill_bank(
    firsts: FirstPasses, networks: Networks, walk: Walk, found: Survey, settings: Settings
) -> None:
    """Last walk: fill the reference banks with locals drawn evenly over the examples."""
    sizes = [len(networks.bank(i)) for i in range(len(networks.banks))]
    if not sizes:
        return
    kept: list[dict[str, list[Tensor]]] = [{kind: [] for kind in LOCALS} for _ in sizes]
    seen = found.first
    for batch in _bar(walk(), settings, desc="bank", unit="batch"):
        z = networks.standardise(firsts.layers(batch))
        logits = networks.alpha_logits(z)
        n = len(batch.inputs[0])
        for i, site in enumerate(networks.sites):
            rows = _even_rows(z[site], seen, found.examples, sizes[i])
            features = {
                "clean": z[site], "mean": networks.mean_signal(z[site], logits[site]),
                "noised": inject_noise(z[site], logits[site], torch.randn_like(z[site])),
            }
            for kind, one in features.items():
                local = networks.critic(i).embed_local(locals_of(one)[rows])
                kept[i][kind].append(local)
        seen += n
    for i, size in enumerate(sizes):
        for kind, rows_of in kept[i].items():
            setattr(networks.bank(i), kind, ranks.gather_rows(torch.cat(rows_of))[:size])


def _even_rows(z: Tensor, seen: int, examples: int, size: int) -> tuple[Tensor, Tensor]:
    """Which (example, position) pairs of a batch go to a bank of ``size`` locals."""
    n = len(z)
    order = torch.rand(n, math.prod(z.shape[2:]), device=z.device).argsort(1)
    index = torch.arange(seen, seen + n + 1, device=z.device)
    quota = (index * size // max(examples, 1)).diff()
    taken = torch.arange(order.shape[1], device=z.device) < quota[:, None]
    return taken.nonzero()[:, 0], order[taken]
