"""What every stage's Trainer does the same way: sampling, groups, EMA, loss parts in the log, what is saved."""

from __future__ import annotations

import json
import math
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import (
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.trainer_utils import EvalLoopOutput, TrainOutput, get_last_checkpoint

from ..hub_cards.card import CARD_FILE, create_card
from ..hub_cards.checkpoints import kind_of
from ..modeling_priorvla.flow_draws import FlowDraws
from ..modeling_priorvla.motion_model import MotionPreTrainedModel
from .data.trajectory_dataset import MixtureSampler, whole_batch
from .pushing import PushesToHub
from .run_cost import RunCost
from .stage_arguments import StageTrainingArguments
from .stream_training import TrainsOnStreams
from .weight_average import WeightAverage

PER_EMBODIMENT = ("action_in_proj", "action_out_proj", "state_proj", "soft_tokens")
EVALUATION_SEED = 0
EVALUATION = -1  # stands for a step's number


def is_decayed(name: str, parameter: nn.Parameter) -> bool:
    """Whether weights of this name decay: matrices of linear maps do, except one embodiment's own.

    Decay would move a body that nobody trains on.
    """
    return parameter.ndim == 2 and name.endswith(".weight") and not any(part in name for part in PER_EMBODIMENT)


class StageTrainer(PushesToHub, TrainsOnStreams):
    """A `transformers.Trainer` for models that return `loss` and, for more than one term, `losses`.

    Args:
        model: float32 weights; mixed precision is autocast's affair.
        processor: saved beside every checkpoint.
        lr_scales, weight_decays: learning-rate factor, and weight decay instead of the arguments', of parameters in
            whose name the key, a regular expression, is found; the first that is counts.
        datasets, base_model: what the card names as the run's data and start.
        And everything that `Trainer` takes.

    Raises:
        ValueError: when a trained weight is not float32, the processor's embodiments are not the config's, or an
            average is asked for under FSDP.
    """

    args: StageTrainingArguments
    model: MotionPreTrainedModel
    card_arguments: tuple[str, ...] = ("learning_rate", "weight_decay", "ema_decay")

    def __init__(
        self,
        model: MotionPreTrainedModel,
        args: StageTrainingArguments,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | None = None,
        processor: Any = None,
        lr_scales: dict[str, float] | None = None,
        weight_decays: dict[str, float] | None = None,
        datasets: Sequence[str] = (),
        base_model: str | None = None,
        **kwargs: Any,
    ) -> None:
        _require_float32(model)
        if processor is not None:
            model.config.expert.require_embodiments(processor.embodiments)
        self.lr_scales, self.weight_decays = lr_scales or {}, weight_decays or {}
        self.card_facts: dict[str, Any] = {"datasets": datasets, "base_model": base_model, "metrics": None}
        # of every part of the loss: its sum over a batch's windows, and how many there are
        self._parts: dict[bool, dict[str, list[Tensor]]] = {True: defaultdict(list), False: defaultdict(list)}
        kwargs.setdefault("data_collator", whole_batch)
        # not Trainer's `processing_class`, which it takes for a tokenizer
        self.processor = processor
        super().__init__(model, args, train_dataset=train_dataset, eval_dataset=eval_dataset, **kwargs)
        self.cost = RunCost()
        self.add_callback(self.cost)
        self.model_accepts_loss_kwargs = False  # our losses are means over a batch's windows
        if self.is_fsdp_enabled:
            if args.ema_decay:
                raise ValueError(
                    f"ema_decay={args.ema_decay}: the average is of whole weights, FSDP shards them: set ema_decay=0"
                )
            model.give_every_embodiment_a_gradient()
        self._drawn_for: int | None = None  # the step whose randomness was drawn last
        self._passes = 0  # of the model since it was first drawn for
        self.average = WeightAverage(self.model, args.ema_decay) if args.ema_decay else None
        if self.average is not None:
            self.add_callback(_AverageAfterStep(self.average))

    def train(
        self,
        resume_from_checkpoint: str | os.PathLike[str] | bool | None = None,
        *args: Any,
        push: bool = True,
        **kwargs: Any,
    ) -> TrainOutput:
        """As Trainer's; seeded here too, so that what was drawn since the Trainer was made does not change the run.

        Resuming from a checkpoint that has all its steps only loads it: Trainer's loop would take one more. With
        `args.push_to_hub` the trained model is pushed, unless `push` is False: then that is left to the caller, who has
        something to add to it first.
        """
        set_seed(self.args.seed)
        resume_from_checkpoint = self._checkpoint_to_resume(resume_from_checkpoint)
        state = None
        if resume_from_checkpoint is not None:
            state = TrainerState.load_from_json(str(Path(resume_from_checkpoint) / TRAINER_STATE_NAME))
        if state is not None and state.global_step >= self.args.max_steps > 0:
            assert resume_from_checkpoint is not None
            self._load_from_checkpoint(resume_from_checkpoint)
            self.state = state
            output = TrainOutput(state.global_step, math.nan, {})
        else:
            output = super().train(resume_from_checkpoint, *args, **kwargs)
        if push and self.args.push_to_hub:
            self.push_to_hub()
        return output

    def _checkpoint_to_resume(self, asked: str | os.PathLike[str] | bool | None) -> str | None:
        """The folder that `train` resumes from; of True the run's last one. Raises ValueError when there is none."""
        if asked is True:
            last = get_last_checkpoint(str(self.run_folder)) if self.run_folder.is_dir() else None
            if last is None:
                raise ValueError(f"{self.run_folder} has no checkpoint to resume from")
            return last
        return os.fspath(asked) if asked else None

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        outputs = model(**{"draws": self._draw(inputs, model.training), **inputs})
        for name, value in (getattr(outputs, "losses", None) or {}).items():
            windows = len(inputs["actions"])
            self._parts[model.training][name].append(torch.stack([value.detach() * windows, value.new_tensor(windows)]))
        return (outputs.loss, {"loss": outputs.loss}) if return_outputs else outputs.loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the mean of every loss part since the last line."""
        if "loss" in logs:
            logs |= self._mean_parts(training=True, prefix="loss_")
        super().log(logs, start_time)

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """With the averaged weights and a fixed seed, so that evaluations compare and training does not notice them."""
        arguments = (dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        self._parts[False].clear()
        self._drawn_for = None
        with self.average.applied() if self.average is not None else nullcontext():
            output = super().evaluation_loop(*arguments)
        assert output.metrics is not None  # Trainer's loop always gives a dict
        output.metrics.update(self._mean_parts(training=False, prefix=f"{metric_key_prefix}_loss_"))
        return output

    def _mean_parts(self, training: bool, prefix: str) -> dict[str, float]:
        """Over windows, as the loss's own mean is: a short last batch counts for less."""
        means = {}
        for name, values in self._parts[training].items():
            total, windows = self.accelerator.gather(torch.stack(values).sum(0)[None]).sum(0)
            means[prefix + name] = (total / windows).item()
        self._parts[training].clear()
        return means

    # --- what is drawn, and what it moves -----------------------------------------------------------------------------

    def _draw(self, batch: dict[str, Any], training: bool) -> FlowDraws:
        """This process's rows of what chance decides in a step.

        Drawn is for the whole step, over its processes and accumulated passes, from the seed and the step's number
        alone: a run depends neither on how many processes share it nor on having been resumed. An evaluation draws
        from a seed of its own, pass by pass.
        """
        args = self.args
        step = self.state.global_step if training else EVALUATION
        self._passes = self._passes + 1 if step == self._drawn_for else 0
        self._drawn_for, now = step, self._passes
        seed, own, passes = (args.seed, step), args.train_batch_size, args.gradient_accumulation_steps
        if not training:
            seed, own, passes, now = (EVALUATION_SEED, now), args.eval_batch_size, 1, 0
        generator = torch.Generator(args.device).manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))
        windows, steps = batch["actions"].shape[:2]
        each = getattr(args, "flow_draws", 1) if training else 1  # of a window
        draws = self.model.draw(passes * args.world_size * own * each, steps, generator)
        return draws.rows((now * args.world_size + args.process_index) * own * each, windows * each)

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler[int]:
        dataset: Any = self.train_dataset if train_dataset is None else train_dataset
        args = self.args
        step = args.train_batch_size * args.world_size * args.gradient_accumulation_steps
        return MixtureSampler(
            getattr(dataset, "windows", dataset),
            args.seed if args.data_seed is None else args.data_seed,
            1 if args.dataloader_drop_last else step,
        )

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """See `is_decayed`."""
        return [name for name, parameter in model.named_parameters() if is_decayed(name, parameter)]

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Groups by learning rate and weight decay."""
        if self.optimizer is None:
            model = self.model if model is None else model
            decayed = set(self.get_decay_parameter_names(model))
            groups: dict[tuple[float, float], list[nn.Parameter]] = defaultdict(list)
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    scale = _by_name(self.lr_scales, name, 1.0)
                    decay = _by_name(self.weight_decays, name, self.args.weight_decay) if name in decayed else 0.0
                    groups[scale, decay].append(parameter)
            # a wrapped model is as good, whatever the annotation says
            optimizer_class, arguments = self.get_optimizer_cls_and_kwargs(self.args, model)  # type: ignore[arg-type]
            rate = arguments["lr"]
            settings = [
                {"params": members, "lr": rate * scale, "weight_decay": decay}
                for (scale, decay), members in groups.items()
            ]
            self.optimizer = optimizer_class(settings, **arguments)
        return self.optimizer

    # --- saving and resuming ------------------------------------------------------------------------------------------

    @property
    def run_folder(self) -> Path:
        """Where the run is saved, `args.output_dir`."""
        assert self.args.output_dir is not None  # TrainingArguments fills it in
        return Path(self.args.output_dir)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """Every process comes here, one writes."""
        folder = Path(output_dir or self.run_folder)
        with self.average.applied() if self.average is not None else nullcontext():
            super()._save(str(folder), state_dict if self.average is None else None)
            values = self.card_values()  # of the weights that were saved; of shards, every process is asked
        if not self.args.should_save:
            return
        if self.average is not None and folder.name.startswith("checkpoint-"):
            self.average.save_raw(folder)
        if self.processor is not None:
            self.processor.save_pretrained(folder)
        (folder / TRAINING_ARGS_NAME).unlink(missing_ok=True)  # a pickle
        self._write_card(folder, values)

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Writes the run's card (README.md), when there is a processor to say for which bodies it is."""
        self._write_card(self.run_folder, self.card_values())

    def _write_card(self, folder: Path, values: dict[str, Any]) -> None:
        if self.processor is None:
            return
        args = self.args
        recipe = {
            "steps": self.state.global_step,
            "windows a step": args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
            "seed": args.seed,
            **{key: getattr(args, key) for key in self.card_arguments},
            "cost": self.cost.facts(args),
        }
        card = create_card(
            kind_of(self.model.config),
            config=self.model.config,
            embodiments=self.processor.embodiments,
            license=args.license,
            training=recipe,
            parameters=sum(parameter.numel() for parameter in self.saved_parameters()),
            **self.card_facts,
            **values,
        )
        card.save(folder / CARD_FILE)

    def saved_parameters(self) -> Iterator[Tensor]:
        """What a checkpoint has."""
        return self.model.parameters()

    def card_values(self) -> dict[str, Any]:
        """Further arguments of `create_card`, of a stage's own."""
        return {}

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.average is not None:
            state = json.loads((Path(resume_from_checkpoint) / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
            self.average.resume(resume_from_checkpoint, state["global_step"])

    def _load_best_model(self) -> None:
        """Checkpoints hold averages: the best one's is the average now, which is what is saved and evaluated."""
        super()._load_best_model()
        if self.average is not None:
            self.average.take_over()


class _AverageAfterStep(TrainerCallback):
    def __init__(self, average: WeightAverage) -> None:
        self.average = average

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.average.step()


def _by_name(values: dict[str, float], name: str, otherwise: float) -> float:
    return next((value for pattern, value in values.items() if re.search(pattern, name)), otherwise)


def _require_float32(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.dtype != torch.float32:
            raise ValueError(
                f"weight {name!r} is {parameter.dtype}: training needs float32 weights (load with dtype=torch.float32) "
                "and gets its speed from bf16=True, which is autocast"
            )


__all__ = ["StageTrainer", "is_decayed"]
