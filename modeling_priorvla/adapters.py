"""A LoRA adapter beside a policy that stays as it was published: put in, saved alone, found again with its base.

An adapter is peft's: low-rank maps beside the policy's own layers and, if asked for, its backbone's, and in full the
soft tokens and projections of the bodies that it was trained for. It is another thing than `config.backbone_training`
"lora", whose maps are weights of a checkpoint of rung 3; both use peft, and `attention_maps` to find their places.
"""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.dynamic_module_utils import custom_object_save
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, logging
from transformers.utils.hub import cached_file

from ..configuration.adapter_files import ADAPTER_CONFIG_FILE, ADAPTER_FILE, bodies_in, own_bodies, renumbered
from ..configuration.configuration_priorvla import PriorVLAConfig
from .adapter_bases import base_sha256, overrides, require_same_base
from .adapter_bodies import config_alone, ids_alone, ids_here
from .adapter_places import HUB_ARGUMENTS, lasting_place
from .adapter_tensors import HELD, adapter_tensors, adapters_in, copy_tensors, double_of, load_peft, require_adapters
from .adding_embodiments import embodiment_index
from .attached_backbone import TRAINED, BackbonePreTrainedModel, BackboneSource
from .backbone_training import train_backbone, without_dropout
from .layers import SoftTokens

if TYPE_CHECKING:
    try:  # noqa: SIM105, guarded in this way transformers does not take it for what bundled code cannot do without
        from peft import LoraConfig, PeftModel
    except ImportError:
        pass

DEFAULT = "default"  # peft's name of the only adapter
STARTS = (True, False, "gaussian", "orthogonal")  # of peft's init_lora_weights, those that leave the base's weights be
ELSEWHERE = {"base_model_name_or_path", "revision", "inference_mode", "peft_version", "modules_to_save"}

logger = logging.get_logger(__name__)


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
        ValueError: when the model is no policy, the checkpoint has backbone adapters of its own, a backbone is to be
            reached and there is none, there is an adapter of that name, or the config would change the base's weights.
        ImportError: when peft is not installed.
    """
    load_peft()
    require_policy(model)
    require_reversible(config)
    if model.config.backbone_training == "lora":
        raise ValueError(
            "this checkpoint has adapters in its backbone among its own weights (backbone_training='lora'), and a "
            "second kind would be mixed up with them: start from one that was trained with 'frozen' or 'full'"
        )
    origin = model.config._name_or_path or None
    base = base or config.base_model_name_or_path or origin
    if config.revision is None and base == origin:
        config.revision = model.loaded_commit
    config.base_model_name_or_path = lasting_place(base)
    if adapters_in(model) is None:
        model.base_sha256 = base_sha256(model, base)
    return _put_in(model, config, name)


def require_policy(model: Any) -> None:
    """Raises ValueError when `model` is of a kind that no adapter goes into."""
    if not isinstance(model, BackbonePreTrainedModel):
        raise ValueError(f"an adapter goes into a policy (PriorVLAModel), this is a {type(model).__name__}")


def require_reversible(config: LoraConfig) -> None:
    """Raises ValueError on what would train or change weights of the base itself, so that it never acts as before."""
    bias, start = getattr(config, "bias", "none"), getattr(config, "init_lora_weights", True)
    if bias != "none":
        raise ValueError(f"lora.bias={bias!r} would train the base's own weights: leave it at 'none'")
    if start not in STARTS:
        known = ", ".join(map(repr, STARTS))
        raise ValueError(f"lora.init_lora_weights={start!r} would change the base's own weights: use one of {known}")


def adapts_backbone(model: BackbonePreTrainedModel) -> bool:
    """Whether an adapter reaches into the backbone, so that its features change."""
    return adapters_in(model) is not None and any(
        ".lora_" in name for name, _ in model.named_parameters() if name.startswith(TRAINED)
    )


def save_adapter(model: BackbonePreTrainedModel, folder: str | os.PathLike[str], name: str | None = None) -> None:
    """Writes `adapter_config.json`, `adapter_model.safetensors`, and the `config.json` of base and own bodies.

    Bodies that other adapters brought into `model` are left out. Whole weights that were in the folder are removed.

    `name`: of which adapter; default: of the active one. Raises ValueError when the base lies in the folder.
    """
    place, adapters = Path(folder), require_adapters(model)
    name = name or adapters.active_adapter
    config: Any = copy.copy(adapters.peft_config[name])
    for base in (config.base_model_name_or_path, model.config._name_or_path):
        if base and os.path.isdir(base) and place.resolve() == Path(base).resolve():
            raise ValueError(f"{place} is the adapter's base, which would be replaced: save it in another folder")
    place.mkdir(parents=True, exist_ok=True)
    ids = ids_alone(model, own_bodies(config.modules_to_save))
    config.inference_mode = True
    config.modules_to_save = sorted(renumbered(module, ids) for module in config.modules_to_save or []) or None
    tensors = {
        renumbered(key, ids): tensor.contiguous()
        for key, tensor in adapter_tensors(model, name).items()
        if bodies_in(key) <= ids.keys()
    }
    alone = config_alone(model, ids)
    if model.base_sha256 is not None:
        alone.adapter_base_sha256 = model.base_sha256
    for field in ("auto_map", "base_model", "base_model_revision"):  # the base's: where its code is, what it came from
        alone.__dict__.pop(field, None)
    if model._auto_class is not None:  # of a class that came with a checkpoint: its code goes along
        custom_object_save(model, place, config=cast(Any, alone))
    save_file(tensors, place / ADAPTER_FILE, metadata={"format": "pt"})
    config.save_pretrained(str(place))
    alone.save_pretrained(place)
    for file in (*place.glob("model*.safetensors"), place / SAFE_WEIGHTS_INDEX_NAME):
        file.unlink(missing_ok=True)


def load_adapter(
    model: BackbonePreTrainedModel, place: str | os.PathLike[str], name: str = DEFAULT, **hub: Any
) -> PeftModel:
    """Puts the adapter of a folder or Hub id into its base; bodies that `model` lacks are added to it.

    Bodies go by name: two adapters that each brought a robot to one base can be in one model. One of these robots has
    another id then than in the processor that was saved with its adapter: `processor_for(model, place, ...)` makes the
    one that fits.

    Raises:
        ValueError: when the adapter was trained on another base, the base has such a body with other dims, or the
            adapter's tensors are not those that this model has a place for. The model is unchanged then.
    """
    require_policy(model)
    config = load_peft().PeftConfig.from_pretrained(str(place), **hub)
    config.inference_mode = True
    theirs = PriorVLAConfig.from_pretrained(str(place), **hub)
    found = model.base_sha256 if adapters_in(model) is not None else base_sha256(model, None)
    require_same_base(theirs, found, place)
    saved = load_file(str(cached_file(str(place), ADAPTER_FILE, **hub)))
    with double_of(model, TRAINED[:-1] in str(config.target_modules)) as double:
        _load_into(double, config, theirs, saved, name, place)  # whatever cannot be is refused here
    adapters = _load_into(model, config, theirs, saved, name, place)
    model.base_sha256 = found
    for body in own_bodies(config.modules_to_save):
        robot = theirs.expert.embodiments[body]
        if (here := embodiment_index(model.config.expert, robot)) != body:
            logger.warning(
                f"{robot!r} is embodiment {here} in this model and {body} in the processor that was saved with its "
                "adapter: use priorvla.processor_for(model, ...)"
            )
    adapters.eval()
    return adapters


def read_adapter(model: BackbonePreTrainedModel, place: str | os.PathLike[str], name: str = DEFAULT) -> None:
    """Reads the adapter of a folder into the same one that is in `model` already, to go on with its training.

    Raises ValueError when it has another base or other settings, or a tensor is missing, too many or of another shape.
    """
    now = require_adapters(model).peft_config[name]
    then = load_peft().PeftConfig.from_pretrained(str(place))
    theirs = PriorVLAConfig.from_pretrained(str(place))
    require_same_base(theirs, model.base_sha256, place)
    ours, before = now.to_dict(), then.to_dict()
    for field in sorted(ours.keys() & before.keys() - ELSEWHERE):
        if ours[field] != before[field]:
            raise ValueError(
                f"{place}: trained with {field}={before[field]!r}, which is {ours[field]!r} here: go on with the "
                "settings that it began with"
            )
    saved = load_file(Path(place) / ADAPTER_FILE)
    copy_tensors(model, saved, name, ids_here(model, theirs.expert, own_bodies(then.modules_to_save)), place)


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
        base: where the base lies, instead of where the adapter says.
        backbone: as `from_pretrained`'s. backbone_quantization too; "auto" is what the adapter was trained beside.
        arguments: of the base's `from_pretrained`; `revision` is the adapter's.

    Raises:
        ValueError: when the adapter names no base and none is given, or was trained on other weights than the base's.
        OSError: when the base is not found.
    """
    hub = {key: arguments.pop(key) for key in HUB_ARGUMENTS if key in arguments}
    config = load_peft().PeftConfig.from_pretrained(str(place), **hub)
    # AutoModel's may be of the adapter's folder, with new bodies whose weights are not in the base.
    arguments = {**overrides(arguments.pop("config", None), place, hub), **arguments}
    source = base if base is not None else config.base_model_name_or_path
    if source is None:
        raise ValueError(f"{place}: {ADAPTER_CONFIG_FILE} names no base_model_name_or_path: pass base=")
    revision = (config.revision if base is None else None) or "main"
    if backbone_quantization == "auto":
        reference = PriorVLAConfig.from_pretrained(str(place), **hub).backbone
        backbone_quantization = (reference or {}).get("quantization")
    loaded = model_class.from_pretrained(
        source,
        backbone=backbone,
        backbone_quantization=backbone_quantization,
        **arguments,
        **{**hub, "revision": revision},
    )
    model = loaded[0] if isinstance(loaded, tuple) else loaded  # with output_loading_info=True
    load_adapter(model, place, **hub)
    model.eval()
    return loaded


def merge_adapter(model: BackbonePreTrainedModel) -> BackbonePreTrainedModel:
    """Adds the active adapter to the weights and forgets all adapters; the same model, a checkpoint of its own now.

    It is trained again like any other. A backbone that was adapted counts as trained in full from now on, and will be
    saved. A base on the Hub is named in the config, `base_model` and `base_model_revision`.

    Raises ValueError when there is no adapter, or it would have to be rounded to a backbone's integers.
    """
    adapted = adapts_backbone(model)
    if adapted and (kind := getattr(model.backbone, "quantization", None)) is not None:
        raise ValueError(
            f"the adapter reaches into a backbone with quantization={kind!r}, whose maps have no room for it: keep "
            "it as it is, load with backbone_quantization=None and merge then, or train one with preset 'expert'"
        )
    adapters = require_adapters(model)
    base = adapters.peft_config[adapters.active_adapter]
    adapters.merge_and_unload(safe_merge=True)
    del model.__dict__[HELD]
    if adapted:
        model.config.backbone_training = "full"
    model.requires_grad_(True)
    if TRAINED[:-1] in model._modules and model.backbone is not None:
        train_backbone(model.backbone, model.config.backbone_training)
    if base.base_model_name_or_path and not os.path.isabs(base.base_model_name_or_path):
        model.config.base_model, model.config.base_model_revision = base.base_model_name_or_path, base.revision
    model.config._name_or_path, model.loaded_from, model.loaded_commit = "", None, None  # it lies nowhere yet
    model.base_sha256 = model.base_embodiments = None
    return model


def _put_in(model: BackbonePreTrainedModel, config: LoraConfig, name: str) -> PeftModel:
    """What `add_adapter` does once it is known what and where."""
    adapters: PeftModel | None = adapters_in(model)
    if adapters is not None and name in adapters.peft_config:
        raise ValueError(f"there is an adapter {name!r} in this model already: give this one another name")
    if TRAINED[:-1] in str(config.target_modules):
        _reveal_backbone(model)
    base, config.base_model_name_or_path = config.base_model_name_or_path, None  # peft warns of one that it cannot find
    if model.base_embodiments is None:
        model.base_embodiments = list(model.config.expert.embodiments)
    if adapters is None:
        adapters = load_peft().get_peft_model(model, config, adapter_name=name)
        model.__dict__[HELD] = adapters  # past nn.Module's registration: it holds the model
    else:
        adapters.add_adapter(name, config)
        adapters.set_adapter(name, inference_mode=config.inference_mode)
    assert adapters is not None
    adapters.peft_config[name].base_model_name_or_path = base
    _freeze_other_bodies(adapters, name)
    return adapters


def _load_into(
    model: BackbonePreTrainedModel,
    config: LoraConfig,
    theirs: PriorVLAConfig,
    saved: dict[str, Tensor],
    name: str,
    place: str | os.PathLike[str],
) -> PeftModel:
    config = copy.deepcopy(config)
    if model.base_embodiments is None:
        model.base_embodiments = list(model.config.expert.embodiments)
    ids = ids_here(model, theirs.expert, own_bodies(config.modules_to_save), add=True)
    config.modules_to_save = sorted(renumbered(module, ids) for module in config.modules_to_save or []) or None
    adapters = _put_in(model, config, name)
    copy_tensors(model, saved, name, ids, place)
    return adapters


def _reveal_backbone(model: BackbonePreTrainedModel) -> None:
    if model.backbone is None:
        raise ValueError("the adapter goes into the backbone, and none is attached: call model.attach_backbone()")
    if TRAINED[:-1] not in model._modules:
        model._modules[TRAINED[:-1]] = backbone = copy.deepcopy(model.backbone)
        backbone.changes = True
        backbone.truncate(model.config.taps[-1])  # one that is shared is whole: an adapter would go where nobody reads
        without_dropout(backbone)
        model.__dict__["_frozen_backbone"] = None


def _freeze_other_bodies(adapters: PeftModel, name: str) -> None:
    """Soft tokens are saved as a whole; those of other bodies do not move."""
    own = own_bodies(cast("LoraConfig", adapters.peft_config[name]).modules_to_save)
    for module, part in adapters.named_modules():
        if isinstance(part, SoftTokens) and module.endswith(f"modules_to_save.{name}"):
            for body, tokens in enumerate(part.tokens):
                if body not in own:
                    tokens.requires_grad_(False)


__all__ = [
    "ADAPTER_FILE",
    "adapter_tensors",
    "adapters_in",
    "adapts_backbone",
    "add_adapter",
    "load_adapted",
    "load_adapter",
    "merge_adapter",
    "read_adapter",
    "require_policy",
    "require_reversible",
    "save_adapter",
]
