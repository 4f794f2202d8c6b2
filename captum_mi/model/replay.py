"""Skip what runs before the bottleneck: of the same inputs, it gives the same outputs again."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from captum_mi.model.modules import modules_of

__all__ = ["Replay"]


class Replay:
    """Outputs of what a forward pass called before the first of some layers had ended.

    A later pass of the same inputs, which changes nothing before those layers, has them again
    for nothing. Of nested calls the outermost are kept. Modules are called anew if they ran more
    than once, if they return other things than a tensor, if they overwrote what they were given,
    or if what they returned was since overwritten. What else a call may do, such as to leave
    something in an attribute, is not done again: whether a model can be replayed is tried out
    once (:attr:`captum_mi.probing.structure.Structure.replays`).

    Attributes:
        end: the module with which recording ended, if that was its only call.
        calls: how often layers ran in the pass; empty where that was not counted.

    Example::

        >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> x, replay = torch.randn(4, 2), Replay()
        >>> with torch.no_grad(), replay.record(model, ["1"]):
        ...     y = model(x)
        >>> with replay.play():  # of the two linear maps, only the second is computed
        ...     assert torch.equal(model(x), y)
    """

    def __init__(self) -> None:
        self._kept: list[tuple[nn.Module, Tensor, int]] = []
        self.end: nn.Module | None = None
        self.calls: dict[str, int] = {}

    @contextmanager
    def record(self, model: nn.Module, names: Sequence[str]) -> Iterator[None]:
        """Keep outputs during one forward pass, until the first call of a named layer ends."""
        last = {model.get_submodule(name) for name in names}
        running: list[_Begun] = []
        ended: list[tuple[nn.Module, Any, int]] = []
        calls: Counter[nn.Module] = Counter()
        over, thread = False, threading.get_ident()

        def begin(module: nn.Module, args: Any, kwargs: Any) -> None:
            if not over and threading.get_ident() == thread:
                given = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
                running.append(_Begun(module, len(ended), given, [_version(x) for x in given]))
                calls[module] += 1

        def end(module: nn.Module, args: Any, output: Any) -> None:
            nonlocal over
            if over or threading.get_ident() != thread:
                return
            while running and (begun := running.pop()).module is not module:
                pass  # a call that raised, and was caught
            del ended[begun.ended_before :]  # calls within this one
            overwrote = [_version(x) for x in begun.given] != begun.versions
            ended.append((module, output, -1 if overwrote else _version(output)))
            if module in last:
                over = True
                self._kept = [call for call in ended if calls[call[0]] == 1 and _can_return(*call)]
                self.end = module if calls[module] == 1 else None

        with ExitStack() as stack:
            for module in modules_of(model):
                if isinstance(module, torch.jit.ScriptModule):  # cannot be hooked
                    continue
                # Before anyone's own hooks: these see, and may change, what is returned again.
                for handle in (
                    module.register_forward_pre_hook(begin, prepend=True, with_kwargs=True),
                    module.register_forward_hook(end, prepend=True),
                ):
                    stack.callback(handle.remove)
            yield

    def resume(self, last: Tensor) -> Replay:
        """A replay for other inputs, of which the output of :attr:`end` alone is known.

        In place of what was kept before stands NaN, which takes no memory; integers are computed
        anew. A model with no way past the end does not read it: that is tried out once
        (:attr:`captum_mi.probing.structure.Structure.resumes`).

        Args:
            last: what the module with which recording ended returns for those inputs.
        """
        assert self.end is not None
        replay = Replay()
        replay.end = self.end
        for module, output, _ in self._kept:
            if module is not self.end and output.is_floating_point():
                nan = output.new_full((), float("nan"))
                replay._keep(module, nan.expand(len(last), *output.shape[1:]))
        replay._keep(self.end, last)
        return replay

    def _keep(self, module: nn.Module, output: Tensor) -> None:
        self._kept.append((module, output, _version(output)))

    @contextmanager
    def play(self) -> Iterator[None]:
        """The first call of each module that was kept returns what it returned."""
        with ExitStack() as stack:
            for module, output, version in self._kept:
                if _version(output) == version:
                    module.__dict__["forward"] = _once(module, output)
                    stack.callback(module.__dict__.pop, "forward", None)
            yield


class _Begun(NamedTuple):
    """A call that has begun: how many had ended before, and the versions of what it was given."""

    module: nn.Module
    ended_before: int
    given: list[Tensor]
    versions: list[int]


def _version(output: Any) -> int:
    """How often a tensor was changed in place; -1 for what cannot be told, or is no tensor."""
    tells = isinstance(output, Tensor) and not output.is_inference()
    return output._version if tells else -1


def _can_return(module: nn.Module, output: Any, version: int) -> bool:
    return (
        version >= 0
        and _version(output) == version
        and "forward" not in module.__dict__  # somebody else's
    )


def _once(module: nn.Module, output: Tensor) -> Callable[..., Tensor]:
    thread = threading.get_ident()

    def forward(*args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() != thread:
            return type(module).forward(module, *args, **kwargs)
        del module.__dict__["forward"]
        return output

    return forward
