"""Bodies in an adapter: they go by name, because two adapters that each bring a robot give it the same id."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import TYPE_CHECKING

from ..configuration.configuration_expert import ExpertConfig
from ..configuration.configuration_priorvla import PriorVLAConfig
from .adding_embodiments import embodiment_index

if TYPE_CHECKING:
    from .attached_backbone import BackbonePreTrainedModel


def ids_here(
    model: BackbonePreTrainedModel, theirs: ExpertConfig, bodies: Iterable[int], *, add: bool = False
) -> dict[int, int]:
    """The ids in `model` of an adapter's own bodies; with `add`, those that it lacks are added.

    Raises ValueError when `model` has such a body with other dims, or lacks one.
    """
    ids = {}
    for body in bodies:
        name, dims = theirs.embodiments[body], (theirs.action_dims[body], theirs.state_dims[body])
        ours: ExpertConfig = model.config.expert
        if add and name not in ours.embodiments:
            ids[body] = model.add_embodiment(name, *dims)
            continue
        ids[body] = embodiment_index(ours, name)
        here = (ours.action_dims[ids[body]], ours.state_dims[ids[body]])
        if here != dims:
            raise ValueError(
                f"embodiment {name!r} has {here[0]} action and {here[1]} state dims here, {dims[0]} and {dims[1]} in "
                "the adapter: these are two bodies, train the adapter again under another name"
            )
    return ids


def ids_alone(model: BackbonePreTrainedModel, bodies: Iterable[int]) -> dict[int, int]:
    """Ids here -> ids in a model that has the base's bodies and these alone, and none that other adapters brought."""
    names, own = model.config.expert.embodiments, set(bodies)
    base = names if model.base_embodiments is None else model.base_embodiments
    kept = [index for index, name in enumerate(names) if index in own or name in base]
    return {index: place for place, index in enumerate(kept)}


def config_alone(model: BackbonePreTrainedModel, ids: dict[int, int]) -> PriorVLAConfig:
    """A copy of the model's config with the bodies of `ids_alone`."""
    config = copy.deepcopy(model.config)
    expert = config.expert
    for field in ("embodiments", "action_dims", "state_dims"):
        setattr(expert, field, [getattr(expert, field)[index] for index in sorted(ids)])
    return config


__all__ = ["config_alone", "ids_alone", "ids_here"]
