"""Fixtures of several test files."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest


@pytest.fixture(scope="module")
def imports_are_not_garbage() -> Iterator[None]:
    """A Trainer collects garbage whenever it starts: a third of a second, if it has to look at all imported modules."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session")
def tiny_backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random vision-text dual encoder: see tiny_backbones.py."""
    return load_beside("tiny_backbones").save_dual_encoder(tmp_path_factory.mktemp("tiny_backbone"))


@pytest.fixture(scope="session")
def tiny_backbones() -> Any:
    """The module tiny_backbones.py: a function a family of backbones."""
    return load_beside("tiny_backbones")


@pytest.fixture(scope="session")
def other_server() -> Any:
    """The function of other_server.py: a policy server of somebody else's."""
    return load_beside("other_server").other_server


@pytest.fixture(scope="session")
def tiny_smolvlm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random SmolVLM: see tiny_backbones.py."""
    return load_beside("tiny_backbones").save_smolvlm(tmp_path_factory.mktemp("tiny_smolvlm"))


@pytest.fixture(scope="session")
def bodies() -> list:
    """Two robots, of 4 + 3 and 7 + 5 dims, with statistics and a camera each."""
    import numpy as np

    from priorvla.configuration.embodiment import Embodiment

    random = np.random.default_rng(0)
    return [
        Embodiment(
            name=name,
            action_names=[f"a{i}" for i in range(action_dim)],
            state_names=[f"s{i}" for i in range(state_dim)],
            control_rate=10.0,
            cameras=["front"],
        ).with_statistics(random.normal(size=(50, state_dim)), random.normal(size=(50, action_dim)))
        for name, action_dim, state_dim in (("small", 4, 3), ("large", 7, 5))
    ]


@pytest.fixture(scope="session")
def write_demonstrations() -> Callable[..., Path]:
    """`(folder, embodiment, lengths, seed=0, images=True)` writes a LeRobot dataset: random episodes, 28 px frames."""
    import numpy as np

    from priorvla.configuration.embodiment import Embodiment
    from priorvla.training.data.lerobot_writer import LeRobotDatasetWriter

    def write(folder: Path, body: Embodiment, lengths: Sequence[int], seed: int = 0, images: bool = True) -> Path:
        random = np.random.default_rng(seed)
        cameras = body.cameras if images else []
        with LeRobotDatasetWriter(folder, body, dict.fromkeys(cameras, (28, 28))) as writer:
            for episode, length in enumerate(lengths):
                writer.add_episode(
                    random.normal(size=(length, body.state_dim)),
                    random.normal(size=(length, body.action_dim)),
                    ("open the drawer", "press the red button now")[episode % 2],
                    {camera: random.integers(0, 256, (length, 28, 28, 3), dtype=np.uint8) for camera in cameras},
                )
        return folder

    return write


@pytest.fixture(scope="session")
def tiny_fields() -> dict[str, Any]:
    """Fields of either model's config with a small expert and encoder, chunks of 6 steps; bodies are to be added."""
    attention = {"num_attention_heads": 2, "head_dim": 8}
    return {
        "expert": {
            "chunk_size": 6,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_key_value_heads": 2,
            "latent_dim": 8,
            "expert_layers": ["motion", "motion"],
            **attention,
        },
        "encoder": {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, **attention},
    }


@pytest.fixture(scope="session")
def save_policy(tiny_backbone: Path, tiny_fields: dict[str, Any]) -> Callable[..., Path]:
    """`(folder, embodiments, backbone_folder=tiny_backbone, **config_fields)` saves an untrained policy, in which
    every path has an effect."""
    import torch

    from priorvla.configuration.backbone_reference import BACKBONE_KEYS
    from priorvla.configuration.configuration_priorvla import PriorVLAConfig
    from priorvla.modeling_priorvla.backbone import describe_backbone
    from priorvla.modeling_priorvla.modeling_priorvla import PriorVLAModel
    from priorvla.modeling_priorvla.processing_priorvla import PriorVLAProcessor
    from priorvla.training.data.trajectory_dataset import expert_dims

    def save(folder: Path, embodiments: Sequence[Any], backbone_folder: Path = tiny_backbone, **fields: Any) -> Path:
        reference = describe_backbone(backbone_folder, source="hub", name="tiny-backbone")
        config = PriorVLAConfig(
            expert={**tiny_fields["expert"], **expert_dims(embodiments)},
            encoder=tiny_fields["encoder"],
            fusion_transformer={"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1},
            backbone={key: reference[key] for key in BACKBONE_KEYS},
            vision_hidden_size=reference["vision_hidden_size"],
            text_hidden_size=reference["text_hidden_size"],
            **{"backbone_layers": reference["num_layers"], **fields},
        )
        torch.manual_seed(0)
        model = PriorVLAModel(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.1 * torch.randn(parameter.shape)
        model.save_pretrained(folder)
        PriorVLAProcessor.for_backbone(backbone_folder, embodiments, chunk_size=6).save_pretrained(folder)
        return folder

    return save


@pytest.fixture(scope="session")
def loopback_hubs() -> Any:
    """The module loopback_hub.py."""
    return load_beside("loopback_hub")


@pytest.fixture
def loopback_hub(loopback_hubs: Any, tmp_path: Path) -> Iterator[Any]:
    """A running `LoopbackHub` (loopback_hub.py) without repositories."""
    with loopback_hubs.LoopbackHub(tmp_path / "hub_server") as hub:
        yield hub


@pytest.fixture
def hub(loopback_hub: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The `loopback_hub`, which this process takes for the Hub, and whose user `me` is logged in."""
    import transformers.utils.hub
    from huggingface_hub import constants

    monkeypatch.setattr(transformers.utils.hub, "_hf_api", None, raising=False)  # it would know the Hub of before
    for name, value in (
        ("ENDPOINT", loopback_hub.url),
        ("HUGGINGFACE_CO_URL_TEMPLATE", loopback_hub.url + "/{repo_id}/resolve/{revision}/{filename}"),
        ("HF_HUB_CACHE", str(tmp_path / "cache")),
        ("HF_HUB_DISABLE_XET", True),
        ("HF_HUB_OFFLINE", False),  # the tests run offline, but this is their Hub
        ("HF_HUB_DISABLE_PROGRESS_BARS", True),
    ):
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setenv("HF_TOKEN", loopback_hub.token)
    return loopback_hub


@pytest.fixture(scope="session")
def tiny_priors() -> Any:
    """The module tiny_priors.py: bodies that swing, and priors that are trained on their motion in seconds."""
    return load_beside("tiny_priors")


def load_beside(name: str) -> Any:
    """The module `name` beside this file; tests are no package that could import it."""
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def lerobot() -> Iterator[Any]:
    """The plugin on the stand-in for LeRobot, both gone from sys.modules afterwards."""
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location("lerobot_stand_in", Path(__file__).with_name("lerobot_stand_in.py"))
    stand_in: Any = module_from_spec(spec)
    before = dict(sys.modules)
    sys.modules[spec.name] = stand_in
    spec.loader.exec_module(stand_in)
    stand_in.install()
    import priorvla.deployment.lerobot
    from priorvla.deployment.lerobot import convert, lerobot_batches

    yield SimpleNamespace(
        stand_in=stand_in, convert=convert, batches=lerobot_batches, plugin=priorvla.deployment.lerobot
    )
    for name in set(sys.modules) - set(before):
        if name.split(".")[0] in ("lerobot", spec.name) or name.startswith("priorvla.deployment.lerobot"):
            del sys.modules[name]
    del priorvla.deployment.lerobot
