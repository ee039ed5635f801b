"""Moving a prior's weights into another model: every shared tensor, and a report of what came from where."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn


@dataclass
class TransferReport:
    """Names of tensors, as the new model calls them: `loaded` from the prior, `created` fresh, `left` in the prior."""

    source: str
    loaded: list[str] = field(default_factory=list)
    created: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        counts = f"{len(self.loaded)} tensors loaded, {len(self.created)} created, {len(self.left)} left"
        return f"transfer from {self.source}: {counts}"


@torch.no_grad()
def transfer_parameters(
    source: nn.Module,
    target: nn.Module,
    source_name: str = "prior",
    rename: Callable[[str], str] = lambda name: name,
) -> TransferReport:
    """Copies every tensor whose name, after `rename`, both models have.

    Raises ValueError naming the tensor and both shapes when a shared name has different shapes; the target is then
    unchanged.
    """
    theirs = {rename(name): tensor for name, tensor in source.state_dict().items()}
    ours = target.state_dict()
    shared = [name for name in ours if name in theirs]
    for name in shared:
        if theirs[name].shape != ours[name].shape:
            raise ValueError(
                f"tensor {name!r} has shape {tuple(theirs[name].shape)} in {source_name} and {tuple(ours[name].shape)} "
                "in the new model: take expert and encoder configs from the prior (from_action_prior does)"
            )
    for name in shared:
        ours[name].copy_(theirs[name])
    return TransferReport(
        source=source_name,
        loaded=shared,
        created=[name for name in ours if name not in theirs],
        left=[name for name in theirs if name not in ours],
    )


__all__ = ["TransferReport", "transfer_parameters"]
