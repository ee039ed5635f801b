"""Adapters that are in a model: peft's view of them, their tensors, and whether saved ones fit."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..configuration.adapter_files import bodies_in, renumbered
from .attached_backbone import TRAINED, BackbonePreTrainedModel

if TYPE_CHECKING:
    try:  # noqa: SIM105, guarded in this way transformers does not take it for what bundled code cannot do without
        from peft import PeftModel
    except ImportError:
        pass

HELD = "_adapters"


def adapters_in(model: BackbonePreTrainedModel) -> PeftModel | None:
    """peft's view of a model that has adapters: `set_adapter`, `disable_adapter`, `base_model.merge_adapter`, ..."""
    return model.__dict__.get(HELD)


def require_adapters(model: BackbonePreTrainedModel) -> PeftModel:
    adapters = adapters_in(model)
    if adapters is None:
        raise ValueError("there is no adapter in this model: put one in with add_adapter or load_adapter")
    return adapters


def adapter_tensors(model: BackbonePreTrainedModel, name: str | None = None) -> dict[str, Tensor]:
    """What `adapter_model.safetensors` has: the adapter's tensors, the model's own and no copies, by peft's names.

    `name`: of which adapter; default: of the active one.
    """
    adapters = require_adapters(model)
    tensors: dict[str, Tensor] = load_peft().get_peft_model_state_dict(
        adapters, adapter_name=name or adapters.active_adapter, save_embedding_layers=False
    )
    return tensors


@torch.no_grad()
def copy_tensors(
    model: BackbonePreTrainedModel,
    saved: dict[str, Tensor],
    name: str,
    ids: dict[int, int],
    place: str | os.PathLike[str],
) -> None:
    """Saved tensors into an adapter that is there. `ids`: of its own bodies, there -> here."""
    saved = {renumbered(key, ids): tensor for key, tensor in saved.items() if bodies_in(key) <= ids.keys()}
    own = set(ids.values())
    wanted = {key: tensor for key, tensor in adapter_tensors(model, name).items() if bodies_in(key) <= own}
    saved = {key: tensor for key, tensor in saved.items() if key in wanted or not _above_what_is_read(model, key)}
    for key in sorted(saved.keys() ^ wanted.keys()):
        raise ValueError(
            f"{place}: tensor {key!r} is {'not in the file' if key in wanted else 'of no layer here'}: this adapter "
            "belongs to another base, or was made with other settings"
        )
    for key, tensor in saved.items():
        if tensor.shape != wanted[key].shape:
            raise ValueError(
                f"{place}: tensor {key!r} has shape {tuple(tensor.shape)}, here {tuple(wanted[key].shape)}: this "
                "adapter belongs to another base, or was made with another rank"
            )
    for key, tensor in saved.items():
        wanted[key].copy_(tensor)
    # peft has loaded silently nothing before; what is computed with must be what was saved
    now = adapter_tensors(model, name)
    assert all(torch.equal(now[key], tensor.to(now[key])) for key, tensor in saved.items())


def _above_what_is_read(model: BackbonePreTrainedModel, key: str) -> bool:
    """Whether a tensor is beside a layer that `Backbone.truncate` drops; older adapters went beside these too."""
    layer = re.search(rf"\b{re.escape(TRAINED)}.*\.(?:vision|language)_model\..*?\.?layers?\.(\d+)\.", key)
    return layer is not None and model.backbone is not None and int(layer[1]) >= model.backbone.last_layer


@contextmanager
def double_of(model: BackbonePreTrainedModel, with_backbone: bool) -> Iterator[BackbonePreTrainedModel]:
    """A copy of `model` that holds the same tensors, to find out whether an adapter fits; chance is not disturbed."""
    parts = [model] if model.backbone is None else [model, model.backbone]
    tensors = [tensor for part in parts for tensor in (*part.parameters(), *part.buffers())]
    learning = [tensor.requires_grad for tensor in tensors]
    double = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
    if with_backbone and double.backbone is not None:  # else it would be copied, with its tensors
        double.backbone.truncate(model.config.taps[-1])
        double._modules[TRAINED[:-1]], double.__dict__["_frozen_backbone"] = double.backbone, None
    try:
        with torch.random.fork_rng(devices=[]):
            yield double
    finally:
        for tensor, before in zip(tensors, learning, strict=True):
            tensor.requires_grad_(before)


def load_peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise ImportError("adapters need peft: run pip install 'priorvla[peft]'") from error
    return peft


__all__ = ["HELD", "adapter_tensors", "adapters_in", "copy_tensors", "double_of", "load_peft", "require_adapters"]
