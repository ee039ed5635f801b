"""The processor of a model with adapters in it."""

from __future__ import annotations

import os
from typing import Any

from ..configuration.embodiment import Embodiment
from .attached_backbone import BackbonePreTrainedModel
from .processing_priorvla import PriorVLAProcessor


def processor_for(
    model: BackbonePreTrainedModel, place: str | os.PathLike[str], *others: str | os.PathLike[str], **hub: Any
) -> PriorVLAProcessor:
    """The processor of one or several adapters, with every body at the id that it has in `model`.

    An adapter's own processor knows its base's bodies and the adapter's. On a base with several adapters, a robot may
    have another id than there.

    Args:
        place, others: folders or Hub ids of the adapters in `model`; all but bodies is as in the first's processor.

    Raises:
        ValueError: when a body of `model` is in none of them, two say different things of one body, or dims disagree.
    """
    first = PriorVLAProcessor.from_pretrained(place, **hub)
    told: dict[str, Embodiment] = {}
    for body in [
        *first.embodiments,
        *(body for other in others for body in PriorVLAProcessor.from_pretrained(other, **hub).embodiments),
    ]:
        if told.setdefault(body.name, body).to_dict() != body.to_dict():
            raise ValueError(f"embodiment {body.name!r} is told in two ways: the adapters mean two robots by one name")
    names = model.config.expert.embodiments
    if missing := [name for name in names if name not in told]:
        raise ValueError(f"embodiment {missing[0]!r} of the model is in none of these: name its adapter, too")
    bodies = [told[name] for name in names]
    model.config.expert.require_embodiments(bodies)
    return first.with_embodiments(bodies)


__all__ = ["processor_for"]
