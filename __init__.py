"""Action priors and vision-language-action models on Hugging Face's stack.

`import priorvla` is quick: it loads neither torch nor transformers. Public names load their module on first use, and
`AutoConfig`, `AutoModel` and `AutoProcessor` learn our classes when transformers' auto modules are imported, be that
before or after `import priorvla`.
"""

from __future__ import annotations

import sys
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
    from .deployment.evaluation import evaluate_policy as evaluate_policy
    from .deployment.policy import PriorVLAPolicy as PriorVLAPolicy
    from .hub_cards.publishing import load_card as load_card
    from .hub_cards.publishing import publish as publish
    from .modeling_priorvla.modeling_action_prior import ActionPriorModel as ActionPriorModel
    from .modeling_priorvla.modeling_priorvla import PriorVLAModel as PriorVLAModel
    from .modeling_priorvla.processing_priorvla import PriorVLAProcessor as PriorVLAProcessor
    from .modeling_priorvla.transfer import TransferReport as TransferReport
    from .training.action_prior_arguments import ActionPriorTrainingArguments as ActionPriorTrainingArguments
    from .training.action_prior_trainer import ActionPriorTrainer as ActionPriorTrainer
    from .training.data.lerobot_reader import load_trajectories as load_trajectories
    from .training.data.lerobot_writer import LeRobotDatasetWriter as LeRobotDatasetWriter
    from .training.data.trajectory_dataset import TrajectoryDataset as TrajectoryDataset
    from .training.vla_arguments import VLATrainingArguments as VLATrainingArguments
    from .training.vla_trainer import VLATrainer as VLATrainer

__version__ = "0.1.0"

_HOMES = {
    "ActionPriorConfig": "configuration.configuration_action_prior",
    "ActionPriorModel": "modeling_priorvla.modeling_action_prior",
    "ActionPriorTrainer": "training.action_prior_trainer",
    "ActionPriorTrainingArguments": "training.action_prior_arguments",
    "Embodiment": "configuration.embodiment",
    "ExpertConfig": "configuration.configuration_expert",
    "LeRobotDatasetWriter": "training.data.lerobot_writer",
    "NormalizationMode": "configuration.embodiment",
    "PriorVLAConfig": "configuration.configuration_priorvla",
    "PriorVLAModel": "modeling_priorvla.modeling_priorvla",
    "PriorVLAPolicy": "deployment.policy",
    "PriorVLAProcessor": "modeling_priorvla.processing_priorvla",
    "TrajectoryDataset": "training.data.trajectory_dataset",
    "TransferReport": "modeling_priorvla.transfer",
    "VLATrainer": "training.vla_trainer",
    "VLATrainingArguments": "training.vla_arguments",
    "evaluate_policy": "deployment.evaluation",
    "load_card": "hub_cards.publishing",
    "load_trajectories": "training.data.lerobot_reader",
    "publish": "hub_cards.publishing",
}

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


def _when_all_imported(auto: str, names: tuple[str, ...], register: Callable[[ModuleType], None]) -> None:
    """Calls `register(auto module)` once that module of transformers and the homes of `names` are completely imported.

    The import of `auto` brings our modules in, but does not rely on it: where one of ours is being imported and has
    itself caused the import of `auto`, its class does not exist yet, and its own hook completes the set.
    """
    auto = f"transformers.models.auto.{auto}"
    homes = [f"{__name__}.{_HOMES[name]}" for name in names]
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


def _register_auto_classes() -> None:
    """Makes `AutoConfig`, `AutoModel` and `AutoProcessor` know our models, without importing transformers now."""
    configs = ("ActionPriorConfig", "PriorVLAConfig")
    models = ("ActionPriorModel", "PriorVLAModel")
    processor = "PriorVLAProcessor"

    def register_configs(auto: ModuleType) -> None:
        for config in map(_load, configs):
            auto.AutoConfig.register(config.model_type, config, exist_ok=True)

    def register_models(auto: ModuleType) -> None:
        for config, model in zip(configs, models, strict=True):
            auto.AutoModel.register(_load(config), _load(model), exist_ok=True)

    def register_processors(auto: ModuleType) -> None:
        for config in configs:
            auto.AutoProcessor.register(_load(config), _load(processor), exist_ok=True)

    _when_all_imported("configuration_auto", configs, register_configs)
    _when_all_imported("modeling_auto", (*configs, *models), register_models)
    _when_all_imported("processing_auto", (*configs, processor), register_processors)


_register_auto_classes()
