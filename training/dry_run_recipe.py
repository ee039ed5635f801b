"""What a training recipe says of the model and of a step, read without looking for devices, data or weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from ..configuration.configuration_priorvla import PriorVLAConfig
from ..configuration.recipe import checked_fields, load_recipe, require_known
from .observing_arguments import ObservingTrainingArguments
from .run_options import POLICY_FUSION, PRIOR_FUSION, VisionPriorOptions, VLAOptions
from .vla_arguments import VLATrainingArguments

CAMERAS = 2  # of a robot, where nothing says otherwise


@dataclass(frozen=True)
class DryRunRecipe:
    """A recipe of rung 2 or 3.

    Args:
        name: as it was given.
        backbone: packaged backbone, Hub id or folder; dtype, image_size, tokens_per_image: of it, None for its own.
        model: fields of `PriorVLAConfig`, with host, language and cameras.
        prior, insertion, control: see `VLAOptions`.
        training: every training argument that has a plain default, with the recipe's over it.
    """

    name: str
    backbone: str
    dtype: str | None
    image_size: tuple[int, int] | None
    tokens_per_image: int | None
    model: dict[str, Any]
    prior: str | None
    insertion: str | None
    control: bool
    training: dict[str, Any]

    @classmethod
    def read(cls, recipe: str | Path, cameras: int | None = None) -> DryRunRecipe:
        """Of a file or a shipped recipe's name; `cameras` over what it says.

        Raises ValueError naming a key that is no option of the rungs that see; FileNotFoundError as `load_recipe`.
        """
        options = _options(recipe)
        sees_only = options.get("kind") == "vision-action"
        model = checked_fields(PriorVLAConfig, options.get("model") or {}, "model")
        model["num_cameras"] = model.get("num_cameras", CAMERAS) if cameras is None else cameras
        model["fusion"] = options.get("fusion") or (PRIOR_FUSION if sees_only else POLICY_FUSION)
        model["language"] = not sees_only
        owner = ObservingTrainingArguments if sees_only else VLATrainingArguments
        seen = _seen_with(options.get("prior"))
        side = options.get("image_size")
        return cls(
            name=str(recipe),
            backbone=str(options.get("backbone", VLAOptions.backbone)),
            dtype=options.get("backbone_dtype", seen.get("dtype")),
            image_size=seen.get("image_size") if side is None else (side, side),
            tokens_per_image=options.get("image_tokens", seen.get("tokens_per_image")),
            model=model,
            prior=options.get("prior"),
            insertion=options.get("insertion"),
            control=bool(options.get("control")),
            training=_arguments(owner, checked_fields(owner, options.get("training") or {}, "training")),
        )

    @property
    def windows(self) -> int:
        """Of one pass, on one device."""
        return int(self.training["per_device_train_batch_size"])

    @property
    def passes(self) -> int:
        """Of a step: gradients are accumulated over them."""
        return int(self.training["gradient_accumulation_steps"])

    @property
    def distils(self) -> bool:
        """Whether steps begin with distillation, where the model has something to distil."""
        return self.prior is not None and not self.control and self.training.get("distillation_steps") != 0

    def not_counted(self) -> Iterator[str]:
        """Sentences on what the recipe asks for and a dry run leaves out."""
        training = self.training
        if training["bf16"] or training["fp16"]:
            yield "Activations are counted without mixed precision, which makes most of them half as large."
        if training["gradient_checkpointing"]:
            yield "With gradient checkpointing the activations of one layer at a time come on top."
        if "adamw" not in str(training["optim"]).lower():
            yield f"The optimizer's states are counted as AdamW's, the recipe asks for {training['optim']}."


def _seen_with(prior: str | None) -> dict[str, Any]:
    """How a vision-action prior has learned to see with its backbone, which `train` keeps to."""
    reference = None if prior is None else getattr(AutoConfig.from_pretrained(prior), "backbone", None)
    seen = dict(reference or {})
    if seen.get("image_size") is not None:
        seen["image_size"] = tuple(seen["image_size"])
    return seen


def _options(recipe: str | Path) -> dict[str, Any]:
    options = load_recipe(recipe)
    if options.get("kind", "vision-action") != "vision-action":
        raise ValueError(f"{recipe}: kind is {options['kind']!r}, a dry run is of rungs 2 and 3, which have a backbone")
    known = {field.name for owner in (VLAOptions, VisionPriorOptions) for field in fields(owner)}
    require_known(options, {*known - {"datasets"}, "dataset", "kind"}, str(recipe))
    return options


def _arguments(owner: type, given: dict[str, Any]) -> dict[str, Any]:
    """Not as an object of `owner`, which would look for devices."""
    plain = {field.name: field.default for field in fields(owner) if field.default is not MISSING}
    return {**plain, **given}


__all__ = ["CAMERAS", "DryRunRecipe"]
