"""Options of `finetune`, checked before anything heavy is loaded: this module imports no deep learning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..hub_cards.checkpoints import require_checkpoint, split_revision
from .run_options import RunOptions

ADAPTER_PRESETS = ("expert", "backbone", "all")  # LoRA beside these layers
WHOLE_PRESETS = ("expert-only", "full")  # a checkpoint of its own comes out
DEFAULT_RANK = 16
OPTIONS_OF_LORA = {
    "r": "--rank",
    "lora_alpha": "--alpha",
    "target_modules": "--preset",
    "modules_to_save": "--embodiment",
}


@dataclass(frozen=True)
class FinetuneOptions(RunOptions):
    """What `finetune` takes beside `RunOptions`.

    Args:
        base: folder or Hub id (`owner/name`, `owner/name@revision`) of the policy to start from. An adapter finds it
            again under this name, and on the Hub at the commit that it is now.
        embodiment: the robot's name: one that the base knows goes on with its statistics, another is added to it.
            None is the name that the datasets say.
        preset: `expert`, `backbone`, `all`: LoRA beside these layers, and the robot's own parts in full; what is saved
            is the adapter. `expert-only` trains all weights but the backbone's, `full` those too; a whole checkpoint is
            saved.
        rank, alpha: of LoRA; alpha None is 2 x rank.
        lora: further fields of peft's `LoraConfig`: `use_dora`, `use_rslora`, `lora_dropout`, ...
        like: a body of the base whose own parts a new robot starts from, where the widths agree; None is at random.
        backbone: folder or Hub id to take the backbone from; `auto` is what the base names.
        backbone_quantization: `int8` or `nf4`: the adapter is trained beside such a backbone, and finds it so again;
            None is the base's.
        frame_stride, cache_dir, max_cache_gb, listening: as of `train`.
    """

    base: str | None = None
    embodiment: str | None = None
    preset: str = "all"
    rank: int = DEFAULT_RANK
    alpha: int | None = None
    lora: Mapping[str, Any] | None = None
    like: str | None = None
    backbone: str = "auto"
    backbone_quantization: str | None = None
    frame_stride: int = 1
    cache_dir: Path | None = None
    max_cache_gb: float = 20.0
    listening: int = 32

    def check(self) -> None:
        """As `RunOptions.check`; raises FileNotFoundError when `base` is no checkpoint."""
        super().check()
        if self.base is None:
            raise ValueError("--base is missing: name the policy to start from, a folder or Hub id")
        if self.preset not in (*ADAPTER_PRESETS, *WHOLE_PRESETS):
            raise ValueError(f"--preset {self.preset} is unknown, use {', '.join((*ADAPTER_PRESETS, *WHOLE_PRESETS))}")
        for option, value in (("--rank", self.rank), ("--alpha", self.alpha), ("--frame-stride", self.frame_stride)):
            if value is not None and value < 1:
                raise ValueError(f"{option} {value} must be at least 1")
        if not self.max_cache_gb > 0:
            raise ValueError(f"--max-cache-gb {self.max_cache_gb} must be positive")
        if self.listening < 0 or self.listening == 1:
            raise ValueError(f"--listening {self.listening} must be 0 or at least 2")
        if self.preset == "full" and self.backbone_quantization is not None:
            raise ValueError(
                f"--backbone-quantization {self.backbone_quantization} with --preset full: its maps have no gradients, "
                "leave it out, or train an adapter beside them (--preset all)"
            )
        if self.model:
            raise ValueError(f"model.{min(self.model)} cannot be set: the policy is the base's")
        if clash := sorted(OPTIONS_OF_LORA.keys() & (self.lora or {}).keys()):
            raise ValueError(f"lora.{clash[0]} is an option of the command itself: give {OPTIONS_OF_LORA[clash[0]]}")
        if self.preset in WHOLE_PRESETS:
            given = {"lora": self.lora, "--rank": self.rank != DEFAULT_RANK, "--alpha": self.alpha is not None}
            for option in (option for option, value in given.items() if value):
                raise ValueError(
                    f"{option} is of adapters, and --preset {self.preset} trains whole weights: leave it out"
                )
        require_checkpoint(split_revision(self.base)[0], "--base")


__all__ = ["ADAPTER_PRESETS", "WHOLE_PRESETS", "FinetuneOptions"]
