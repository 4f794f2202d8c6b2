"""Fitting: look at the model, survey the data, train the networks, fill the banks.

A copy that is trained too changes under its heads, moments and marginals. These are left behind
with the networks that it was trained with, and all is fitted to what it has become.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from captum_mi import ranks
from captum_mi.fitting.filling import fill_bank
from captum_mi.fitting.first_passes import FirstPasses
from captum_mi.fitting.fit import Fit, networks_for
from captum_mi.fitting.settings import Settings
from captum_mi.fitting.survey import survey
from captum_mi.fitting.training import train
from captum_mi.model.batches import Batch, Data, explained_calls
from captum_mi.model.graphs import Recorder
from captum_mi.model.modules import device_of
from captum_mi.model.precision import chosen_amp
from captum_mi.model.preserve import left_as_found
from captum_mi.model.weights import WeightWatch
from captum_mi.networks import Networks
from captum_mi.probing.design import Design
from captum_mi.probing.map_input import check_map_input
from captum_mi.probing.named import Named
from captum_mi.probing.placing import lattices_of
from captum_mi.probing.probe import probe
from captum_mi.probing.structure import Structure

__all__ = ["fit_networks"]

_MOST_STEPS = 2  # graphs of steps that are kept: of whole batches, and of the last one
_MOST_BYTES = 2**40  # of a batch: a step is recorded whatever its size


def fit_networks(
    model: nn.Module,
    base: nn.Module | None,
    named: Named,
    design: Design,
    alpha: Tensor | None,
    downstream: Callable[..., Tensor] | None,
    data: Data,
    settings: Settings,
    check: Callable[[Structure], None],
) -> Fit:
    """Fit, in eval mode and in full precision, and leave the model as it was.

    Args:
        model: the model, whose parameters stay as they are.
        base: a copy of it that is trained too, if any.
        named: the layers that the user named.
        design: the user's choices.
        alpha: set by hand; ``None`` to infer it.
        downstream: function from representations and additional forward arguments to logits.
        data: what to fit on.
        settings: how to train.
        check: raises where what was found in the model is not what maps need.
    """
    if any(parameter.is_inference() for parameter in model.parameters()):
        raise ValueError(
            "the model was made under torch.inference_mode(), so that nothing that passes it can "
            "have gradients; make it outside, or pass copy.deepcopy(model), made outside"
        )
    trained, amp = model if base is None else base, chosen_amp(model, settings.amp)
    with (
        data.walks(device_of(model)) as walk,
        left_as_found(model, base, downstream, gradients=True, seed=settings.seed),
    ):
        first = next(walk())
        if design.map_input is not None:
            check_map_input(design.map_input, len(first.inputs))
        with explained_calls(first):
            found = probe(trained, first, design, named, downstream)
            structure = _placed(found, model, design, downstream, first)
            check(structure)

        def prepared(structure: Structure, cache_bytes: int) -> tuple[Networks, FirstPasses]:
            sizes = [settings.bank_size] * len(structure.sites) if settings.beta1 else []
            networks = networks_for(trained, design, structure, alpha, sizes)
            passes = structure.passes(trained, design.on_repeat, downstream, amp)
            return networks, FirstPasses(
                passes, networks.noised_sites, cache_bytes, data.n_batches)

        if base is not None:
            networks, firsts = prepared(structure, 0)
            teacher = structure.passes(model, design.on_repeat, downstream, amp)
            surveyed = survey(firsts, networks, walk, settings, structure.signature)
            with _trainable(base):
                train(firsts, networks, walk, surveyed, settings, teacher)
            structure = _placed(structure, trained, design, downstream, first)
        recorder = None
        if _records_steps(trained):
            recorder = Recorder(may_wait=True, most=_MOST_STEPS, most_bytes=_MOST_BYTES)
        remembers = structure.resumes and recorder is None
        networks, firsts = prepared(structure, settings.cache_bytes if remembers else 0)
        surveyed = survey(firsts, networks, walk, settings, structure.signature)
        history = train(firsts, networks, walk, surveyed, settings, recorder=recorder)
        networks.choose_noise()
        fill_bank(firsts, networks, walk, surveyed, settings)
    networks.requires_grad_(False)
    return Fit(structure, networks, history, WeightWatch(trained), base)


@contextmanager
def _trainable(base: nn.Module) -> Iterator[None]:
    """All parameters that can have gradients have them inside."""
    flags = [(parameter, parameter.requires_grad) for parameter in base.parameters()]
    for parameter, _ in flags:
        parameter.requires_grad_(parameter.is_floating_point())
    try:
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def _placed(
    structure: Structure, model: nn.Module, design: Design,
    downstream: Callable[..., Tensor] | None, batch: Batch,
) -> Structure:
    """The structure, with where positions lie in the input that maps belong to, if any."""
    if structure.mapped is None:
        return structure
    passes = structure.passes(model, design.on_repeat, downstream, None)
    sites = structure.sites + structure.head_sites
    found = lattices_of(passes, sites, batch, structure.mapped)
    return dataclasses.replace(structure, lattices=found)


def _records_steps(model: nn.Module) -> bool:
    """Whether steps are recorded: on CUDA, alone."""
    return device_of(model).type == "cuda" and ranks.world() == 1
