"""First passes over the fitting data, remembered where the same examples come again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from captum_mi.fitting.example_keys import example_keys
from captum_mi.model.batches import Batch
from captum_mi.model.hooks import LayerOutput
from captum_mi.model.modules import device_of
from captum_mi.model.passes import Pass, Passes
from captum_mi.model.sites import Site

__all__ = ["FirstPasses"]

_Row = tuple[Pass, int]


class FirstPasses:
    """Runs first passes, and remembers those of the survey as long as they fit into memory.

    In eval mode an example's features are the same whatever its batch, so that batches of later
    walks can be put together of rows of the first one's. Examples are known by their bits. If
    the first batch after the survey has none of those that were seen, inputs change from walk to
    walk, and all is forgotten.

    Args:
        passes: passes of the model.
        continued: where second passes will replace features.
        limit: bytes of features to remember, where the model is, but at most half of what a
            CUDA device has left; 0 for none.
        batches: how many the survey has, if that is known: more than fit are not begun with.
    """

    def __init__(
        self, passes: Passes, continued: Sequence[Site], limit: int, batches: int | None = None
    ) -> None:
        self.passes, self.continued, self.batches = passes, continued, batches
        device = device_of(passes.model)
        left = torch.cuda.mem_get_info(device)[0] // 2 if device.type == "cuda" else limit
        self.limit = min(limit, left)
        self.bytes = 0
        self._rows: dict[tuple[object, ...], _Row] = {}
        self._resumed: str | None = None
        self._come_again = False

    def surveyed(self, batch: Batch) -> Pass:
        """The first pass of a batch, run and remembered."""
        first = self._run(batch)
        if self.limit:
            self._remember(batch, first)
        return first

    def of(self, batch: Batch) -> Pass:
        """The first pass of a batch, remembered or run."""
        rows = self._find(batch)
        return self._put_together(rows) if rows else self._run(batch)

    def layers(self, batch: Batch) -> dict[str, LayerOutput]:
        """Captured layers of a batch, remembered or of a pass that ends after the deepest."""
        rows = self._find(batch)
        if rows:
            return self._put_together(rows).layers
        return self.passes.features(batch.inputs, batch.additional_forward_args)

    def _run(self, batch: Batch) -> Pass:
        return self.passes.first(batch.inputs, batch.additional_forward_args, self.continued)

    def _remember(self, batch: Batch, first: Pass) -> None:
        self._resumed = self.passes.resumed(first)
        more = _bytes(first)
        self.bytes += more
        expected = self.bytes if self._rows else more * max(1, (self.batches or 0) - 1)
        if self._resumed is None or batch.additional_forward_args or expected > self.limit:
            self._forget()
            return
        nothing = first.layers[self._resumed][:0].clone()  # type: ignore[union-attr]
        kept = replace(first, before=first.before.resume(nothing))
        self._rows |= {key: (kept, row) for row, key in enumerate(_keys(batch))}

    def _forget(self) -> None:
        self.limit = self.bytes = 0
        self._rows.clear()

    def _find(self, batch: Batch) -> list[_Row]:
        """Rows of all examples of a batch; none if one of them is new."""
        if not self._rows:
            return []
        rows = [self._rows.get(key) for key in _keys(batch)]
        if not (self._come_again or any(rows)):
            self._forget()
        self._come_again = True
        return [row for row in rows if row] if all(rows) else []

    def _put_together(self, rows: list[_Row]) -> Pass:
        passes, numbers = [one for one, _ in rows], [row for _, row in rows]
        first = passes[0]
        layers = {
            name: _joined([one.layers[name] for one in passes], numbers) for name in first.layers
        }
        y = _of_rows([one.y for one in passes], numbers)
        output = y if first.output is first.y else _of_rows(
            [one.output for one in passes], numbers)
        prediction = output if first.prediction is first.output else _of_rows(
            [one.prediction for one in passes], numbers)
        last = layers[self._resumed or ""]
        assert isinstance(last, Tensor)
        return Pass(layers, y, output, prediction, first.before.resume(last))


def _joined(outputs: Sequence[LayerOutput], rows: Sequence[int]) -> LayerOutput:
    """A row of each of several outputs of a layer, as one output."""
    tensors = [output for output in outputs if isinstance(output, Tensor)]
    if tensors:
        return _of_rows(tensors, rows)
    return tuple(_of_rows(parts, rows) for parts in zip(*outputs))


def _of_rows(tensors: Sequence[Tensor], rows: Sequence[int]) -> Tensor:
    """A row of each of several tensors, in the order of axes in memory that they have."""
    one = tensors[0][0]
    order = sorted(range(one.dim()), key=one.stride, reverse=True)
    stacked = torch.stack([tensor[row].permute(order) for tensor, row in zip(tensors, rows)])
    return stacked.permute(0, *(1 + order.index(axis) for axis in range(one.dim())))


def _keys(batch: Batch) -> list[tuple[object, ...]]:
    """What tells examples apart: their bits, and their shapes, as padding adds nothing to bits."""
    shapes = tuple(x.shape[1:] for x in batch.inputs)
    return [(shapes, *bits) for bits in zip(*(example_keys(x).tolist() for x in batch.inputs))]


def _bytes(one: Pass) -> int:
    tensors = [one.y, one.output, one.prediction]
    for output in one.layers.values():
        tensors += output if isinstance(output, tuple) else (output,)
    return sum(x.nbytes for x in {id(x): x for x in tensors}.values())
