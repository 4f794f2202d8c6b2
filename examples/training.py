"""A training loop that can be stopped at any time: it goes on from its last checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm


def shuffled(n: int, batch: int, seed: int) -> Iterator[Tensor]:
    """Whole batches of n row numbers in a seeded order; one of all if they are fewer."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    return iter(order[: max(1, n // batch) * batch].split(batch))


def train(
    model: nn.Module,
    epoch_batches: Callable[[int], Iterable[Any]],
    loss: Callable[[Any], Tensor],
    epochs: int,
    steps_per_epoch: int,
    checkpoint: Path,
    lr: float = 1e-3,
    seed: int = 0,
    settings: dict[str, Any] | None = None,
) -> None:
    """One-cycle AdamW for some epochs.

    Args:
        model: trained in place, and left in eval mode.
        epoch_batches: from the epoch's number to its batches, the same ones for the same number.
        loss: from a batch to the loss.
        epochs: epochs in all; those that the checkpoint has are not repeated.
        steps_per_epoch: batches in an epoch.
        checkpoint: written after every epoch, read if it is there.
        lr: largest learning rate.
        seed: of dropout, augmentation and what the caller draws.
        settings: what else tells this run from others, as strings and numbers.
    """
    if not epochs:
        model.eval()
        return
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, epochs * steps_per_epoch)
    run = {"epochs": epochs, "steps_per_epoch": steps_per_epoch, "lr": lr, "seed": seed,
           **(settings or {})}
    first = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
        if state.get("run") != run:
            raise ValueError(
                f"{checkpoint} belongs to a run with {state.get('run')}; this one has {run}. "
                "Remove it, or ask for the same"
            )
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        first = state["epoch"]
        print(f"resuming after epoch {first} of {epochs} ({checkpoint})")
    for epoch in range(first, epochs):
        torch.manual_seed(seed + epoch)
        model.train()
        bar = tqdm(epoch_batches(epoch), f"epoch {epoch + 1}/{epochs}", steps_per_epoch)
        for batch in bar:
            value = loss(batch)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            schedule.step()
            bar.set_postfix(loss=f"{value.item():.3f}")
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        unfinished = checkpoint.with_name(f"{checkpoint.name}.unfinished")
        torch.save(
            {"model": model.state_dict(), "optimizer": optimizer.state_dict(),
             "schedule": schedule.state_dict(), "epoch": epoch + 1, "run": run},
            unfinished,
        )
        unfinished.replace(checkpoint)
    model.eval()
