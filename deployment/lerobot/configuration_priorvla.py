"""What LeRobot is told about one of our policies: which checkpoint, which robot, how it is trained and executed."""

# No `from __future__ import annotations`: draccus reads the types of the fields.

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lerobot.configs import NormalizationMode, PolicyFeature, PreTrainedConfig
from lerobot.optim import AdamWConfig, CosineDecayWithWarmupSchedulerConfig

from ...configuration.configuration_priorvla import PriorVLAConfig as ModelConfig
from ...hub_cards.checkpoints import kind_of

UNNORMALIZED = ("VISUAL", "STATE", "ACTION")


@PreTrainedConfig.register_subclass("priorvla")
@dataclass
class PriorVLAConfig(PreTrainedConfig):
    """A LeRobot policy that holds one of our checkpoints, as `--policy.type=priorvla` or `--policy.path=FOLDER`.

    The network's own config is in the checkpoint and cannot be changed here. Nothing is normalised by LeRobot: the
    checkpoint's processor does it, with the statistics of the embodiment that it was trained for.

    Args:
        checkpoint: folder or Hub id of a checkpoint of ours (a `PriorVLAModel`), to start from without a conversion. A
            policy folder brings its own, so that it is not written there.
        backbone: folder of the backbone, where that is to be another than the checkpoint names; likewise not written.
        embodiment: name of the robot, one of the checkpoint's; may be left out when there is only one.
        chunk_size: H; the checkpoint's, do not set it.
        n_action_steps: steps of a chunk that are executed before the next is predicted. Default: half of it.
        num_inference_steps: denoising steps; default the checkpoint's.
        action_limits: file of what the robot may be told (`ActionLimits.from_file`). Likewise not written: name it with
            every command that moves a robot.
        noise_seed: of the noise from which chunks are made.
        optimizer_lr, optimizer_weight_decay, optimizer_grad_clip_norm, optimizer_backbone_lr: AdamW's; the last is of a
            backbone that the checkpoint trains. Our choice of values: those of `priorvla finetune`'s stage.
        scheduler_warmup_steps, scheduler_decay_steps: of a cosine to zero, shortened to the length of the run.

    Raises:
        ValueError: `checkpoint` is an action prior, `chunk_size` is not its, or `n_action_steps` is not within a chunk.
    """

    checkpoint: str | None = None
    backbone: str | None = None
    embodiment: str | None = None
    chunk_size: int | None = None
    n_action_steps: int | None = None
    num_inference_steps: int | None = None
    action_limits: str | None = None
    noise_seed: int = 0

    normalization_mapping: dict[str, NormalizationMode] = field(
        default_factory=lambda: dict.fromkeys(UNNORMALIZED, NormalizationMode.IDENTITY)
    )

    optimizer_lr: float = 8e-4
    optimizer_weight_decay: float = 0.01
    optimizer_grad_clip_norm: float = 1.0
    optimizer_backbone_lr: float = 1e-5
    scheduler_warmup_steps: int = 100
    scheduler_decay_steps: int = 30_000

    def __post_init__(self) -> None:
        super().__post_init__()
        if any(mode is not NormalizationMode.IDENTITY for mode in self.normalization_mapping.values()):
            raise ValueError(
                "normalization_mapping must be IDENTITY throughout: the checkpoint's processor normalises, and twice "
                "would be once too often"
            )
        if self.checkpoint is not None:
            self._read_checkpoint(self.checkpoint)
        if self.chunk_size is None:
            return
        if self.n_action_steps is None:
            self.n_action_steps = max(1, self.chunk_size // 2)
        if not 1 <= self.n_action_steps <= self.chunk_size:
            raise ValueError(
                f"n_action_steps={self.n_action_steps} must be between 1 and the chunk's {self.chunk_size} steps"
            )

    def _read_checkpoint(self, checkpoint: str) -> None:
        fields, _ = ModelConfig.get_config_dict(checkpoint)
        if kind_of(fields) == "action-prior":
            raise ValueError(
                f"checkpoint={checkpoint} is an action prior, which sees nothing: make a policy of it with `priorvla "
                "train --prior`, and give that"
            )
        found = ModelConfig.from_dict(fields).expert.chunk_size
        if self.chunk_size not in (None, found):
            raise ValueError(f"chunk_size={self.chunk_size} but checkpoint {checkpoint} has {found}: leave it out")
        self.chunk_size = found

    @property
    def observation_delta_indices(self) -> None:
        return None

    @property
    def action_delta_indices(self) -> list[int]:
        """The steps of a chunk. Raises ValueError where nothing says how many these are."""
        if self.chunk_size is None:
            raise ValueError(
                "no checkpoint is named: pass --policy.checkpoint=<folder or Hub id of a priorvla checkpoint>, or "
                "--policy.path=<policy folder> of one that was converted or trained here"
            )
        return list(range(self.chunk_size))

    @property
    def reward_delta_indices(self) -> None:
        return None

    def get_optimizer_preset(self) -> AdamWConfig:
        return AdamWConfig(
            lr=self.optimizer_lr,
            weight_decay=self.optimizer_weight_decay,
            grad_clip_norm=self.optimizer_grad_clip_norm,
        )

    def get_scheduler_preset(self) -> CosineDecayWithWarmupSchedulerConfig:
        return CosineDecayWithWarmupSchedulerConfig(
            num_warmup_steps=self.scheduler_warmup_steps,
            num_decay_steps=self.scheduler_decay_steps,
            peak_lr=self.optimizer_lr,
            decay_lr=0.0,
        )

    def validate_features(self) -> None:
        """Raises ValueError unless there are a state, actions and a camera; which ones, the policy checks."""
        parts: dict[str, PolicyFeature | dict[str, PolicyFeature] | None] = {
            "observation.state": self.robot_state_feature,
            "observation.images.<camera>": self.image_features,
            "action": self.action_feature,
        }
        if missing := [name for name, part in parts.items() if not part]:
            raise ValueError(f"{missing[0]} is missing from the dataset or environment: a priorvla policy needs it")

    def _save_pretrained(self, save_directory: Path) -> None:
        """As LeRobot's, without the places of this machine: what is saved brings its own checkpoint."""
        places: dict[str, Any] = {"checkpoint": None, "backbone": None, "action_limits": None, "pretrained_path": None}
        portable: Any = replace(self, **places)
        super(PriorVLAConfig, portable)._save_pretrained(save_directory)


__all__ = ["PriorVLAConfig"]
