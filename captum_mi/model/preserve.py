"""Leave the user's model and the global random state as they were found, whatever happens."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from captum_mi.model.modules import modules_of
from captum_mi.model.precision import full_precision

__all__ = ["evaluation_mode", "isolated_randomness", "left_as_found"]

_changed = threading.Condition()
_inside: list[tuple[int, list[nn.Module]]] = []  # threads, and the modules they are inside with


@contextmanager
def left_as_found(
    model: nn.Module, *others: object, gradients: bool, seed: int | None = None
) -> Iterator[None]:
    """Eval mode, full precision and randomness of its own inside; all as it was outside.

    Args:
        model: the model.
        others: what runs beside it; modules are put into eval mode too.
        gradients: whether there are any inside.
        seed: of the randomness.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.set_grad_enabled(gradients))
        stack.enter_context(isolated_randomness(seed))
        for module in (model, *others):
            if isinstance(module, nn.Module):
                stack.enter_context(evaluation_mode(module))
        stack.enter_context(full_precision(model))
        yield


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Model in eval mode, parameters without gradients; every flag and buffer restored after.

    Buffers of ``torch.nn``'s own modules do not change in eval mode. Those of other modules are
    copied, and their attributes noted, so that a counter, a cache or features that the user's code
    leaves there are put back too.

    Of several threads with models that share modules or parameters one is inside at a time, and
    the others wait: each would put back what another had set.
    """
    modules = modules_of(model)
    with _alone_with(modules), _put_back(model, modules):
        yield


@contextmanager
def _alone_with(modules: list[nn.Module]) -> Iterator[None]:
    """Wait until no other thread is inside with one of these, or a parameter; may be nested."""
    entry = threading.get_ident(), modules

    def free() -> bool:
        others = [theirs for thread, theirs in _inside if thread != entry[0]]
        return not others or _parts(modules).isdisjoint(set().union(*map(_parts, others)))

    with _changed:
        _changed.wait_for(free)
        _inside.append(entry)
    try:
        yield
    finally:
        with _changed:
            _inside.remove(entry)
            _changed.notify_all()


def _parts(modules: list[nn.Module]) -> set[int]:
    """Identities of modules and their parameters."""
    return {
        id(part) for module in modules for part in (module, *module._parameters.values())
        if part is not None
    }


@contextmanager
def _put_back(model: nn.Module, modules: list[nn.Module]) -> Iterator[None]:
    training = [module.training for module in modules]
    parameters = [
        parameter for module in modules for parameter in module._parameters.values()
        if parameter is not None
    ]
    requires_grad = [parameter.requires_grad for parameter in parameters]
    own = [module for module in modules if not type(module).__module__.startswith("torch.nn.")]
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in own if module._buffers
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    attributes = [(module, dict(vars(module)), _registered(module)) for module in own]
    try:
        if any(training):  # slow to set: a call of one image would notice
            model.eval()
        _set_requires_grad(parameters, [False] * len(parameters))
        yield
    finally:
        if [module.training for module in modules] != training:
            _set_training(modules, training)
        _set_requires_grad(parameters, requires_grad)
        for module, found, registered in attributes:
            if _registered(module) == registered:  # else it has built itself, which is to stay
                _set_back(vars(module), found)
        with torch.no_grad():
            for module, name, buffer, saved in buffers:
                setattr(module, name, buffer)
                if buffer.layout is torch.strided and not torch.equal(buffer, saved):
                    buffer.copy_(saved)


def _registered(module: nn.Module) -> set[str]:
    """Names of parameters, buffers and modules that it holds."""
    return {*module._parameters.keys(), *module._buffers.keys(), *module._modules.keys()}


def _set_back(now: dict[str, Any], found: dict[str, Any]) -> None:
    """Attributes to those that were found."""
    for name in now.keys() - found.keys():
        del now[name]
    for name, value in found.items():
        if now.get(name) is not value:
            now[name] = value


def _set_training(modules: list[nn.Module], training: list[bool]) -> None:
    for module, flag in zip(modules, training):
        if module.training != flag and type(module).train is not nn.Module.train:
            module.train(flag)  # may have more to put back, such as weights that eval() merged
    for module, flag in zip(modules, training):
        module.training = flag


def _set_requires_grad(parameters: list[nn.Parameter], flags: list[bool]) -> None:
    for parameter, flag in zip(parameters, flags):
        if parameter.requires_grad != flag:
            parameter.requires_grad_(flag)


class _Drawing(threading.local):
    """How many blocks the thread is inside of."""

    depth = 0


class _Found:
    """The random states that the first of the threads inside found, and how many are inside."""

    threads = 0
    put_back: Callable[[], None]


_drawing, _found = _Drawing(), _Found()
_states_lock = threading.Lock()


@contextmanager
def isolated_randomness(seed: int | None = None) -> Iterator[None]:
    """Run with global random states of its own (Python, NumPy, torch on every device).

    These belong to the process: of several threads inside, the last one to leave puts back what
    the first one found, so that none turns back what another draws from. Two that draw draw from
    the same states.

    Args:
        seed: seeds them inside the block; ``None`` starts from their present values.
    """
    outermost = _drawing.depth == 0
    with _states_lock:
        put_back = _random_states()
        if outermost:
            if not _found.threads:
                _found.put_back = put_back
            _found.threads += 1
    _drawing.depth += 1
    try:
        if seed is not None:
            _seed(seed)
        yield
    finally:
        _drawing.depth -= 1
        with _states_lock:
            if outermost:
                _found.threads -= 1
                put_back = _found.put_back
            if not outermost or not _found.threads:
                put_back()


def _random_states() -> Callable[[], None]:
    """What puts the present random states back."""
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    on_cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []

    def put_back() -> None:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
        for i, state in enumerate(on_cuda):
            torch.cuda.set_rng_state(state, i)

    return put_back


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():  # else the seed would wait for CUDA to start, and outlive us
        torch.cuda.manual_seed_all(seed)
