"""Moving a prior's weights into another model: every shared tensor, and a report of what came from where."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import nn


@dataclass
class TransferReport:
    """Names of tensors, as the new model calls them: `loaded` from the prior, `created`, `left` in the prior.

    Of those created, `copied` begin as copies of loaded ones, the others fresh.
    """

    source: str
    loaded: list[str] = field(default_factory=list)
    created: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    copied: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        copies = f" ({len(self.copied)} of them as copies)" * bool(self.copied)
        counts = f"{len(self.loaded)} tensors loaded, {len(self.created)} created{copies}, {len(self.left)} left"
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


@torch.no_grad()
def copy_created(model: nn.Module, report: TransferReport, beside: Mapping[str, str]) -> None:
    """Lets tensors that were created begin as copies, which the report then says.

    `beside`: how names of new ones begin -> how those of the old ones begin that they are copies of. What has no such
    tensor beside it stays fresh.
    """
    tensors = model.state_dict()
    for new, old in beside.items():
        for name in report.created:
            source = old + name.removeprefix(new)
            if name.startswith(new) and source in tensors:
                tensors[name].copy_(tensors[source])
                report.copied.append(name)


__all__ = ["TransferReport", "copy_created", "transfer_parameters"]
