"""`priorvla info --dry-run`: what a training recipe will cost, from shapes alone, without weights and without data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from ..configuration.configuration_priorvla import PriorVLAConfig
from ..modeling_priorvla.attached_backbone import TRAINED
from ..modeling_priorvla.backbone import Backbone
from ..modeling_priorvla.expert_layer import ExpertLayer
from ..modeling_priorvla.modeling_priorvla import PriorVLAModel
from .dry_run_recipe import DryRunRecipe
from .meta_pass import FlopCount, meta_pass
from .meta_policy import known_backbone, meta_backbone, meta_batch, meta_draws, meta_policy
from .step_costs import StepCosts, bytes_of, step_costs

WORDS = 32  # tokens that a processor makes of every instruction
ADAM_STATES = 2  # AdamW's moments, in the dtype of the weights


@dataclass(frozen=True)
class DryRun:
    """What a run of a recipe will cost on one device.

    Args:
        recipe, backbone, origin: names, and where the backbone's shape was taken from.
        config: of the model.
        image_size, tokens_per_image: see `BackboneShape`. words: tokens of an instruction.
        layers_kept, layers: of the backbone's.
        windows: of one pass on one device. passes: of a step (gradient accumulation).
        parameters: part -> (trained, frozen), in numbers.
        memory: what is held -> bytes. Together they are slightly more than a step ever holds of it at once: gradients
            come while activations go.
        cached: whether a step begins with cached features, as every frozen backbone's do that no tail goes on with.
        frame_bytes: of a frame's cached features.
        step_flops, step_flops_without_backbone: forward and backward, the first with the images and words of every
            window going through the backbone; the second None where the backbone makes z'.
        frame_flops: of encoding one frame (all cameras) and its instruction for the cache; None without one.
        not_counted: sentences on what the recipe asks for beside.
    """

    recipe: str
    backbone: str
    origin: str
    config: PriorVLAConfig
    image_size: tuple[int, int]
    tokens_per_image: int
    words: int
    layers_kept: int
    layers: int
    windows: int
    passes: int
    parameters: dict[str, tuple[int, int]]
    memory: dict[str, int]
    cached: bool
    frame_bytes: int
    step_flops: int
    step_flops_without_backbone: int | None
    frame_flops: int | None
    not_counted: tuple[str, ...] = ()

    @property
    def memory_bytes(self) -> int:
        """All of `memory`."""
        return sum(self.memory.values())

    @property
    def flops(self) -> int:
        """Of a step as the recipe takes it."""
        without = self.step_flops_without_backbone
        return without if self.cached and without is not None else self.step_flops


def dry_run(recipe: str | Path, *, cameras: int | None = None, words: int = WORDS) -> DryRun:
    """Builds model and batch of a recipe of rung 2 or 3 on the meta device, and takes a step.

    Args:
        recipe: a YAML file or a shipped recipe's name, as `priorvla train --config` takes it.
        cameras: of the robot; default: `model.num_cameras` in the recipe, else 2. Its action and state dims are those
            of the prior, or `model.expert.action_dims` and `state_dims`, or the config's defaults.
        words: tokens of an instruction.

    Raises:
        ValueError: naming what is unknown in the recipe, the backbone, or impossible together.
        FileNotFoundError: there is no such recipe.
    """
    for option, value in (("--cameras", cameras), ("--words", words)):
        if value is not None and value < 1:
            raise ValueError(f"{option} {value} must be at least 1")
    asked = DryRunRecipe.read(recipe, cameras)
    known = known_backbone(asked.backbone)
    with meta_pass() as count:
        backbone = meta_backbone(known, asked.dtype, asked.image_size, asked.tokens_per_image)
        model = meta_policy(asked.model, backbone, asked.prior, asked.insertion)
        if asked.training.get("decoder") == "frozen":
            model.expert.requires_grad_(False)
        if asked.training["gradient_checkpointing"]:
            model.gradient_checkpointing_enable(asked.training["gradient_checkpointing_kwargs"])
        passes = _Passes(model, asked, words, count)
        goes_on = model.config.tail == "backbone"
        cached = model.config.backbone_training == "frozen" and not goes_on
        taken, encoding = passes.step(cached), passes.encoding() if cached else 0
        without = None if goes_on else asked.passes * (taken if cached else passes.step(cached=True)).flops
    return DryRun(
        recipe=asked.name,
        backbone=asked.backbone,
        origin=known.origin,
        config=model.config,
        image_size=backbone.image_size,
        tokens_per_image=backbone.tokens_per_image,
        words=words,
        layers_kept=backbone.last_layer,
        layers=backbone.num_layers,
        windows=asked.windows,
        passes=asked.passes,
        parameters=_parameters(model),
        memory=_memory(model, taken, averaged=asked.training["ema_decay"] > 0),
        cached=cached,
        frame_bytes=frame_bytes(model.config, backbone, words),
        step_flops=asked.passes * (taken.flops + encoding),
        step_flops_without_backbone=without,
        frame_flops=encoding // asked.windows if cached else None,
        not_counted=tuple(asked.not_counted()),
    )


def frame_bytes(config: PriorVLAConfig, backbone: Backbone, words: int) -> int:
    """Bytes of a frame in a feature cache: all cameras, and the words where they are read after the image."""
    taps, width = len(config.taps), backbone.vision_hidden_size
    numbers = taps * config.num_cameras * backbone.tokens_per_image * width
    if config.language and backbone.language_reads_vision:
        numbers += taps * words * backbone.text_hidden_size
    return numbers * backbone.dtype.itemsize


class _Passes:
    """Of one model, on batches of one size."""

    def __init__(self, model: PriorVLAModel, recipe: DryRunRecipe, words: int, count: FlopCount) -> None:
        self.model, self.windows, self.words, self.count = model, recipe.windows, words, count
        self.draws = recipe.windows * recipe.training["flow_draws"]
        self.distils = recipe.distils and model.config.predicts_latent and model.encoder is not None

    def step(self, cached: bool) -> StepCosts:
        """Forward and backward, from cached features or from images and words."""
        batch = meta_batch(self.model, self.windows, self.words, cached=cached)
        batch |= {"draws": meta_draws(self.model, self.draws), "distillation_weight": float(self.distils)}
        return step_costs(self.model, batch, self.count, _held(self.model))

    @torch.no_grad()
    def encoding(self) -> int:
        """Floating-point operations of all windows' images and words in the backbone."""
        batch = meta_batch(self.model, self.windows, self.words, cached=False)
        names = ("pixel_values", "pixel_attention_mask", "input_ids", "attention_mask")
        before = self.count.total
        self.model.encode_observation(**{name: batch[name] for name in names if name in batch})
        return self.count.total - before


def _held(model: PriorVLAModel) -> Iterator[Tensor]:
    """What is in memory before a step: the weights and buffers of model and backbone."""
    assert model.backbone is not None
    return chain(model.parameters(), model.buffers(), model.backbone.parameters(), model.backbone.buffers())


def _memory(model: PriorVLAModel, step: StepCosts, averaged: bool) -> dict[str, int]:
    trained = bytes_of(parameter for parameter in model.parameters() if parameter.requires_grad)
    return {
        "weights": bytes_of(_held(model)),
        "gradients": step.gradient_bytes,
        "optimizer (AdamW)": ADAM_STATES * step.gradient_bytes,
        "moving average": trained if averaged else 0,
        "activations": step.activation_bytes,
        "batch": step.batch_bytes,
    }


def _parameters(model: PriorVLAModel) -> dict[str, tuple[int, int]]:
    """Part -> (trained, frozen): what every expert has, what the host adds, the trajectory encoder, the backbone."""
    assert model.backbone is not None
    with torch.device("meta"):
        own = {name for name, _ in ExpertLayer(model.config.expert).named_children()}
    counts = {part: [0, 0] for part in ("expert", "host", "trajectory encoder", "backbone")}
    for name, parameter in model.named_parameters():
        if not name.startswith(TRAINED):
            counts[_part_of(name, own)][not parameter.requires_grad] += parameter.numel()
    for parameter in model.backbone.parameters():
        counts["backbone"][not parameter.requires_grad] += parameter.numel()
    return {part: (trained, frozen) for part, (trained, frozen) in counts.items()}


def _part_of(name: str, own: set[str]) -> str:
    root, *rest = name.split(".")
    if root == "encoder":
        return "trajectory encoder"
    in_layer = root == "expert" and rest[0] == "layers"
    return "expert" if root == "expert" and (not in_layer or rest[2] in own) else "host"


__all__ = ["WORDS", "DryRun", "dry_run", "frame_bytes"]
