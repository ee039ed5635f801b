"""A checkpoint of ours as a LeRobot policy: it trains in `lerobot-train`, and drives robots that LeRobot knows."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from huggingface_hub import snapshot_download
from lerobot.configs import PreTrainedConfig
from lerobot.policies.pretrained import PreTrainedPolicy
from numpy.typing import NDArray
from torch import Tensor
from transformers.utils import logging

from ...configuration.embodiment import Embodiment
from ...modeling_priorvla.attached_backbone import TRAINED
from ...modeling_priorvla.modeling_priorvla import PriorVLAModel
from ...modeling_priorvla.processing_priorvla import PriorVLAProcessor
from ...training.stage_trainer import is_decayed
from ..action_limits import ActionLimits
from ..policy import PolicySession
from ..policy import PriorVLAPolicy as RobotPolicy
from .configuration_priorvla import PriorVLAConfig
from .lerobot_batches import camera_of, chunks_of, observations_of

logger = logging.get_logger(__name__)

HUB_ARGUMENTS = ("revision", "token", "cache_dir", "local_files_only", "force_download")  # of a whole repository
MOTION = "limits on speed or jerk (max_rate, max_jerk)"
CHECKPOINT_FOLDER = "priorvla"  # in a policy folder: our checkpoint, as it is


class PriorVLAPolicy(PreTrainedPolicy):
    """Holds a `PriorVLAModel` with its `PriorVLAProcessor`; batches come in and actions go out in the robot's units.

    A policy folder is LeRobot's `config.json` and pipelines beside the folder `priorvla`, which is our checkpoint,
    whole and unchanged: `priorvla evaluate`, `serve` and `publish` take it from there. In a run of `lerobot-train` the
    checkpoint is trained as it is configured (a frozen backbone stays frozen), on single observations: a model with
    `use_history` is trained without its past there, and has it in `select_action`.

    Args:
        config: names the checkpoint.
        model, processor: the loaded checkpoint; default: that of `config.checkpoint`.
        loading: what LeRobot passes on (`dataset_stats`, `dataset_meta`), which is not used.

    Raises:
        ValueError: no checkpoint is named, the robot is none of its embodiments, or the dataset or environment has
            other dims than it, or none of its cameras.
    """

    config_class = PriorVLAConfig
    name = "priorvla"

    def __init__(
        self,
        config: PriorVLAConfig,
        *,
        model: PriorVLAModel | None = None,
        processor: PriorVLAProcessor | None = None,
        **loading: Any,
    ) -> None:
        super().__init__(config)
        if model is None or processor is None:
            model, processor = _load(config, config.checkpoint)
        self.model, self.processor = model, processor
        self._limits: ActionLimits | None = None
        if config.action_limits is not None:
            self._limits = ActionLimits.from_file(config.action_limits, processor.embodiment(config.embodiment))
        self._seeds = itertools.count(config.noise_seed)
        self.reset()
        config.embodiment = self.robot.embodiment.name
        config.chunk_size = model.config.expert.chunk_size
        config.n_action_steps = self.robot.execute_steps
        config.validate_features()
        require_features(config, self.robot.embodiment)

    # --- loading and saving -------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls,
        pretrained_name_or_path: str | Path,
        *,
        config: PreTrainedConfig | None = None,
        strict: bool = True,
        **hub: Any,
    ) -> Self:
        """Loads a policy folder or Hub repository; `hub` takes `revision`, `token`, `cache_dir`, ...

        `strict` changes nothing: what is missing is always an error.
        """
        hub = {key: value for key, value in hub.items() if key in HUB_ARGUMENTS and value is not None}
        if config is None:
            config = PreTrainedConfig.from_pretrained(pretrained_name_or_path, **hub)
        folder = Path(pretrained_name_or_path)
        if not folder.is_dir():
            pattern = f"{CHECKPOINT_FOLDER}/*"
            folder = Path(snapshot_download(str(pretrained_name_or_path), allow_patterns=[pattern], **hub))
        if not (folder / CHECKPOINT_FOLDER / "config.json").is_file():
            raise FileNotFoundError(
                f"{folder / CHECKPOINT_FOLDER}/config.json is missing: this is no policy folder of priorvla. Convert a "
                "checkpoint with `python -m priorvla.deployment.lerobot.convert`, or name it by --policy.checkpoint"
            )
        assert isinstance(config, PriorVLAConfig)
        model, processor = _load(config, str(folder / CHECKPOINT_FOLDER))
        policy = cls(config, model=model, processor=processor)
        policy.to(config.device)
        policy.eval()
        return policy

    def _save_pretrained(self, save_directory: Path, state_dict: dict[str, Tensor] | None = None) -> None:
        """Writes the policy folder but for the pipelines; `state_dict` where LeRobot has gathered it from shards."""
        self.config._save_pretrained(save_directory)
        folder = Path(save_directory) / CHECKPOINT_FOLDER
        gathered = {}
        if state_dict is not None:
            own = {key.removeprefix("model."): value for key, value in state_dict.items() if key.startswith("model.")}
            gathered["state_dict"] = own
        self.model.save_pretrained(folder, **gathered)
        self.processor.save_pretrained(folder)

    # --- training -----------------------------------------------------------------------------------------------------

    def get_optim_params(self) -> list[dict[str, Any]]:
        """Groups as our Trainers make them: no decay of what belongs to one body, a trained backbone slower."""
        groups: dict[tuple[bool, bool], list[Tensor]] = defaultdict(list)
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                groups[is_decayed(name, parameter), name.startswith(TRAINED)].append(parameter)
        settings: list[dict[str, Any]] = []
        for (decayed, of_backbone), members in groups.items():
            settings.append({"params": members})
            if not decayed or of_backbone:
                settings[-1]["weight_decay"] = 0.0
            if of_backbone:
                settings[-1]["lr"] = self.config.optimizer_backbone_lr
        return settings

    def forward(
        self, batch: dict[str, Any], reduction: Literal["mean", "none"] = "mean"
    ) -> tuple[Tensor, dict[str, float]]:
        """The loss of a batch, and its parts as numbers; with `reduction="none"` the loss of every window (B,).

        Raises ValueError on another reduction, and on a batch that is not of the robot.
        """
        if reduction not in ("mean", "none"):
            raise ValueError(f"reduction={reduction!r} must be 'mean' or 'none'")
        observations = observations_of(batch, self.robot.embodiment, language=self.model.config.language)
        actions, real = chunks_of(batch)
        inputs = self.processor(
            embodiment=self.robot.embodiment.name,
            state=np.stack([observation["state"] for observation in observations]),
            actions=actions,
            action_mask=real,
            images=[
                {camera: own for camera, own in observation["images"].items() if own is not None}
                for observation in observations
            ],
            text=[observation["instruction"] for observation in observations] if self.model.config.language else None,
        ).to(self.model.device)
        draws = self.model.draw(len(actions), inputs["actions"].shape[1])
        if reduction == "none":  # window by window: what the model gives of a batch is its mean
            own = [
                self.model(**{key: value[i : i + 1] for key, value in inputs.items()}, draws=draws.rows(i, 1)).loss
                for i in range(len(actions))
            ]
            losses = torch.stack(own)
            return losses, {"loss_pred": losses.mean().item()}
        output = self.model(**inputs, draws=draws)
        return output.loss, {f"loss_{name}": value.item() for name, value in output.losses.items()}

    # --- acting -------------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Forgets the episodes that are running, and what instructions were encoded to, which training may change."""
        config = self.config
        self.robot = RobotPolicy(
            self.model,
            self.processor,
            embodiment=config.embodiment,
            execute_steps=config.n_action_steps,
            num_inference_steps=config.num_inference_steps,
            limits=self._limits,
        )
        self._sessions: list[PolicySession] = []

    @torch.no_grad()
    def select_action(self, batch: dict[str, Any]) -> Tensor:
        """The next action (B, D) of every robot in the batch, in its units and limits; one chunk serves several calls.

        Raises ValueError when the number of robots changes in the middle of an episode, and as our own policy's `act`.
        """
        self.eval()
        observations = observations_of(batch, self.robot.embodiment, language=self.model.config.language)
        actions = self.robot.act(self._sessions_of(len(observations)), observations)
        return torch.from_numpy(actions).to(self.model.device)

    @torch.no_grad()
    def predict_action_chunk(
        self,
        batch: dict[str, Any],
        *,
        inference_delay: int | None = None,
        prev_chunk_left_over: Tensor | None = None,
    ) -> Tensor:
        """Whole chunks (B, H, D) in the robot's units; the queue is left alone.

        For real-time chunking, of a batch of one: `prev_chunk_left_over` (T, D) is what is left of the chunk before, of
        which the first `inference_delay` steps will be executed anyway. The chunk begins with them and goes on from
        them, as it was trained to (a clean prefix), instead of being guided towards them.

        Of limits only `low` and `high` can be kept here. Raises ValueError where there are others, because whoever
        executes the chunk does not say which steps, and on real-time chunking of a policy that does not support it.
        """
        self.eval()
        if inference_delay is not None and (reason := self._against_rtc()):
            raise ValueError(f"no real-time chunking: {reason}")
        limits = None if self._limits is None else self._limits.arrays(self.robot.embodiment)
        if limits is not None and _limits_motion(limits):
            raise ValueError(f"{MOTION} are kept from command to command, which a chunk is not: use select_action")
        observations = observations_of(batch, self.robot.embodiment, language=self.model.config.language)
        prefixes = None
        if prev_chunk_left_over is not None and inference_delay:
            if len(observations) != 1:
                raise ValueError(f"real-time chunking is of one robot, the batch has {len(observations)}")
            prefixes = [self._known_steps(prev_chunk_left_over, min(inference_delay, self.config.chunk_size))]
        chunks = self.robot.predict(self._sessions_of(len(observations)), observations, prefixes)
        if limits is not None:
            chunks = np.clip(chunks, limits["low"], limits["high"]).astype(chunks.dtype)
        return torch.from_numpy(chunks).to(self.model.device)

    def supports_rtc(self) -> bool:
        """Whether LeRobot may drive a robot with it by real-time chunking; where not, it says why in the log."""
        if reason := self._against_rtc():
            logger.warning("no real-time chunking: %s", reason)
        return not reason

    def _against_rtc(self) -> str | None:
        """Why it cannot be, if it cannot."""
        if self.model.config.prefix_probability == 0:
            return "this policy was trained without clean prefixes (prefix_probability=0)"
        if self.model.config.use_history:
            return (
                "this policy looks back (use_history), and LeRobot does not tell it what was seen and done in between"
            )
        if "relative" in self.robot.embodiment.action_kinds:
            return "its actions were recorded relative to the state at a chunk's start, and chunks overlap"
        if self._limits is not None and _limits_motion(self._limits.arrays(self.robot.embodiment)):
            return (
                f"{MOTION} are kept from command to command, and LeRobot takes whole chunks: use --inference.type=sync"
            )
        return None

    def _known_steps(self, left_over: Tensor, delay: int) -> NDArray[np.float32]:
        """The first `delay` steps, without the zeros by which LeRobot fills up what is shorter.

        Of a robot that is told by displacements alone zeros are as true: where nothing is left, it stands still.
        """
        steps = left_over.detach().float().cpu().numpy()
        if any(kind != "delta" for kind in self.robot.embodiment.action_kinds):
            real = np.flatnonzero(steps.any(axis=1))
            steps = steps[: real[-1] + 1 if len(real) else 0]
        return steps[:delay]

    def _sessions_of(self, count: int) -> list[PolicySession]:
        if not self._sessions:
            self._sessions = [self.robot.new_session(next(self._seeds)) for _ in range(count)]
        if len(self._sessions) != count:
            raise ValueError(f"the batch has {count} robots, it had {len(self._sessions)}: call reset() in between")
        return self._sessions


def require_features(config: PriorVLAConfig, body: Embodiment) -> None:
    """Raises ValueError where a dataset's or environment's features are not the robot's."""
    for label, feature, dim in (
        ("observation.state", config.robot_state_feature, body.state_dim),
        ("action", config.action_feature, body.action_dim),
    ):
        if feature is not None and tuple(feature.shape) != (dim,):
            raise ValueError(
                f"{label} has shape {tuple(feature.shape)}, embodiment {body.name!r} of the checkpoint has {dim} dims: "
                "choose another by --policy.embodiment, or teach the checkpoint this robot with `priorvla finetune`"
            )
    cameras = [camera_of(key) for key in config.image_features]
    if not set(cameras) & set(body.cameras):
        raise ValueError(
            f"embodiment {body.name!r} has the cameras {', '.join(body.cameras) or 'none'}, the dataset or environment "
            f"has {', '.join(cameras) or 'none'}: rename them with --rename_map"
        )


def _load(config: PriorVLAConfig, checkpoint: str | None) -> tuple[PriorVLAModel, PriorVLAProcessor]:
    if checkpoint is None:
        raise ValueError(
            "no checkpoint is named: pass --policy.checkpoint=<folder or Hub id of a priorvla checkpoint>, or "
            "--policy.path=<policy folder>"
        )
    model = PriorVLAModel.from_pretrained(checkpoint, backbone=config.backbone or "auto")
    return model, PriorVLAProcessor.from_pretrained(checkpoint)


def _limits_motion(limits: Mapping[str, NDArray[np.float64]]) -> bool:
    return any(bool(np.isfinite(limits[name]).any()) for name in ("max_rate", "max_jerk"))


__all__ = ["CHECKPOINT_FOLDER", "PriorVLAPolicy", "require_features"]
