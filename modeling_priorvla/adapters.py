"""A LoRA adapter beside a policy that stays as it was published: put in, saved alone, found again with its base.

An adapter is peft's: low-rank maps beside the policy's own layers and, if asked for, its backbone's, and in full the
soft tokens and projections of the bodies that it was trained for. It is another thing than `config.backbone_training`
"lora", whose maps are weights of a checkpoint of rung 3; both use peft, and `attention_maps` to find their places.
"""

from __future__ import annotations

import copy
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.utils import CONFIG_NAME, find_adapter_config_file
from transformers.utils.hub import cached_file, extract_commit_hash

from ..configuration.configuration_expert import ExpertConfig
from ..configuration.configuration_priorvla import PriorVLAConfig
from .adding_embodiments import embodiment_index
from .attached_backbone import HUB_ARGUMENTS, TRAINED, BackbonePreTrainedModel, BackboneSource
from .backbone_training import without_dropout
from .layers import SoftTokens

if TYPE_CHECKING:
    try:  # noqa: SIM105, guarded in this way transformers does not take it for what bundled code cannot do without
        from peft import LoraConfig, PeftModel
    except ImportError:
        pass

ADAPTER_CONFIG_FILE, ADAPTER_FILE = "adapter_config.json", "adapter_model.safetensors"
DEFAULT = "default"  # peft's name of the only adapter
_HELD = "_adapters"
_BODY = re.compile(r"(?<=\.)(projections|tokens)\.(\d+)(?=\.|$)")  # in the name of a tensor that is a body's own


def add_adapter(
    model: BackbonePreTrainedModel, config: LoraConfig, name: str = DEFAULT, *, base: str | None = None
) -> PeftModel:
    """Puts a fresh adapter into `model`, which then computes with it; all but the adapter is frozen.

    It starts without effect, to the bit. Where it reaches into a frozen backbone, that becomes a submodule: a copy,
    because others may hold it too.

    Args:
        config: as `lora_config` makes it. name: several adapters can be in one model, one at a time active:
            `adapters_in(model).set_adapter(name)`.
        base: folder or Hub id under which the adapter will find its base. Default: where `model` was loaded from, at
            the commit that it was loaded from, so that the adapter means the same when its base moves on.

    Raises:
        ValueError: when the checkpoint has backbone adapters of its own, or a backbone is to be reached and there is
            none. ImportError: when peft is not installed.
    """
    peft = _peft()
    if model.config.backbone_training == "lora":
        raise ValueError(
            "this checkpoint has adapters in its backbone among its own weights (backbone_training='lora'), and a "
            "second kind would be mixed up with them: start from one that was trained with 'frozen' or 'full'"
        )
    if TRAINED[:-1] in str(config.target_modules):
        _reveal_backbone(model)
    origin = model.config._name_or_path or None
    base = base or config.base_model_name_or_path or origin
    if config.revision is None and base == origin:
        config.revision = model.loaded_commit
    config.base_model_name_or_path = None  # peft warns when it is not where this model was loaded from
    adapters: PeftModel | None = adapters_in(model)
    if adapters is None:
        adapters = peft.get_peft_model(model, config, adapter_name=name)
        model.__dict__[_HELD] = adapters  # past nn.Module's registration: it holds the model
    else:
        adapters.add_adapter(name, config)
        adapters.set_adapter(name, inference_mode=config.inference_mode)
    assert adapters is not None
    adapters.peft_config[name].base_model_name_or_path = base
    _freeze_other_bodies(adapters, name)
    return adapters


def adapters_in(model: BackbonePreTrainedModel) -> PeftModel | None:
    """peft's view of a model that has adapters: `set_adapter`, `disable_adapter`, `base_model.merge_adapter`, ..."""
    return model.__dict__.get(_HELD)


def adapts_backbone(model: BackbonePreTrainedModel) -> bool:
    """Whether an adapter reaches into the backbone, so that its features change."""
    return adapters_in(model) is not None and any(
        ".lora_" in name for name, _ in model.named_parameters() if name.startswith(TRAINED)
    )


def adapter_tensors(model: BackbonePreTrainedModel, name: str | None = None) -> dict[str, Tensor]:
    """What `adapter_model.safetensors` has: the adapter's tensors, the model's own and no copies, by peft's names.

    `name`: of which adapter; default: of the active one.
    """
    adapters = _require_adapters(model)
    tensors: dict[str, Tensor] = _peft().get_peft_model_state_dict(
        adapters, adapter_name=name or adapters.active_adapter, save_embedding_layers=False
    )
    return tensors


def save_adapter(model: BackbonePreTrainedModel, folder: str | os.PathLike[str], name: str | None = None) -> None:
    """Writes `adapter_config.json`, `adapter_model.safetensors`, and the `config.json` of base and new bodies.

    `name`: of which adapter; default: of the active one.
    """
    place, adapters = Path(folder), _require_adapters(model)
    place.mkdir(parents=True, exist_ok=True)
    config = copy.copy(adapters.peft_config[name or adapters.active_adapter])
    config.inference_mode = True
    tensors = {key: tensor.contiguous() for key, tensor in adapter_tensors(model, name).items()}
    save_file(tensors, place / ADAPTER_FILE, metadata={"format": "pt"})
    config.save_pretrained(str(place))
    model.config.save_pretrained(place)


def load_adapter(
    model: BackbonePreTrainedModel, place: str | os.PathLike[str], name: str = DEFAULT, **hub: Any
) -> PeftModel:
    """Puts the adapter of a folder or Hub id into its base; bodies that `model` lacks are added to it.

    Bodies go by name: two adapters that each brought a robot to one base can be in one model.

    Raises:
        ValueError: when the base has such a body with other dims, or the adapter's tensors are not those that this
            model has a place for (it was trained on another base).
    """
    config = _peft().PeftConfig.from_pretrained(str(place), **hub)
    config.inference_mode = True
    theirs = PriorVLAConfig.from_pretrained(str(place), **hub).expert
    ids = _ids_here(model, theirs, _own_bodies(config))
    config.modules_to_save = [_renumbered(module, ids) for module in config.modules_to_save or []] or None
    adapters = add_adapter(model, config, name)
    read_adapter(model, place, name, ids, **hub)
    adapters.eval()
    return adapters


@torch.no_grad()
def read_adapter(
    model: BackbonePreTrainedModel,
    place: str | os.PathLike[str],
    name: str = DEFAULT,
    ids: dict[int, int] | None = None,
    **hub: Any,
) -> None:
    """Reads saved tensors into an adapter that is there already. `ids`: of the bodies there -> here, if they differ.

    Raises ValueError when a tensor is missing, too many, or of another shape.
    """
    own_bodies = set(_own_bodies(_require_adapters(model).peft_config[name]))
    ids = {body: body for body in own_bodies} if ids is None else ids
    saved = load_file(str(cached_file(str(place), ADAPTER_FILE, **hub)))
    saved = {_renumbered(key, ids): tensor for key, tensor in saved.items() if _bodies_in(key) <= set(ids)}
    wanted = {key: own for key, own in adapter_tensors(model, name).items() if _bodies_in(key) <= own_bodies}
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
        wanted[key].copy_(tensor)
    # peft has loaded silently nothing before; what is computed with must be what was saved
    now = adapter_tensors(model, name)
    assert all(torch.equal(now[key], tensor.to(now[key])) for key, tensor in saved.items())


def commit_of(place: str | os.PathLike[str] | None, **hub: Any) -> str | None:
    """The commit on the Hub that `from_pretrained(place, **hub)` means; None of a folder, or where none is known.

    Raises OSError when there is no such repository or revision; not with `local_files_only`.
    """
    if place is None or os.path.isdir(place):
        return None
    absent = {"_raise_exceptions_for_missing_entries": False} if hub.get("local_files_only") else {}
    return extract_commit_hash(cached_file(str(place), CONFIG_NAME, **absent, **hub), None)


def adapter_place(place: str | os.PathLike[str] | None, arguments: dict[str, Any]) -> str | None:
    """The folder or Hub id of an adapter, where `from_pretrained(place, **arguments)` was called with one.

    AutoModel has already gone on to the base when it calls a model's `from_pretrained`, and says so in
    `adapter_kwargs`, which is taken out of `arguments`.
    """
    own = arguments.pop("adapter_kwargs", None) or {}
    if (told := own.get("_adapter_model_path")) is not None:
        arguments["revision"] = own.get("revision")  # the other is the base's by now
        return str(told)
    if place is None:
        return None
    hub = {key: value for key, value in arguments.items() if key in HUB_ARGUMENTS}
    return str(place) if find_adapter_config_file(str(place), **hub) else None


def load_adapted(
    model_class: type[BackbonePreTrainedModel],
    place: str | os.PathLike[str],
    *,
    base: str | os.PathLike[str] | None = None,
    backbone: BackboneSource | None = "auto",
    backbone_quantization: str | None = "auto",
    **arguments: Any,
) -> Any:
    """The model of an adapter's base with the adapter in it, from the adapter's folder or Hub id alone.

    Args:
        base: instead of the one that the adapter names, as it is now.
        backbone: as `from_pretrained`'s. backbone_quantization too; "auto" is what the adapter was trained beside.
        arguments: of the base's `from_pretrained`; `revision` is the adapter's.

    Raises:
        ValueError: when the adapter names no base and none is given. OSError: when the base is not found.
    """
    hub = {key: arguments.pop(key) for key in HUB_ARGUMENTS if key in arguments}
    config = _peft().PeftConfig.from_pretrained(str(place), **hub)
    arguments.pop("config", None)  # AutoModel's, of the adapter's folder: without the weights of new bodies in the base
    source = base if base is not None else config.base_model_name_or_path
    if source is None:
        raise ValueError(f"{place}: {ADAPTER_CONFIG_FILE} names no base_model_name_or_path: pass base=")
    revision = (config.revision if base is None else None) or "main"
    if backbone_quantization == "auto":
        reference = PriorVLAConfig.from_pretrained(str(place), **hub).backbone
        backbone_quantization = (reference or {}).get("quantization")
    model = model_class.from_pretrained(
        source,
        backbone=backbone,
        backbone_quantization=backbone_quantization,
        **arguments,
        **{**hub, "revision": revision},
    )
    load_adapter(model, place, **hub)
    return model.eval()


def merge_adapter(model: BackbonePreTrainedModel) -> BackbonePreTrainedModel:
    """Adds the active adapter to the weights and forgets all adapters; the same model, a checkpoint of its own now.

    A backbone that was adapted counts as trained in full from now on, and will be saved.

    Raises ValueError when there is no adapter, or it would have to be rounded to a backbone's integers.
    """
    adapted = adapts_backbone(model)
    if adapted and (kind := getattr(model.backbone, "quantization", None)) is not None:
        raise ValueError(
            f"the adapter reaches into a backbone with quantization={kind!r}, whose integers have no room for it: keep "
            "it as it is, load with backbone_quantization=None and merge then, or train one with preset 'expert'"
        )
    _require_adapters(model).merge_and_unload(safe_merge=True)
    del model.__dict__[_HELD]
    if adapted:
        model.config.backbone_training = "full"
    return model


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise ImportError("adapters need peft: run pip install 'priorvla[peft]'") from error
    return peft


def _require_adapters(model: BackbonePreTrainedModel) -> PeftModel:
    adapters = adapters_in(model)
    if adapters is None:
        raise ValueError("there is no adapter in this model: put one in with add_adapter or load_adapter")
    return adapters


def _reveal_backbone(model: BackbonePreTrainedModel) -> None:
    if model.backbone is None:
        raise ValueError("the adapter goes into the backbone, and none is attached: call model.attach_backbone()")
    if TRAINED[:-1] not in model._modules:
        model._modules[TRAINED[:-1]] = backbone = copy.deepcopy(model.backbone)
        without_dropout(backbone)
        model.__dict__["_frozen_backbone"] = None


def _freeze_other_bodies(adapters: PeftModel, name: str) -> None:
    """Soft tokens are saved as a whole; those of other bodies do not move."""
    own = _own_bodies(adapters.peft_config[name])
    for module, part in adapters.named_modules():
        if isinstance(part, SoftTokens) and module.endswith(f"modules_to_save.{name}"):
            for body, tokens in enumerate(part.tokens):
                if body not in own:
                    tokens.requires_grad_(False)


def _own_bodies(config: Any) -> list[int]:
    """The ids of the bodies whose own parts an adapter has."""
    return sorted({body for module in config.modules_to_save or [] for body in _bodies_in(module)})


def _bodies_in(tensor: str) -> set[int]:
    """The id of the body whose own a tensor or module is, by its name; empty for a shared one."""
    return {int(found.group(2)) for found in _BODY.finditer(tensor)}


def _renumbered(tensor: str, ids: dict[int, int]) -> str:
    return _BODY.sub(lambda found: f"{found.group(1)}.{ids[int(found.group(2))]}", tensor)


def _ids_here(model: BackbonePreTrainedModel, theirs: ExpertConfig, bodies: list[int]) -> dict[int, int]:
    """The ids in `model` of the adapter's own bodies; those that it lacks are added."""
    ids = {}
    for body in bodies:
        name, dims = theirs.embodiments[body], (theirs.action_dims[body], theirs.state_dims[body])
        ours: ExpertConfig = model.config.expert
        if name not in ours.embodiments:
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


__all__ = [
    "ADAPTER_CONFIG_FILE",
    "ADAPTER_FILE",
    "adapter_place",
    "adapter_tensors",
    "adapters_in",
    "adapts_backbone",
    "add_adapter",
    "commit_of",
    "load_adapted",
    "load_adapter",
    "merge_adapter",
    "read_adapter",
    "save_adapter",
]
