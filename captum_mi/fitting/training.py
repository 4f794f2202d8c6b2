"""Training of the networks: each follows its own part of the objective."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from captum_mi import ranks
from captum_mi.bottleneck import inject_noise
from captum_mi.bounds import info_nce
from captum_mi.fitting.first_passes import FirstPasses
from captum_mi.fitting.history import History
from captum_mi.fitting.multiplier import Multiplier
from captum_mi.fitting.settings import Settings
from captum_mi.fitting.survey import Survey, Walk, held_out_of
from captum_mi.grid import locals_of
from captum_mi.model.batches import Batch
from captum_mi.model.gradients import gradients_of, no_gradient
from captum_mi.model.graphs import Recorder
from captum_mi.model.inputs import check_inputs
from captum_mi.model.passes import Pass, Passes
from captum_mi.model.sites import Site
from captum_mi.networks import Locals, Networks
from captum_mi.progress import bar
from captum_mi.warn import warn

__all__ = ["Trainer", "train"]

_TERMS = (
    "distortion", "information", "capacity", "alpha", "info_nce", "head", "marginal", "beta2",
)


class _HeadTerms(NamedTuple):
    """What heads say in a step, means over layers.

    Attributes:
        information: in x', by the KL divergence.
        loss: negative log likelihood that they are trained by, of clean and noised features,
            and what their prior weighs next to all examples.
        held_out: of noised features, of examples that are held out.
        marginal: of the marginal, of the same examples.
    """

    information: Tensor
    loss: Tensor
    held_out: Tensor
    marginal: Tensor


class Trainer:
    """One step of the objective; each network follows its own part of it."""

    def __init__(
        self,
        firsts: FirstPasses,
        networks: Networks,
        surveyed: Survey,
        settings: Settings,
        teacher: Passes | None,
        recorder: Recorder | None,
    ) -> None:
        self.firsts, self.networks, self.surveyed = firsts, networks, surveyed
        self.settings, self.teacher, self.recorder = settings, teacher, recorder
        base = list(firsts.passes.model.parameters()) if teacher is not None else []
        self.base = [p for p in base if p.is_floating_point()]
        self.encoder = list(networks.inference.parameters()) + self.base
        self.beta2 = Multiplier(
            settings.beta2, settings.kappa, surveyed.uninformed if self.encoder else None,
            surveyed.varied)
        self.heads = [*networks.clean_heads.parameters(), *networks.noised_heads.parameters()]
        critics = [*networks.clean_critics.parameters(), *networks.noised_critics.parameters()]
        self.critics = critics if settings.beta1 else []
        own = list(networks.inference.parameters()) + self.heads + self.critics
        groups: list[dict[str, Any]] = [{"params": own, "lr": settings.lr}]
        if self.base:
            groups.append({"params": self.base, "lr": settings.base_lr})
        self._has_gradient = False
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
        like = self.networks.global_moments.mean  # NaN: not chosen yet, as a recorded step sees it
        beta2 = like.new_full((), math.nan if self.beta2.value is None else self.beta2.value)
        inputs, labels = batch.inputs, self.settings.labels_of(batch)

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

    def progress(self, values: dict[str, float]) -> str:
        """How far a step's distortion is from its target."""
        kappa = self.beta2.kappa
        target = "" if kappa is None else f" of kappa {kappa:.3g}"
        return f"distortion {values['distortion']:.3g}{target} nats"

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
        self._check_gradient(task, logits)
        held_out = held_out_of(batch) & self.surveyed.holds_out
        heads = self._heads(z, noised, logits, first.y, held_out)
        size = torch.stack([c.mean() for c in networks.capacity(z, logits).values()]).mean()
        nce, nce_loss = self._critics(z, noised, first.y)
        noise_share = torch.stack([torch.sigmoid(logits[s]).mean() for s in networks.sites]).mean()
        weight = ranks.weight_of(len(first.y), first.y.device)
        distortion, information, capacity, alpha = _averaged(
            weight, task, heads.information, size, noise_share)
        beta2 = self.beta2.started(beta2, information + capacity)
        objective = weight * (task + beta2 * (heads.information + size)) / (1 + beta2)
        if self.base:  # every process has the whole InfoNCE, but the gradient of its own rows
            objective = objective - ranks.world() * self.settings.beta1 * nce
        gradients = self._gradients(objective, heads.loss, self.settings.beta1 * nce_loss)
        info_nce, head, marginal = _averaged(1.0, nce, heads.held_out, heads.marginal)
        terms = {
            "distortion": distortion, "information": information, "capacity": capacity,
            "alpha": alpha, "info_nce": info_nce, "head": head, "marginal": marginal,
            "beta2": beta2,
        }
        return torch.stack([terms[name] for name in _TERMS]), *gradients

    def _task_loss(
        self, batch: Batch, first: Pass, noised: dict[Site, Callable[[Tensor], Tensor]]
    ) -> Tensor:
        """Distortion of the second pass, whose features are the running ones, noised."""
        args = batch.additional_forward_args
        second = self.firsts.passes.second(batch.inputs, args, noised, first.before)
        output = self.surveyed.task_output
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
        self, z: dict[Site, Tensor], noised: dict[Site, Tensor], logits: dict[Site, Tensor],
        y: Tensor, held_out: Tensor,
    ) -> _HeadTerms:
        networks, output = self.networks, self.networks.output
        target = output.encode(y.detach())
        bounds, losses, held = [], [], []
        trained = ~held_out
        count = ranks.total(trained.sum()).clamp_min(1) / ranks.world()
        for site in networks.sites:
            # Likelihood reaches the head alone: _gradients differentiates it for nothing else.
            of_noised = networks.noised_head(site, noised[site], logits[site].detach())
            of_clean = networks.clean_head(site, z[site])
            nll = output.negative_log_likelihood(of_noised, target[:, None]).mean(1)
            nll_clean = output.negative_log_likelihood(of_clean, target[:, None]).mean(1)
            bounds.append(output.kl(of_noised).mean())
            losses.append(((nll + nll_clean) * trained).sum() / count)
            held.append(_masked_mean(nll, held_out))
        for site in networks.head_sites:
            of_clean = networks.clean_head(site, z[site])
            nll = output.negative_log_likelihood(of_clean, target[:, None])
            losses.append((nll.mean(1) * trained).sum() / count)
        marginal = _masked_mean(output.marginal_negative_log_likelihood(target), held_out)
        bound, loss, of_held_out = (
            torch.stack(values).mean() for values in (bounds, losses, held))
        loss = loss + networks.negative_log_prior() / (len(losses) * self.surveyed.examples)
        return _HeadTerms(bound, loss, of_held_out, marginal)

    def _critics(
        self, z: dict[Site, Tensor], noised: dict[Site, Tensor], y: Tensor
    ) -> tuple[Tensor, Tensor]:
        """InfoNCE of clean locals, and the critics' own loss on clean and noised ones."""
        zero = y.new_zeros((), dtype=self.networks.global_moments.mean.dtype)
        if not self.critics or len(y := ranks.gather_rows(y)) < 2:
            return zero, zero
        global_ = self.networks.global_input(y)
        bounds, losses = [], []
        for site in self.networks.sites:
            n, p = len(z[site]), math.prod(z[site].shape[2:])
            order = ranks.rand_rows(n, p, z[site].device).argsort(1)
            chosen = order[:, : self.settings.locals_per_example]
            scores = [
                self._scores(site, z[site], "clean", chosen, global_),
                self._scores(site, noised[site].detach(), "noised", chosen, global_),
            ]
            bounds.append(info_nce(scores[0]))
            losses += [
                -0.5 * (info_nce(s, "local") + info_nce(s, "global")) for s in scores
            ]
        return torch.stack(bounds).mean(), torch.stack(losses).mean()

    def _scores(
        self, site: Site, features: Tensor, kind: Locals, chosen: Tensor, global_: Tensor
    ) -> Tensor:
        rows = locals_of(features)
        rows = rows.gather(1, chosen[..., None].expand(-1, -1, rows.shape[2]))
        rows = ranks.gather_rows(rows)
        scores: Tensor = self.networks.critic(site, kind)(rows.flatten(0, 1), global_)
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

    def _check_gradient(self, task: Tensor, logits: dict[Site, Tensor]) -> None:
        """Whether the task depends on alpha: in the first step also whether a gradient comes, as
        a module without one may only say so when it is asked."""
        if not self.encoder or self._has_gradient:
            return
        asked = [logit for logit in logits.values() if logit.requires_grad]
        if asked and task.requires_grad:
            found = gradients_of(task, asked, retain_graph=True)
            self._has_gradient = any(one is not None for one in found)
        elif not asked:  # alpha was set by hand: a base alone is trained
            self._has_gradient = task.requires_grad
        if self._has_gradient:
            return
        if asked:
            raise no_gradient("alpha cannot be inferred", "set alpha by hand")
        raise no_gradient("the copy cannot be trained", "leave out finetune_base")

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


def _averaged(weight: float, *terms: Tensor) -> tuple[Tensor, ...]:
    """Terms averaged over the processes."""
    return (ranks.total(weight * torch.stack(terms).detach()) / ranks.world()).unbind()


def _endless(walk: Walk) -> Iterator[Batch]:
    while True:
        yield from walk()


def train(
    firsts: FirstPasses,
    networks: Networks,
    walk: Walk,
    surveyed: Survey,
    settings: Settings,
    teacher: Passes | None = None,
    recorder: Recorder | None = None,
) -> History:
    """Train the networks.

    Args:
        firsts: first passes of the model; its parameters are trained too if there is a teacher.
        networks: what is trained.
        walk: starts a walk over the data.
        surveyed: the survey.
        settings: how to train.
        teacher: passes of the original model, when a copy is fine-tuned.
        recorder: records steps, where they can be.

    Returns:
        The course of the terms.

    Raises:
        FloatingPointError: if a term of the objective is not finite.
    """
    trainer = Trainer(firsts, networks, surveyed, settings, teacher, recorder)
    history = History(kappa=trainer.beta2.kappa)
    start = time.perf_counter()
    data = _endless(walk)
    shown = bar(range(settings.steps), "fit 2/3: steps", "step", settings.progress)
    for step in shown:
        batch = next(data)
        check_inputs(batch.inputs, firsts.passes.model)
        values = trainer.step(batch)
        history.append(**values)
        if step % 10 == 0 or step == settings.steps - 1:
            shown.set_postfix_str(trainer.progress(values), refresh=False)
    history.seconds = time.perf_counter() - start
    trainer.optimizer.zero_grad()
    if recorder is not None:
        recorder.clear()
    _warn_of(trainer, history)
    return history


def _warn_of(trainer: Trainer, history: History) -> None:
    """What a fit did not reach."""
    surveyed = trainer.surveyed
    if trainer.critics and not any(history.info_nce):
        warn(
            "the critics were not trained: they cannot tell the pairs of one example, or of equal "
            "ones, from others. Fit with larger batches for estimator='infomax', or pass beta1=0"
        )
    if not surveyed.holds_out:
        warn(
            f"no examples were held out from the heads, of {surveyed.examples} (about one in "
            "eight different ones would be): nothing tells whether the heads know more than the "
            "marginal does, and history.head is NaN. Fit on more data"
        )
    head, marginal = history.recent("head"), history.recent("marginal")
    if head >= marginal:
        warn(
            f"the heads predict held-out examples no better than the marginal does ({head:.3g} "
            f"against {marginal:.3g} nats): the maps will be empty or arbitrary. Fit for more "
            "steps or on more data, or choose a layer that knows more about y"
        )
    trainer.beta2.warn_if_missed(history.recent("alpha"))
