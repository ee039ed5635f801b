"""Action priors and vision-language-action models on Hugging Face's stack.

`import priorvla` is quick: it loads neither torch nor transformers. Public names load their module on first use, and
`AutoConfig`, `AutoModel` and `AutoProcessor` learn our classes when transformers' auto modules are imported, be that
before or after `import priorvla`.
"""

from __future__ import annotations

import sys
from collections import UserDict
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from wrapt import when_imported

if TYPE_CHECKING:
    from .configuration.configuration_action_prior import ActionPriorConfig as ActionPriorConfig
    from .configuration.configuration_expert import ExpertConfig as ExpertConfig
    from .configuration.configuration_priorvla import PriorVLAConfig as PriorVLAConfig
    from .configuration.embodiment import Embodiment as Embodiment
    from .configuration.embodiment import NormalizationMode as NormalizationMode
    from .configuration.embodiment_registry import load_embodiment as load_embodiment
    from .deployment.action_limits import ActionLimits as ActionLimits
    from .deployment.client import PolicyClient as PolicyClient
    from .deployment.evaluation import evaluate_policy as evaluate_policy
    from .deployment.policy import PriorVLAPolicy as PriorVLAPolicy
    from .deployment.realtime import RealTimePolicy as RealTimePolicy
    from .hub_cards.publish_checkpoint import publish_checkpoint as publish_checkpoint
    from .hub_cards.publishing import load_card as load_card
    from .hub_cards.publishing import publish as publish
    from .hub_cards.searching import list_priors as list_priors
    from .modeling_priorvla.adapter_processor import processor_for as processor_for
    from .modeling_priorvla.adapters import add_adapter as add_adapter
    from .modeling_priorvla.adapters import load_adapter as load_adapter
    from .modeling_priorvla.adapters import merge_adapter as merge_adapter
    from .modeling_priorvla.modeling_action_prior import ActionPriorModel as ActionPriorModel
    from .modeling_priorvla.modeling_priorvla import PriorVLAModel as PriorVLAModel
    from .modeling_priorvla.processing_priorvla import PriorVLAProcessor as PriorVLAProcessor
    from .modeling_priorvla.transfer import TransferReport as TransferReport
    from .training.action_prior_arguments import ActionPriorTrainingArguments as ActionPriorTrainingArguments
    from .training.action_prior_trainer import ActionPriorTrainer as ActionPriorTrainer
    from .training.adapter_presets import lora_config as lora_config
    from .training.component_weights import component_weights as component_weights
    from .training.data.embodiment_fitting import expert_dims as expert_dims
    from .training.data.embodiment_fitting import fit_embodiments as fit_embodiments
    from .training.data.lerobot_writer import LeRobotDatasetWriter as LeRobotDatasetWriter
    from .training.data.live_observations import LiveObservationDataset as LiveObservationDataset
    from .training.data.observation_dataset import ObservationDataset as ObservationDataset
    from .training.data.readers import load_trajectories as load_trajectories
    from .training.data.trajectory_dataset import TrajectoryDataset as TrajectoryDataset
    from .training.dataset_cards import write_dataset_card as write_dataset_card
    from .training.instruction_sampling import ModelSampler as ModelSampler
    from .training.instruction_sampling import draw_observations as draw_observations
    from .training.language_sensitivity import language_sensitivity as language_sensitivity
    from .training.observed_windows import observed_windows as observed_windows
    from .training.vision_action_prior_trainer import VisionActionPriorTrainer as VisionActionPriorTrainer
    from .training.vision_action_prior_trainer import (
        VisionActionPriorTrainingArguments as VisionActionPriorTrainingArguments,
    )
    from .training.vla_arguments import VLATrainingArguments as VLATrainingArguments
    from .training.vla_trainer import VLATrainer as VLATrainer

__version__ = "0.1.0"

_HOMES = {
    "ActionLimits": "deployment.action_limits",
    "ActionPriorConfig": "configuration.configuration_action_prior",
    "ActionPriorModel": "modeling_priorvla.modeling_action_prior",
    "ActionPriorTrainer": "training.action_prior_trainer",
    "ActionPriorTrainingArguments": "training.action_prior_arguments",
    "Embodiment": "configuration.embodiment",
    "ExpertConfig": "configuration.configuration_expert",
    "LeRobotDatasetWriter": "training.data.lerobot_writer",
    "LiveObservationDataset": "training.data.live_observations",
    "ModelSampler": "training.instruction_sampling",
    "NormalizationMode": "configuration.embodiment",
    "ObservationDataset": "training.data.observation_dataset",
    "PolicyClient": "deployment.client",
    "PriorVLAConfig": "configuration.configuration_priorvla",
    "PriorVLAModel": "modeling_priorvla.modeling_priorvla",
    "PriorVLAPolicy": "deployment.policy",
    "PriorVLAProcessor": "modeling_priorvla.processing_priorvla",
    "RealTimePolicy": "deployment.realtime",
    "TrajectoryDataset": "training.data.trajectory_dataset",
    "TransferReport": "modeling_priorvla.transfer",
    "VLATrainer": "training.vla_trainer",
    "VLATrainingArguments": "training.vla_arguments",
    "VisionActionPriorTrainer": "training.vision_action_prior_trainer",
    "VisionActionPriorTrainingArguments": "training.vision_action_prior_trainer",
    "add_adapter": "modeling_priorvla.adapters",
    "component_weights": "training.component_weights",
    "draw_observations": "training.instruction_sampling",
    "evaluate_policy": "deployment.evaluation",
    "expert_dims": "training.data.embodiment_fitting",
    "fit_embodiments": "training.data.embodiment_fitting",
    "language_sensitivity": "training.language_sensitivity",
    "list_priors": "hub_cards.searching",
    "load_adapter": "modeling_priorvla.adapters",
    "load_card": "hub_cards.publishing",
    "load_embodiment": "configuration.embodiment_registry",
    "load_trajectories": "training.data.readers",
    "lora_config": "training.adapter_presets",
    "merge_adapter": "modeling_priorvla.adapters",
    "observed_windows": "training.observed_windows",
    "processor_for": "modeling_priorvla.adapter_processor",
    "publish": "hub_cards.publishing",
    "publish_checkpoint": "hub_cards.publish_checkpoint",
    "write_dataset_card": "training.dataset_cards",
}
_CONFIGS = ("ActionPriorConfig", "PriorVLAConfig")

__all__ = [*_HOMES, "__version__"]


def _load(name: str) -> Any:
    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


if not TYPE_CHECKING:  # otherwise a type checker would believe in misspelled names

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return _load(name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})


class _Promised(UserDict[type, Any]):
    """transformers' table of registered classes, where ours are public names until somebody looks them up.

    To import our models as soon as `modeling_auto` is there would be too early: it is often imported from the middle of
    another module of transformers, which ours would then find half made.
    """

    def __getitem__(self, config: type) -> Any:
        value = self.data[config]
        return _load(value) if isinstance(value, str) else value


def _promise(mapping: Any, classes: dict[str, str]) -> None:
    """Adds `{name of a config: name of its class}` to a mapping of transformers."""
    mapping._extra_content = _Promised(mapping._extra_content)
    mapping._extra_content.update({_load(config): name for config, name in classes.items()})


def _register_configs(auto: ModuleType) -> None:
    for config in map(_load, _CONFIGS):
        auto.AutoConfig.register(config.model_type, config, exist_ok=True)


def _register_models(auto: ModuleType) -> None:
    _promise(auto.MODEL_MAPPING, {"ActionPriorConfig": "ActionPriorModel", "PriorVLAConfig": "PriorVLAModel"})


def _register_processors(auto: ModuleType) -> None:
    _promise(auto.PROCESSOR_MAPPING, dict.fromkeys(_CONFIGS, "PriorVLAProcessor"))


def _when_imported_with_configs(auto: str, register: Callable[[ModuleType], None]) -> None:
    """Calls `register(auto)` once that module of transformers and the homes of our configs are completely imported.

    The import of `auto` brings the configs in. Where a config's module is being imported already, its class does not
    exist yet, and the end of that import completes the set.
    """
    auto = f"transformers.models.auto.{auto}"
    homes = [f"{__name__}.{_HOMES[config]}" for config in _CONFIGS]
    missing = {auto, *homes}

    def arrived(module: ModuleType) -> None:
        if module.__name__ in missing:
            missing.remove(module.__name__)
            if not missing:
                register(sys.modules[auto])

    def auto_arrived(module: ModuleType) -> None:
        arrived(module)
        for home in homes:
            import_module(home)

    for home in homes:
        when_imported(home)(arrived)
    when_imported(auto)(auto_arrived)


_when_imported_with_configs("configuration_auto", _register_configs)
_when_imported_with_configs("modeling_auto", _register_models)
_when_imported_with_configs("processing_auto", _register_processors)
