"""Skip what runs before the bottleneck: of the same inputs, it gives the same outputs again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Replay"]


class Replay:
    """Outputs of what a forward pass called before the first of some layers had ended.

    A later pass of the same inputs, which changes nothing before those layers, has them again
    for nothing. Of nested calls the outermost are kept. Modules are called anew if they ran more
    than once, if they return other things than a tensor, or if what they returned was since
    overwritten in place.

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

    @contextmanager
    def record(self, model: nn.Module, names: Sequence[str]) -> Iterator[None]:
        """Keep outputs during one forward pass, until the first call of a named layer ends."""
        last = {model.get_submodule(name) for name in names}
        running: list[tuple[nn.Module, int]] = []  # with the number of calls that ended before
        ended: list[tuple[nn.Module, Any, int]] = []
        calls: Counter[nn.Module] = Counter()
        over = False

        def begin(module: nn.Module, args: Any) -> None:
            if not over:
                running.append((module, len(ended)))
                calls[module] += 1

        def end(module: nn.Module, args: Any, output: Any) -> None:
            nonlocal over
            if over:
                return
            while running and (begun := running.pop())[0] is not module:
                pass  # a call that raised, and was caught
            del ended[begun[1] :]  # calls within this one
            ended.append((module, output, _version(output)))
            if module in last:
                over = True
                self._kept = [call for call in ended if calls[call[0]] == 1 and _can_return(*call)]

        with ExitStack() as stack:
            for module in model.modules():
                # Before anyone's own hooks: these see, and may change, what is returned again.
                for handle in (
                    module.register_forward_pre_hook(begin, prepend=True),
                    module.register_forward_hook(end, prepend=True),
                ):
                    stack.callback(handle.remove)
            yield

    @contextmanager
    def play(self) -> Iterator[None]:
        """The first call of each module that was kept returns what it returned."""
        with ExitStack() as stack:
            for module, output, version in self._kept:
                if _version(output) == version:
                    module.__dict__["forward"] = _once(module, output)
                    stack.callback(module.__dict__.pop, "forward", None)
            yield


def _version(output: Any) -> int:
    """How often a tensor was changed in place; -1 for what cannot be told, or is no tensor."""
    tells = isinstance(output, Tensor) and not output.is_inference()
    return output._version if tells else -1


def _can_return(module: nn.Module, output: Any, version: int) -> bool:
    return (
        version >= 0
        and _version(output) == version
        and not isinstance(module, torch.jit.ScriptModule)
        and "forward" not in module.__dict__  # somebody else's
    )


def _once(module: nn.Module, output: Tensor) -> Callable[..., Tensor]:
    def forward(*args: Any, **kwargs: Any) -> Tensor:
        del module.__dict__["forward"]
        return output

    return forward
