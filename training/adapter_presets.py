"""Which layers of a policy a LoRA adapter goes beside, by name: the expert's, the backbone's, or both."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ..modeling_priorvla.adapters import require_policy, require_reversible
from ..modeling_priorvla.adding_embodiments import embodiment_index
from ..modeling_priorvla.attached_backbone import TRAINED
from ..modeling_priorvla.backbone_training import attention_maps
from ..modeling_priorvla.layers import EmbodimentLinear, SoftTokens
from ..modeling_priorvla.modeling_priorvla import PriorVLAModel
from .finetune_options import ADAPTER_PRESETS, DEFAULT_RANK

if TYPE_CHECKING:
    from peft import LoraConfig

# Attention and MLP of every layer of the policy's own, and how it takes in what the backbone sees and reads.
EXPERT_TARGETS = r"(expert|fusion)\.layers\.\d+\..*(q|k|v|o|gate|up|down|memory)_proj|memory\.(vision|words)_proj\.\d+"


def lora_config(
    model: PriorVLAModel,
    preset: str = "all",
    embodiments: Iterable[str] = (),
    *,
    rank: int = DEFAULT_RANK,
    alpha: int | None = None,
    **fields: Any,
) -> LoraConfig:
    """peft's config of an adapter of `model`, for `VLATrainer(..., peft_config=)`.

    Args:
        preset: `expert` (attention and MLP of the policy's own layers), `backbone` (its attention), or `all` of these.
        embodiments: names of bodies whose own soft tokens and projections are trained and saved in full; add a new
            body with `model.add_embodiment` before. Everybody else's stay as they are, to the bit.
        rank, alpha: of the low-rank maps; alpha is 2 x rank by default (our choice: peft's and the papers' habit).
        fields: further ones of `LoraConfig`, over these: `use_dora`, `use_rslora`, `lora_dropout`, ...

    Raises:
        ValueError: when the model is no policy; on an unknown preset, body or field, one that would change the base's
            own weights, or a rank below 1; when a backbone is wanted that is not attached or in which no attention map
            is known.
        ImportError: when peft is not installed.
    """
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise ImportError("adapters need peft: run pip install 'priorvla[peft]'") from error

    require_policy(model)
    if preset not in ADAPTER_PRESETS:
        raise ValueError(f"preset={preset!r} is unknown, use {', '.join(ADAPTER_PRESETS)}")
    if rank < 1:
        raise ValueError(f"rank={rank} must be at least 1")
    if unknown := sorted(fields.keys() - LoraConfig.__dataclass_fields__.keys()):
        raise ValueError(f"peft's LoraConfig has no field {unknown[0]!r}: see its documentation")
    targets = []
    if preset != "backbone":
        targets.append(EXPERT_TARGETS)
    if preset != "expert":
        targets.append(backbone_targets(model))
    settings: dict[str, Any] = {
        "r": rank,
        "lora_alpha": 2 * rank if alpha is None else alpha,
        "target_modules": "|".join(targets),
        "modules_to_save": _own_modules(model, embodiments) or None,
    }
    config = LoraConfig(**{**settings, **fields})
    require_reversible(config)
    return config


def backbone_targets(model: PriorVLAModel) -> str:
    """Regular expression of exactly the attention maps of the attached backbone that features come through.

    It is read off the backbone's own modules, so that every family has its own: names that differ in numbers alone
    become one, unless that would take in others.

    Raises ValueError when no backbone is attached, or none of its modules is known to be an attention map.
    """
    backbone = model.backbone
    if backbone is None:
        raise ValueError("preset 'backbone' or 'all' needs the backbone: call model.attach_backbone()")
    wanted = set(attention_maps(backbone))
    if not wanted:
        raise ValueError(
            f"no attention map is known in a {type(backbone.model).__name__}: use preset 'expert', or name modules "
            "with target_modules="
        )
    general = {re.sub(r"(?<=\\\.)\d+", lambda _: r"\d+", re.escape(name)) for name in wanted}
    pattern = "|".join(sorted(general))
    if {name for name, _ in backbone.model.named_modules() if re.fullmatch(pattern, name)} != wanted:
        pattern = "|".join(re.escape(name) for name in sorted(wanted))
    return re.escape(f"{TRAINED}model.") + f"({pattern})"


def _own_modules(model: PriorVLAModel, embodiments: Iterable[str]) -> list[str]:
    """Full names of the modules that are the bodies' own: no other module's name ends like one of them.

    The trajectory encoder's are among them where acting uses it.
    """
    ids = [embodiment_index(model.config.expert, name) for name in embodiments]
    modules = []
    for name, part in model.named_modules():
        if name.startswith("encoder.") and not model.config.use_history:
            continue
        if isinstance(part, SoftTokens) and ids:
            modules.append(name)
        elif isinstance(part, EmbodimentLinear):
            modules += [f"{name}.projections.{index}" for index in ids]
    return modules


__all__ = ["backbone_targets", "lora_config"]
