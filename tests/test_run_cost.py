"""What a run took is measured, and stands in its card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from priorvla.training.action_prior_arguments import ActionPriorTrainingArguments
from priorvla.training.action_prior_trainer import ActionPriorTrainer
from priorvla.training.data.trajectory_dataset import TrajectoryDataset
from priorvla.training.run_cost import RunCost, device_name, peak_memory


@pytest.fixture
def train(tiny_priors: Any, tmp_path: Path) -> Any:
    source = tiny_priors.motion(tiny_priors.body("arm", 2), "waves", 2, 0)

    def run(steps: int, *callbacks: TrainerCallback, resume: bool = False) -> ActionPriorTrainer:
        model, bodies = tiny_priors.make_prior([source])
        arguments = ActionPriorTrainingArguments(
            str(tmp_path / "run"), max_steps=steps, save_steps=2, use_cpu=True, report_to=[], disable_tqdm=True
        )
        windows = TrajectoryDataset([source], bodies, tiny_priors.CHUNK)
        trainer = ActionPriorTrainer(model, arguments, windows, callbacks=[*callbacks])
        trainer.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2") if resume else None)
        return trainer

    return run


def test_minutes_device_memory_and_processes_are_told_once_a_training_has_begun(train):
    cost = RunCost()
    assert cost.facts(ActionPriorTrainingArguments("unused", use_cpu=True)) == {}
    trainer = train(2, cost)
    told = cost.facts(trainer.args)
    assert told["processes"] == 1 and told["device"] == device_name(torch.device("cpu"))
    assert told["minutes of training"] == round(cost.seconds / 60, 1) and cost.seconds > 0
    assert float(told["peak memory"].removesuffix(" GB")) > 0.1


def test_what_comes_behind_the_last_step_is_not_counted_so_that_its_cards_say_the_same(train):
    cost, saved = RunCost(), []

    class AtASave(TrainerCallback):
        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            saved.append(cost.seconds)

    train(4, cost, AtASave())
    assert 0 < saved[0] < saved[1] == cost.seconds


def test_of_a_resumed_run_it_is_said_since_when(train):
    train(2)
    cost = RunCost()
    trainer = train(4, cost, resume=True)
    assert "resumed at step 2" in cost.facts(trainer.args)["minutes of training"]


def test_the_processor_is_named_with_its_threads():
    threads = torch.get_num_threads()
    assert device_name(torch.device("cpu")).endswith(f", {threads} thread{'s' if threads > 1 else ''}")
    assert (peak_memory(torch.device("cpu")) or 2**28) > 2**26
