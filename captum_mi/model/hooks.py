"""Capture and replace the outputs of layers: the only place that registers hooks.

Both context managers remove their hooks on the way out, also after an exception.
"""

from __future__ import annotations

import difflib
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any, Literal

import torch
from torch import Tensor, nn

from captum_mi.model.modules import modules_of

__all__ = [
    "LayerOutput",
    "OnRepeat",
    "capture",
    "capture_only",
    "layer_names",
    "observe",
    "replace_output",
]

#: What a supported layer returns.
LayerOutput = Tensor | tuple[Tensor, ...]

#: Which call of a layer counts when it runs more than once in a forward pass.
OnRepeat = Literal["error", "first", "last"]


def layer_names(model: nn.Module, layers: Sequence[str | nn.Module]) -> list[str]:
    """Dotted names of layers that are given as names or as modules of ``model``.

    Raises:
        ValueError: for a name that does not exist (the closest ones are suggested) or a module
            that is not part of ``model``.
        TypeError: for anything that is neither a name nor a module.
    """
    return [_layer_name(model, layer) for layer in layers]


def _layer_name(model: nn.Module, layer: str | nn.Module) -> str:
    modules = dict(model.named_modules(remove_duplicate=False))
    if isinstance(layer, str):
        if layer in modules:
            return layer
        close = difflib.get_close_matches(layer, modules, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(map(repr, close))}?" if close else (
            f"the model's children are {[name for name, _ in model.named_children()]}"
        )
        raise ValueError(f"layer {layer!r} not found in {type(model).__name__}; {hint}")
    if isinstance(layer, nn.Module):
        for name, module in modules.items():
            if module is layer:
                return name
        raise ValueError(
            f"the given {type(layer).__name__} is not a module of this {type(model).__name__}; "
            "pass a module of the same model object, or its dotted name"
        )
    raise TypeError(f"a layer is a module or a dotted name; got {type(layer).__name__}")


def _eager(modules: Sequence[nn.Module]) -> AbstractContextManager[Any]:
    """Context in which those that are compiled run eagerly: a warmed graph ignores hooks."""
    compiled = any(
        "_orig_mod" in module._modules or getattr(module, "_compiled_call_impl", None) is not None
        for module in modules
    )
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()


@contextmanager
def _layer_by_layer(modules: Sequence[nn.Module]) -> Iterator[None]:
    """No nested tensors between the blocks of PyTorch's own transformers, as its fast path makes
    of padded sequences: they have no grid of positions."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    if not enabled or not any(isinstance(one, nn.TransformerEncoder) for one in modules):
        yield
        return
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


class _CallCounter:
    """Counts a layer's calls in one forward pass and tells which of them counts."""

    def __init__(self, name: str, on_repeat: OnRepeat) -> None:
        self.name = name
        self.on_repeat = on_repeat
        self.calls = 0

    def next_counts(self) -> bool:
        self.calls += 1
        if self.calls > 1 and self.on_repeat == "error":
            raise RuntimeError(
                f"layer {self.name!r} runs more than once in a forward pass; pass "
                "on_repeat='first' or on_repeat='last' to say which of its outputs is meant"
            )
        return self.calls == 1 or self.on_repeat == "last"


@contextmanager
def capture(
    model: nn.Module, names: Sequence[str], on_repeat: OnRepeat = "error"
) -> Iterator[dict[str, LayerOutput]]:
    """Collect clones of the outputs of the named layers during one forward pass.

    Clones, because an in-place operation after the layer would change what was saved.

    Args:
        model: the model whose forward pass runs inside the ``with`` block, once.
        names: dotted names.
        on_repeat: which output is kept of a layer that runs several times; ``"error"`` raises.

    Yields:
        A dict that is filled during the forward pass: name -> tensor or tuple of tensors.

    Raises:
        RuntimeError: if a layer runs twice (see ``on_repeat``) or never.
        TypeError: if a layer returns something other than a tensor or a tuple of tensors.
    """
    outputs: dict[str, LayerOutput] = {}
    with observe(model, names, _keeper(outputs, names, on_repeat)):
        yield outputs
    _check_all_ran(outputs, names)


class _AllCaptured(Exception):
    """Ends a forward pass whose remainder nobody reads."""


def capture_only(
    model: nn.Module,
    names: Sequence[str],
    run: Callable[[], object],
    on_repeat: OnRepeat = "error",
) -> dict[str, LayerOutput]:
    """Outputs of the named layers from a forward pass that ends after the last of them.

    With ``on_repeat="last"`` the pass runs to its end: a layer might run again.

    Args:
        model: the model.
        names: dotted names.
        run: runs the forward pass.
        on_repeat: as for :func:`capture`.

    Returns:
        Name -> clone of the layer's output.

    Raises:
        RuntimeError, TypeError: as :func:`capture`.
    """
    outputs: dict[str, LayerOutput] = {}
    keep = _keeper(outputs, names, on_repeat)

    def keep_and_stop(name: str, output: Any) -> None:
        keep(name, output)
        if on_repeat != "last" and len(outputs) == len(set(names)):
            raise _AllCaptured

    with observe(model, names, keep_and_stop), suppress(_AllCaptured):
        run()
    _check_all_ran(outputs, names)
    return outputs


def _keeper(
    outputs: dict[str, LayerOutput], names: Sequence[str], on_repeat: OnRepeat
) -> Callable[[str, Any], None]:
    counters = {name: _CallCounter(name, on_repeat) for name in names}

    def keep(name: str, output: Any) -> None:
        _check_output(name, output)
        if counters[name].next_counts():
            outputs[name] = _clone(output)

    return keep


def _check_all_ran(outputs: dict[str, LayerOutput], names: Sequence[str]) -> None:
    missing = [name for name in names if name not in outputs]
    if missing:
        raise RuntimeError(
            f"layer {missing[0]!r} did not run in the forward pass, so it has no features; "
            "choose a layer that the model calls for these inputs"
        )


@contextmanager
def replace_output(
    model: nn.Module,
    transforms: dict[str, Callable[[LayerOutput], LayerOutput]],
    on_repeat: OnRepeat = "error",
    calls: dict[str, int] | None = None,
) -> Iterator[None]:
    """Pass the outputs of layers through functions during one forward pass.

    Args:
        model: the model whose forward pass runs inside the ``with`` block.
        transforms: name -> function from the layer's output to what replaces it.
        on_repeat: which call is replaced of a layer that runs several times.
        calls: how often each layer runs in a pass; needed for ``on_repeat="last"``.
    """

    counters = {name: _CallCounter(name, on_repeat) for name in transforms}

    def swap(name: str, output: Any) -> Any:
        counts = counters[name].next_counts()
        if on_repeat == "last" and calls is not None:
            counts = counters[name].calls == calls[name]
        return transforms[name](output) if counts else None

    with observe(model, list(transforms), swap):
        yield


@contextmanager
def observe(
    model: nn.Module, names: Sequence[str], see: Callable[[str, Any], Any]
) -> Iterator[None]:
    """Call ``see(name, output)`` after each call of a named layer during the ``with`` block.

    What it returns, unless ``None``, replaces the layer's output. Calls in other threads are not
    seen.
    """
    thread = threading.get_ident()

    def hook_of(name: str) -> Callable[..., Any]:
        return lambda module, args, output: (
            see(name, output) if threading.get_ident() == thread else None)

    handles: list[Any] = []
    try:
        for name in dict.fromkeys(names):
            handles.append(model.get_submodule(name).register_forward_hook(hook_of(name)))
        modules = modules_of(model)
        with _eager(modules), _layer_by_layer(modules):
            yield
    finally:
        for handle in handles:
            handle.remove()


def _check_output(name: str, output: Any) -> None:
    parts = output if isinstance(output, tuple) else (output,)
    if not parts or not all(isinstance(part, Tensor) for part in parts):
        raise TypeError(
            f"layer {name!r} returned {_describe(output)}; expected a tensor or a tuple of "
            "tensors. Choose a layer inside of it, or wrap it so that it returns its tensor"
        )


def _describe(output: Any) -> str:
    if isinstance(output, dict):
        return f"a dict with keys {sorted(map(str, output))}"
    if isinstance(output, (tuple, list)):
        return f"a {type(output).__name__} of {[type(part).__name__ for part in output]}"
    return f"a {type(output).__name__}"


def _clone(output: LayerOutput) -> LayerOutput:
    if isinstance(output, tuple):
        return tuple(part.clone() for part in output)
    return output.clone()
