"""One more body in a trained model: soft tokens and projections of its own, and no bit of any other body's."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..configuration.configuration_expert import ExpertConfig
from .layers import EmbodimentLinear, SoftTokens


@torch.no_grad()
def add_embodiment(model: PreTrainedModel, name: str, action_dim: int, state_dim: int, like: str | None = None) -> int:
    """Gives every per-embodiment part of `model` an entry for a new body, and its config too; returns the body's id.

    See `MotionPreTrainedModel.add_embodiment`.
    """
    expert: ExpertConfig = model.config.expert
    if name in expert.embodiments:
        raise ValueError(
            f"embodiment {name!r} is already id {expert.embodiments.index(name)} here: choose another name"
        )
    if action_dim < 1 or state_dim < 0:
        raise ValueError(
            f"embodiment {name!r}: action_dim={action_dim} must be positive and state_dim={state_dim} not negative"
        )
    index = embodiment_index(expert, like) if like is not None else None
    for kind, part in _parts(model):
        if isinstance(part, SoftTokens):
            fresh = SoftTokens(1, *part.tokens[0].shape).to(part.tokens[0])
            model._init_weights(fresh.tokens)
            part.tokens.append(fresh.tokens[0])
            if index is not None:
                part.tokens[-1].copy_(part.tokens[index])
            continue
        dims = _dims(kind, part, action_dim, state_dim)
        projection = part.add(*dims)
        model._init_weights(projection)
        if index is not None and dims == (part.in_dims[index], part.out_dims[index]):
            source = part.projections[index]  # in an adapter a wrapper, which has the active one's weight and bias
            projection.weight.copy_(cast(Tensor, source.weight))
            projection.bias.copy_(cast(Tensor, source.bias))
    expert.embodiments = [*expert.embodiments, name]
    expert.action_dims = [*expert.action_dims, action_dim]
    expert.state_dims = [*expert.state_dims, state_dim]
    return len(expert.embodiments) - 1


def train_only_embodiment(model: PreTrainedModel, *names: str) -> None:
    """Leaves a gradient to the soft tokens and projections of the named bodies alone."""
    indices = [embodiment_index(model.config.expert, name) for name in names]
    model.requires_grad_(False)
    for _, part in _parts(model):
        for index in indices:
            own = part.tokens[index] if isinstance(part, SoftTokens) else part.projections[index]
            own.requires_grad_(True)


def embodiment_index(expert: ExpertConfig, name: str) -> int:
    """The id of the body `name`. Raises ValueError with the names that there are."""
    if name not in expert.embodiments:
        raise ValueError(f"embodiment {name!r} is not in this checkpoint, which has {', '.join(expert.embodiments)}")
    return expert.embodiments.index(name)


def _parts(model: nn.Module) -> list[tuple[str, EmbodimentLinear | SoftTokens]]:
    """Every module with an entry a body, and the last component of its name, which says what it maps."""
    return [
        (name.rpartition(".")[2], module)
        for name, module in model.named_modules()
        if isinstance(module, EmbodimentLinear | SoftTokens)
    ]


def _dims(kind: str, part: EmbodimentLinear, action_dim: int, state_dim: int) -> tuple[int, int]:
    """Input and output width of the new body's map in `part`."""
    widths = {
        "action_in_proj": (action_dim, part.out_dims[0]),
        "action_out_proj": (part.in_dims[0], action_dim),
        "state_proj": (state_dim, part.out_dims[0]),
    }
    return widths[kind]


__all__ = ["add_embodiment", "embodiment_index", "train_only_embodiment"]
