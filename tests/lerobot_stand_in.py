"""What of lerobot 0.6.1 our plugin stands on, in a few lines: base classes, registry, saving, default pipelines.

Written from LeRobot's contract for tests in an environment that cannot have LeRobot; `make test-lerobot` runs the
plugin in the real one. `install()` puts the modules into `sys.modules`.
"""

from __future__ import annotations

import abc
import dataclasses
import enum
import importlib
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import torch


class FeatureType(enum.StrEnum):
    STATE = "STATE"
    VISUAL = "VISUAL"
    ACTION = "ACTION"


class NormalizationMode(enum.StrEnum):
    IDENTITY = "IDENTITY"
    MEAN_STD = "MEAN_STD"


@dataclass
class PolicyFeature:
    type: FeatureType
    shape: tuple[int, ...]


@dataclass
class AdamWConfig:
    lr: float = 1e-3
    weight_decay: float = 1e-2
    grad_clip_norm: float = 10.0

    def build(self, params: Any) -> torch.optim.Optimizer:
        return torch.optim.AdamW(params, lr=self.lr, weight_decay=self.weight_decay)


@dataclass
class CosineDecayWithWarmupSchedulerConfig:
    num_warmup_steps: int
    num_decay_steps: int
    peak_lr: float
    decay_lr: float


@dataclass
class PreTrainedConfig(abc.ABC):  # noqa: B024, they are set below
    n_obs_steps: int = 1
    input_features: dict[str, PolicyFeature] | None = field(default_factory=dict)
    output_features: dict[str, PolicyFeature] | None = field(default_factory=dict)
    device: str | None = None
    use_amp: bool = False
    use_peft: bool = False
    push_to_hub: bool = True
    pretrained_path: Path | None = None
    choices: ClassVar[dict[str, type]] = {}

    def __post_init__(self) -> None:
        self.device = self.device or "cpu"

    @classmethod
    def register_subclass(cls, name: str) -> Any:
        def register(subclass: type) -> type:
            cls.choices[name] = subclass
            return subclass

        return register

    @property
    def type(self) -> str:
        return next(name for name, kind in self.choices.items() if kind is type(self))

    @property
    def robot_state_feature(self) -> PolicyFeature | None:
        return (self.input_features or {}).get("observation.state")

    @property
    def action_feature(self) -> PolicyFeature | None:
        return (self.output_features or {}).get("action")

    @property
    def image_features(self) -> dict[str, PolicyFeature]:
        return {key: own for key, own in (self.input_features or {}).items() if own.type is FeatureType.VISUAL}

    def _save_pretrained(self, save_directory: Path) -> None:
        fields = {"type": self.type, **dataclasses.asdict(self)}
        (Path(save_directory) / "config.json").write_text(json.dumps(fields, default=str), encoding="utf-8")

    @classmethod
    def from_pretrained(cls, pretrained_name_or_path: str | Path, **overrides: Any) -> PreTrainedConfig:
        fields = json.loads((Path(pretrained_name_or_path) / "config.json").read_text(encoding="utf-8"))
        for key in ("input_features", "output_features"):
            fields[key] = {
                name: PolicyFeature(FeatureType(own["type"]), tuple(own["shape"])) for name, own in fields[key].items()
            }
        modes = fields["normalization_mapping"]
        fields["normalization_mapping"] = {name: NormalizationMode(mode) for name, mode in modes.items()}
        return cls.choices[fields.pop("type")](**{**fields, **overrides})


for _name in ("observation_delta_indices", "action_delta_indices", "reward_delta_indices"):
    setattr(PreTrainedConfig, _name, property(abc.abstractmethod(lambda self: None)))
for _name in ("get_optimizer_preset", "get_scheduler_preset", "validate_features"):
    setattr(PreTrainedConfig, _name, abc.abstractmethod(lambda self: None))
abc.update_abstractmethods(PreTrainedConfig)


class PreTrainedPolicy(torch.nn.Module, abc.ABC):
    config_class: Any = None
    name: Any = None

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        if not isinstance(config, PreTrainedConfig):
            raise ValueError("config should be an instance of PreTrainedConfig")
        self.config = config

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not cls.config_class or not cls.name:
            raise TypeError(f"{cls.__name__} must define config_class and name")

    def save_pretrained(self, save_directory: str | Path, *, state_dict: dict[str, Any] | None = None) -> None:
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        self._save_pretrained(Path(save_directory), state_dict=state_dict)

    @abc.abstractmethod
    def _save_pretrained(self, save_directory: Path, state_dict: dict[str, Any] | None = None) -> None: ...

    @abc.abstractmethod
    def get_optim_params(self) -> Any: ...

    @abc.abstractmethod
    def reset(self) -> None: ...

    @abc.abstractmethod
    def forward(self, batch: dict[str, Any]) -> Any: ...

    @abc.abstractmethod
    def predict_action_chunk(self, batch: dict[str, Any]) -> Any: ...

    @abc.abstractmethod
    def select_action(self, batch: dict[str, Any]) -> Any: ...


class PolicyProcessorPipeline:
    """Before the policy: a batch dimension where there is none. Any mode but identity is refused."""

    def __init__(self, name: str, modes: dict[str, NormalizationMode]) -> None:
        assert set(modes.values()) == {NormalizationMode.IDENTITY}, modes
        self.name = name

    def __call__(self, data: Any) -> Any:
        if not isinstance(data, dict):
            return data.cpu()
        dims = {"observation.state": 1, **{key: 3 for key in data if key.startswith("observation.image")}}
        single = {key: data[key][None] for key, dim in dims.items() if data[key].ndim == dim}
        task = {"task": [data["task"]]} if isinstance(data.get("task"), str) else {}
        return {**data, **single, **task}

    def save_pretrained(self, save_directory: str | Path) -> None:
        text = json.dumps({"name": self.name, "steps": []})
        (Path(save_directory) / f"{self.name}.json").write_text(text, encoding="utf-8")


def make_default_pre_post_processors(
    config: Any, dataset_stats: Any = None
) -> tuple[PolicyProcessorPipeline, PolicyProcessorPipeline]:
    modes = config.normalization_mapping
    return PolicyProcessorPipeline("policy_preprocessor", modes), PolicyProcessorPipeline("policy_postprocessor", modes)


def policy_class(config: PreTrainedConfig) -> Any:
    """As LeRobot finds it: by the names of the config's class and module."""
    module = importlib.import_module(type(config).__module__.replace("configuration_", "modeling_"))
    return getattr(module, type(config).__name__.removesuffix("Config") + "Policy")


def make_processors(config: PreTrainedConfig, dataset_stats: Any = None) -> Any:
    """Likewise the pipelines."""
    module = importlib.import_module(type(config).__module__.replace("configuration_", "processor_"))
    return getattr(module, f"make_{config.type}_pre_post_processors")(config, dataset_stats=dataset_stats)


CONTENTS: dict[str, tuple[Any, ...]] = {
    "lerobot": (),
    "lerobot.configs": (FeatureType, NormalizationMode, PolicyFeature, PreTrainedConfig),
    "lerobot.optim": (AdamWConfig, CosineDecayWithWarmupSchedulerConfig),
    "lerobot.policies": (),
    "lerobot.policies.pretrained": (PreTrainedPolicy,),
    "lerobot.processor": (PolicyProcessorPipeline, make_default_pre_post_processors),
}


def install() -> None:
    """Makes `import lerobot` find this stand-in."""
    for name, members in CONTENTS.items():
        module = ModuleType(name)
        for member in members:
            setattr(module, member.__name__, member)
        sys.modules[name] = module
