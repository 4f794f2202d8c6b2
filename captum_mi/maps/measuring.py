"""What a decision loses at the positions of a layer, with blocks and with halves of the input."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from captum_mi.grid import Place
from captum_mi.maps.ablation import MOST_BLOCKS, block_losses
from captum_mi.maps.halves import half_contrasts
from captum_mi.maps.shares import Decision
from captum_mi.maps.weighting import Measured
from captum_mi.model.inputs import all_finite
from captum_mi.model.passes import Pass
from captum_mi.model.sites import Site
from captum_mi.probing.map_input import MapInput

__all__ = ["measure"]


def measure(
    decision: Decision, first: Pass, site: Site, mapped: MapInput,
    baselines: tuple[Tensor, ...], steps: int, places: Sequence[Place],
) -> Measured:
    """Shares of positions, and losses of blocks, then of pairs of halves, a forward pass each.

    Args:
        decision: a batch's decision.
        first: the batch's first pass.
        site: the finest site, whose grid shares and halves are on.
        mapped: the input whose parts are removed.
        baselines: what takes their place, of the inputs' shapes.
        steps: forward passes for blocks and halves.
        places: where the site's positions lie.

    Raises:
        ValueError: if the prediction is not finite without a part of the input.
    """
    x, baseline = mapped.of(decision.inputs), mapped.of(baselines)

    def log_probability(without: Tensor) -> Tensor:
        inputs = mapped.replaced(decision.inputs, without)
        return decision.log_probability(decision.passes.first(inputs, decision.args))

    whole = decision.log_probability(first)
    grid = tuple(site.of(first.layers).shape[2:])
    blocks = min(steps, MOST_BLOCKS)
    pairs = (steps - blocks) // 2
    measured = Measured(
        decision.shares(site, mapped.replaced(decision.inputs, baseline)),
        block_losses(
            log_probability, whole, x, baseline, blocks, mapped.first_axis, len(grid)),
        half_contrasts(
            log_probability, whole, x, baseline, pairs, mapped.first_axis, grid, places),
    )
    if not all(map(all_finite, measured)):
        raise ValueError(
            "the prediction is not finite with a part of the input replaced by baselines; pass "
            "baselines= that the model can take, or leave out refine_steps"
        )
    return measured
