"""Which weights of a backbone are trained: none, low-rank adapters beside its attention, or all that features need."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from .backbone_features import Backbone

LORA_DEFAULTS = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.0}  # our choice; target_modules: see attention_maps
ATTENTION_MAPS = (
    *("q_proj", "k_proj", "v_proj", "o_proj", "out_proj"),
    *("query", "key", "value", "attention.output.dense"),
    *("attn.qkv", "attn.proj", "projection_layer"),  # of Qwen-VL's and InternVL's vision towers
)


def train_backbone(backbone: Backbone, mode: str, lora: Mapping[str, Any] | None = None) -> None:
    """Says which weights of `backbone` get gradients; everything else of it is frozen.

    Args:
        mode: `frozen`: none. `lora`: peft adapters on the attention's query, key, value and output maps, put in here,
            float32 whatever the backbone's dtype. They start without effect (B = 0), to the bit. `full`: every weight
            that a feature comes through, in the dtype that it was loaded in; load it in float32 for training, because
            small steps vanish in bfloat16.
        lora: `r`, `lora_alpha`, `lora_dropout`, `target_modules` of peft's LoraConfig, over `LORA_DEFAULTS`.

    Raises:
        ValueError: on an unknown mode or field of `lora`, when the backbone has adapters already, when none of its
            modules is known to be an attention map, or when quantized weights are to be trained.
        ImportError: when peft is not installed.
    """
    if mode not in ("frozen", "lora", "full"):
        raise ValueError(f"backbone_training={mode!r} is unknown, use frozen, lora or full")
    if mode == "full" and backbone.quantization is not None:
        raise ValueError(
            f"backbone_training='full' with quantization={backbone.quantization!r}: its maps have no gradients. Train "
            "adapters beside them ('lora', or finetune --preset all), or load with backbone_quantization=None"
        )
    backbone.requires_grad_(mode == "full")
    for name, parameter in backbone.model.named_parameters():
        if backbone.is_unused(name):
            parameter.requires_grad_(False)
    if mode != "frozen":
        backbone.changes = True
        without_dropout(backbone)
    if mode == "lora":
        _add_adapters(backbone, {**LORA_DEFAULTS, **(lora or {})})
    backbone.train(backbone.training)


def without_dropout(backbone: nn.Module) -> None:
    """Turns a backbone's own dropout off, in place, as in a frozen one (our choice).

    It would come from each process's generator, so that a run would depend on how many share it. `lora_dropout` is
    another and can be asked for.
    """
    for part in backbone.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0


def attention_maps(backbone: Backbone) -> list[str]:
    """Names, within `backbone.model`, of the linear maps of attention that features come through."""
    return [
        name
        for name, module in backbone.model.named_modules()
        if isinstance(module, nn.Linear)
        and name.endswith(tuple(f".{suffix}" for suffix in ATTENTION_MAPS))
        and not backbone.is_unused(name)
    ]


def _add_adapters(backbone: Backbone, settings: dict[str, Any]) -> None:
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ImportError("backbone_training='lora' needs peft: run pip install 'priorvla[peft]'") from error

    if unknown := sorted(settings.keys() - {*LORA_DEFAULTS, "target_modules"}):
        raise ValueError(f"lora has no field {unknown[0]!r}, there are: {', '.join(LORA_DEFAULTS)}, target_modules")
    if any(".lora_" in name for name, _ in backbone.named_parameters()):
        raise ValueError("this backbone has adapters already: load another one, or leave backbone_training as it was")
    settings.setdefault("target_modules", attention_maps(backbone))
    if not settings["target_modules"]:
        raise ValueError(
            f"no attention map is known in a {type(backbone.model).__name__}: name the modules that adapters go beside "
            "as lora={'target_modules': [...]}"
        )
    inject_adapter_in_model(LoraConfig(**settings), backbone.model)
    for name, parameter in backbone.named_parameters():
        if ".lora_" in name:
            parameter.data = parameter.data.float()
        parameter.requires_grad_(".lora_" in name)


__all__ = ["LORA_DEFAULTS", "attention_maps", "train_backbone", "without_dropout"]
