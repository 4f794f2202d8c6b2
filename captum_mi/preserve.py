"""Leave the user's model and the global random state as they were found, whatever happens."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from captum_mi.modules import modules_of

__all__ = ["evaluation_mode", "isolated_randomness"]


_changed = threading.Condition()
_user_of: dict[int, int] = {}  # identity of a module or parameter -> thread that is inside with it


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Model in eval mode, parameters without gradients; every flag and buffer restored after.

    Buffers of ``torch.nn``'s own modules do not change in eval mode. Those of other modules are
    copied, so that a counter or a cache in the user's code is put back too.

    Of several threads with models that share modules or parameters one is inside at a time, and
    the others wait: each would put back what another had set.
    """
    modules = modules_of(model)
    with _alone_with(modules), _put_back(model, modules):
        yield


@contextmanager
def _alone_with(modules: list[nn.Module]) -> Iterator[None]:
    """Wait until no other thread is inside with one of these, or a parameter; may be nested."""
    thread = threading.get_ident()
    parts = {
        id(part) for module in modules for part in (module, *module._parameters.values())
        if part is not None
    }

    def free() -> bool:
        return _user_of.keys().isdisjoint(parts) or all(
            _user_of.get(part, thread) == thread for part in parts)

    with _changed:
        _changed.wait_for(free)
        taken = parts - _user_of.keys()
        _user_of.update(dict.fromkeys(taken, thread))
    try:
        yield
    finally:
        with _changed:
            for part in taken:
                del _user_of[part]
            _changed.notify_all()


@contextmanager
def _put_back(model: nn.Module, modules: list[nn.Module]) -> Iterator[None]:
    training = [(module, module.training) for module in modules]
    requires_grad = [
        (parameter, parameter.requires_grad)
        for module, _ in training
        for parameter in module._parameters.values()
        if parameter is not None
    ]
    buffers = [
        (module, name, buffer, buffer.clone())
        for module, _ in training
        if not type(module).__module__.startswith("torch.nn.")
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    try:
        if any(flag for _, flag in training):  # slow to set: a call of one image would notice
            model.eval()
        for parameter, flag in requires_grad:
            if flag:
                parameter.requires_grad_(False)
        yield
    finally:
        for module, flag in training:
            if module.training != flag and type(module).train is not nn.Module.train:
                module.train(flag)  # may have more to put back, such as weights that eval() merged
        for module, flag in training:
            if module.training != flag:
                module.training = flag
        for parameter, flag in requires_grad:
            if parameter.requires_grad != flag:
                parameter.requires_grad_(flag)
        with torch.no_grad():
            for module, name, buffer, saved in buffers:
                setattr(module, name, buffer)
                if not torch.equal(buffer, saved):
                    buffer.copy_(saved)


@contextmanager
def isolated_randomness(seed: int | None = None) -> Iterator[None]:
    """Run with global random states of its own (Python, NumPy, torch on every device).

    Args:
        seed: seeds them inside the block; ``None`` starts from their present values.
    """
    python_state, numpy_state = random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    try:
        with torch.random.fork_rng(devices=list(devices)):
            if seed is not None:
                random.seed(seed)
                np.random.seed(seed % 2**32)
                torch.default_generator.manual_seed(seed)
                if devices:  # else the seed would wait for CUDA to start, and outlive the block
                    torch.cuda.manual_seed_all(seed)
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
