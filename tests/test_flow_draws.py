"""Several noises for a window in one pass are what as many passes with one noise each are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from priorvla.modeling_priorvla.flow_draws import FlowDraws
from priorvla.modeling_priorvla.modeling_priorvla import PriorVLAModel
from priorvla.modeling_priorvla.processing_priorvla import PriorVLAProcessor
from priorvla.training.data.observation_features import as_features
from priorvla.training.data.readers import load_trajectories
from priorvla.training.observed_windows import observed_windows
from priorvla.training.vla_arguments import VLATrainingArguments
from priorvla.training.vla_trainer import VLATrainer

K, B = 3, 5
HOSTS = ("cross", "joint", "gated", "latent")


@pytest.fixture(params=HOSTS)
def model_and_windows(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    bodies: list,
    tiny_backbone: Path,
    save_policy: Callable,
    write_demonstrations: Callable,
) -> tuple[PriorVLAModel, PriorVLAProcessor, Any]:
    """A policy of each host that has a past and half of whose chunks begin clean, and windows of two bodies."""
    folder = save_policy(tmp_path / "policy", bodies, fusion=request.param, use_history=True, prefix_probability=0.5)
    model = PriorVLAModel.from_pretrained(folder, backbone=tiny_backbone)
    processor = PriorVLAProcessor.from_pretrained(folder)
    sources = [
        load_trajectories(write_demonstrations(tmp_path / body.name, body, [9, 8], seed=seed), frames=True)
        for seed, body in enumerate(bodies)
    ]
    return model, processor, observed_windows(model, processor, sources, tmp_path / "features", max_cache_gb=1)


def rows(draws: FlowDraws, number: int) -> FlowDraws:
    """Those of one of the K passes."""
    return FlowDraws(*(tensor[number::K] for tensor in draws))


def test_the_loss_is_the_mean_of_as_many_passes(model_and_windows: tuple[PriorVLAModel, Any, Any]) -> None:
    model, _, windows = model_and_windows
    model.train()
    batch = as_features(windows.__getitems__([0, 3, 8, 20, len(windows) - 1]), model.config.taps)
    draws = model.draw(K * B, 6, torch.Generator().manual_seed(0))
    draws = draws._replace(prefix=torch.zeros(K * B))  # or windows would count differently, by how much of them is left
    together = model(**batch, draws=draws)
    assert together.velocity.shape[1] == K * 6
    apart = [model(**batch, draws=rows(draws, number)) for number in range(K)]
    for number, own in enumerate(apart):
        mine = together.velocity.unflatten(1, (K, 6))[:, number]
        torch.testing.assert_close(mine, own.velocity, atol=1e-5, rtol=1e-4)
    mean = torch.stack([own.loss for own in apart]).mean()
    torch.testing.assert_close(together.loss, mean, atol=1e-5, rtol=1e-4)
    named = dict(model.expert.named_parameters())
    grown = torch.autograd.grad(together.loss, list(named.values()), allow_unused=True)
    wanted = torch.autograd.grad(mean, list(named.values()), allow_unused=True)
    for name, one, other in zip(named, grown, wanted, strict=True):
        assert (one is None) == (other is None), name
        if one is not None and other is not None:
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-3, msg=lambda text, name=name: f"{name}: {text}")


def test_chunks_of_one_window_have_clean_beginnings_of_their_own(
    model_and_windows: tuple[PriorVLAModel, Any, Any],
) -> None:
    model, _, windows = model_and_windows
    model.train()
    batch = as_features(windows.__getitems__([0, 3, 8, 20, len(windows) - 1]), model.config.taps)
    draws = model.draw(K * B, 6, torch.Generator().manual_seed(0))
    assert (draws.prefix < 0.5).any() and (draws.prefix >= 0.5).any()
    together = model(**batch, draws=draws)
    for number in range(K):
        own = model(**batch, draws=rows(draws, number))
        mine = together.velocity.unflatten(1, (K, 6))[:, number]
        torch.testing.assert_close(mine, own.velocity, atol=1e-5, rtol=1e-4)


def test_a_step_of_a_training_draws_so_often_for_each_window_and_an_evaluation_once(
    model_and_windows: tuple[PriorVLAModel, Any, Any], tmp_path: Path
) -> None:
    model, processor, windows = model_and_windows
    seen: list[tuple[bool, int, int]] = []

    def note(module: PriorVLAModel, arguments: tuple, given: dict[str, Any]) -> None:
        seen.append((module.training, len(given["actions"]), len(given["draws"].timestep)))

    model.register_forward_pre_hook(note, with_kwargs=True)
    arguments = VLATrainingArguments(
        output_dir=str(tmp_path / "run"),
        max_steps=2,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        flow_draws=K,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    VLATrainer(model, arguments, train_dataset=windows, eval_dataset=windows, processing_class=processor).train()
    assert [own for own in seen if own[0]] == [(True, 4, 4 * K)] * 4
    assert {draws == count for training, count, draws in seen if not training} == {True}


def test_no_draw_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="flow_draws=0 must be at least 1"):
        VLATrainingArguments(output_dir="unused", flow_draws=0)
