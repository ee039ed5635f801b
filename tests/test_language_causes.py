"""What `language_causes.py` asks of words, gradients and losses, where the answers are known."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from priorvla.configuration.configuration_priorvla import PriorVLAConfig
from priorvla.modeling_priorvla.dual_encoder import DualEncoderBackbone
from priorvla.modeling_priorvla.modeling_priorvla import PriorVLAModel
from priorvla.modeling_priorvla.processing_priorvla import PriorVLAProcessor
from priorvla.training.data.observation_dataset import ObservationDataset
from priorvla.training.data.readers import load_trajectories
from priorvla.training.observed_windows import observed_windows

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def causes(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The benchmark, a script that imports its neighbours from its own folder."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("language_causes")


def test_an_encoding_that_tells_words_apart_is_told_from_one_that_does_not(
    causes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    vocabulary: dict[str, int] = {}

    def bag(model: None, processor: None, sentences: list[str]) -> torch.Tensor:
        """(N, 100), a place of its own for every word."""
        features = torch.zeros(len(sentences), 100)
        for row, sentence in zip(features, sentences, strict=True):
            row[[vocabulary.setdefault(word, len(vocabulary)) for word in sentence.split()]] = 1
        return features

    monkeypatch.setattr(causes, "encoded", bag)
    told = causes.words(None, None)
    assert told["unseen-object"] == {"colour": 1.0, "shape": 1.0, "place": 1.0, "all": 1.0}
    monkeypatch.setattr(causes, "encoded", lambda model, processor, sentences: torch.zeros(len(sentences), 100))
    assert all(shares["all"] < 0.1 for shares in causes.words(None, None).values())


@pytest.fixture
def model_and_windows(
    tmp_path: Path, bodies: list, tiny_backbone: Path, save_policy: Callable, write_demonstrations: Callable
) -> tuple[PriorVLAModel, ObservationDataset]:
    """A policy of one layer that does not read and one that does, and windows with two instructions."""
    layers = {"expert_layers": ["vision", "vision_language"], "tap_layers": [2, 2]}
    folder = save_policy(tmp_path / "policy", bodies[:1], fusion="cross")
    processor = PriorVLAProcessor.from_pretrained(folder)
    fields = PriorVLAConfig.from_pretrained(folder).to_dict()
    torch.manual_seed(0)
    model = PriorVLAModel(PriorVLAConfig(**{**fields, "expert": {**fields["expert"], **layers}}))
    model.attach_backbone(DualEncoderBackbone.from_pretrained(tiny_backbone))
    sources = [load_trajectories(write_demonstrations(tmp_path / "demos", bodies[0], [9, 8, 7]), frames=True)]
    windows = observed_windows(model, processor, sources, tmp_path / "features", max_cache_gb=1)
    assert isinstance(windows, ObservationDataset)
    return model, windows


def test_words_are_worth_nothing_where_no_gate_is_open(
    causes: Any, model_and_windows: tuple[PriorVLAModel, ObservationDataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, windows = model_and_windows
    monkeypatch.setattr(causes, "EPISODES", 2)
    opened = causes.worth(model, windows)
    assert abs(opened["grows_by"]) > 1e-4
    assert causes.worth(model, windows) == opened  # the same windows and noise for everybody
    with torch.no_grad():
        for name, parameter in model.expert.named_parameters():
            if "cross_gate" in name:
                parameter.zero_()
    assert causes.worth(model, windows)["grows_by"] == 0


def test_gradients_are_told_by_kind_of_layer(
    causes: Any, model_and_windows: tuple[PriorVLAModel, ObservationDataset]
) -> None:
    model, windows = model_and_windows
    model.expert.requires_grad_(True)
    norms = causes.gradients(model, windows, 2)
    assert set(norms) == {f"{kind}: {part}" for kind in ("read", "do not read") for part in ("gates", "weights")}
    assert all(parameter.grad is None for parameter in model.parameters())
    for name, parameter in model.expert.named_parameters():
        parameter.requires_grad_("layers.1." in name and "_gate." in name)
    alone = causes.gradients(model, windows, 2)
    assert set(alone) == {"read: gates"} and alone["read: gates"] == pytest.approx(norms["read: gates"])
