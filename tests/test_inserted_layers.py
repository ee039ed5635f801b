"""The control of `benchmarks/inserted_layers.py`: the same policy but for what its inserted layers begin with."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from priorvla.modeling_priorvla.dual_encoder import DualEncoderBackbone
from priorvla.modeling_priorvla.modeling_priorvla import PriorVLAModel
from priorvla.modeling_priorvla.processing_priorvla import PriorVLAProcessor

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def inserted(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The benchmark, a script that imports its neighbours from its own folder."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("inserted_layers")


@pytest.mark.parametrize("fusion", ["cross", "joint", "gated"])
def test_the_control_differs_in_what_was_copied_only_and_begins_as_its_prior_too(
    inserted: Any,
    fusion: str,
    tmp_path: Path,
    bodies: list,
    tiny_backbone: Path,
    save_policy: Callable,
    write_demonstrations: Callable,
) -> None:
    prior = save_policy(tmp_path / "prior", bodies[:1], fusion=fusion, language=False)
    copies, random = (inserted.begun(prior, beginning, seed=3) for beginning in inserted.BEGINNINGS)
    own, drawn, copied = copies.state_dict(), random.state_dict(), copies.transfer_report.copied
    assert own.keys() == drawn.keys()
    differing = {name for name in own if not torch.equal(own[name], drawn[name])}
    assert differing == {name for name in copied if own[name].any()}
    again = inserted.begun(prior, "random weights", seed=3).state_dict()
    assert all(torch.equal(drawn[name], again[name]) for name in drawn)

    data, losses = write_demonstrations(tmp_path / "demos", bodies[0], [9, 8, 7]), []
    for model in (PriorVLAModel.from_pretrained(prior, backbone=None), copies, random):
        model.attach_backbone(DualEncoderBackbone.from_pretrained(tiny_backbone))
        processor = PriorVLAProcessor.from_pretrained(prior)
        windows = inserted.windows_of(model, processor, data, tmp_path / "features", 1)
        losses.append(inserted.losses(model, windows, "all"))
    assert losses[0] == losses[1] == losses[2]


def test_losses_of_first_windows_are_those_at_which_an_episode_begins(
    inserted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Windows:
        """30 episodes of 3 windows, of which the item is its number."""

        windows: Any = property(lambda self: self)

        def __len__(self) -> int:
            return 90

        def frame_of(self, items: range) -> tuple[torch.Tensor, torch.Tensor]:
            numbers = torch.tensor(list(items))
            return numbers // 3, numbers % 3 * 8

        def __getitems__(self, items: list[int]) -> torch.Tensor:
            return torch.tensor(items, dtype=torch.float32)

    noises: list[int] = []

    def loss_of(model: Any, batch: torch.Tensor, seed: int) -> torch.Tensor:
        noises.append(seed)
        return batch.mean()

    monkeypatch.setattr(inserted, "loss_of", loss_of)
    model = torch.nn.Identity()
    assert inserted.losses(model, Windows(), "all") == [14.5, 44.5, 74.5]
    assert inserted.losses(model, Windows(), "first") == [13.5, 43.5, 73.5]
    assert len(set(noises[3:])) == 3 * inserted.NOISES["first"]
