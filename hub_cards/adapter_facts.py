"""What an adapter is, in the words of a card, from its `adapter_config.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..configuration.adapter_files import own_bodies
from .privacy import scrub

if TYPE_CHECKING:
    from ..modeling_priorvla.attached_backbone import BackbonePreTrainedModel

# What stands in peft's `target_modules` -> what the low-rank maps lie beside.
_PARTS = {"expert": "the expert's layers", "trained_backbone": "the backbone's attention"}
BYTES = 4  # a parameter: adapters are trained and saved in float32


def adapter_config(model: BackbonePreTrainedModel) -> dict[str, Any] | None:
    """What `adapter_config.json` would hold of the adapter that is active in a model; None where there is none."""
    from ..modeling_priorvla.adapters import adapters_in  # here: cards are searched for, and made, without torch

    adapters = adapters_in(model)
    if adapters is None:
        return None
    config: dict[str, Any] = adapters.peft_config[adapters.active_adapter].to_dict()
    return config


def adapter_facts(adapter: Mapping[str, Any], embodiments: Sequence[str], parameters: int | None) -> dict[str, Any]:
    """What a card says of an adapter.

    Args:
        adapter: peft's config, as `adapter_config.json` has it.
        embodiments: names of all bodies, in the order of the model's embodiment id.
        parameters: that it has; None leaves numbers out.

    Returns:
        `revision` of its base, `targets`, the layers as peft names them, `table` (names to words), and `bodies`, the
        indices of the bodies whose own parts it has.
    """
    bodies = [index for index in own_bodies(adapter.get("modules_to_save")) if index < len(embodiments)]
    targets = scrub(str(adapter.get("target_modules") or ""))
    reached = [part for part in _PARTS if part in targets]
    preset = {"expert": "expert", "trained_backbone": "backbone"}.get("+".join(reached), "all")
    beside = " and ".join(_PARTS[part] for part in reached)
    size = f"{parameters / 1e6:.3g} M in {BYTES * parameters / 1e6:.3g} MB" if parameters else None
    variants = [label for field, label in (("use_dora", "DoRA"), ("use_rslora", "rsLoRA")) if adapter.get(field)]
    table = {
        "preset": f"{preset}: low-rank maps beside {beside}" if reached else None,
        "trained in full": ", ".join(f"{embodiments[index]}'s soft tokens and projections" for index in bodies) or None,
        "rank": f"{adapter.get('r')}{f' ({variants[0]})' if variants else ''}",
        "alpha": adapter.get("lora_alpha"),
        "dropout": adapter.get("lora_dropout") or None,
        "parameters": size,
    }
    return {
        "revision": adapter.get("revision"),
        "targets": targets,
        "table": {key: str(value) for key, value in table.items() if value is not None},
        "bodies": bodies,
    }


__all__ = ["adapter_config", "adapter_facts"]
