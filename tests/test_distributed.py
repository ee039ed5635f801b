"""Several processes: the same run as one, to rounding; resumed to the bit; sharded weights; accelerate's settings.

So it is for a policy's adapter too, which one process saves and pushes.

The tests start this file under torchrun: `main` is what every process does.
"""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch.distributed.fsdp import fully_shard
from transformers import set_seed

from priorvla.configuration.configuration_action_prior import ActionPriorConfig
from priorvla.modeling_priorvla.modeling_action_prior import ActionPriorModel
from priorvla.modeling_priorvla.modeling_priorvla import PriorVLAModel
from priorvla.modeling_priorvla.processing_priorvla import PriorVLAProcessor
from priorvla.training.action_prior_arguments import ActionPriorTrainingArguments
from priorvla.training.action_prior_trainer import ActionPriorTrainer
from priorvla.training.adapter_presets import lora_config
from priorvla.training.data.live_observations import LiveObservationDataset
from priorvla.training.data.readers import load_trajectories
from priorvla.training.data.trajectory_dataset import TrajectoryDataset, expert_dims, fit_embodiments
from priorvla.training.vla_arguments import VLATrainingArguments
from priorvla.training.vla_trainer import VLATrainer

H, STEPS, BATCH = 4, 7, 4  # 18 windows: the fifth step of an epoch is filled up, the seventh is in the second epoch
EXPERT = {
    "chunk_size": H,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "latent_dim": 8,
    "expert_layers": ["motion", "motion"],
}
ENCODER = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 8}
CHANCE = {"prefix_probability": 0.5, "latent_dropout": 0.3}
CONFIGS = Path(__file__).parents[1] / "configuration" / "accelerate"
# AdamW divides by the gradient's size: where that is next to nothing, so is the precision of what it moves
WEIGHTS = {"atol": 1e-4, "rtol": 0}

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("imports_are_not_garbage")]


@pytest.fixture(scope="module")
def data(tmp_path_factory, bodies, write_demonstrations) -> list[Path]:
    """Motion of two bodies: 12 windows of 4 dims, 6 of 7 dims."""
    folder = tmp_path_factory.mktemp("data")
    return [
        write_demonstrations(folder / body.name, body, lengths, seed, images=False)
        for seed, (body, lengths) in enumerate(zip(bodies, ([7, 5], [6]), strict=True))
    ]


def make_dataset(data: list[Path]) -> TrajectoryDataset:
    sources = [load_trajectories(path) for path in data]
    return TrajectoryDataset(sources, fit_embodiments(sources), H)


def make_model(dataset: TrajectoryDataset) -> ActionPriorModel:
    set_seed(1)
    expert = {**EXPERT, **expert_dims(dataset.embodiments)}
    return ActionPriorModel(ActionPriorConfig(expert=expert, encoder=ENCODER, **CHANCE))


def make_trainer(data: list[Path], folder: Path, batch: int, **arguments) -> ActionPriorTrainer:
    dataset = make_dataset(data)
    defaults = {
        "max_steps": STEPS,
        "per_device_eval_batch_size": batch,
        "warmup_steps": 2,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    return ActionPriorTrainer(
        make_model(dataset),
        ActionPriorTrainingArguments(
            output_dir=str(folder), per_device_train_batch_size=batch, **{**defaults, **arguments}
        ),
        train_dataset=dataset,
        eval_dataset=dataset,
    )


ADAPTER_STEPS = 5
BASE, REPO = "somebody/policy", "me/adapter"
NAMES = (
    "base",
    "backbone",
    "demonstrations",
)  # folders: a policy, its backbone, a robot's episodes


def make_adapter_trainer(places: dict[str, Path], folder: Path, batch: int, **arguments) -> VLATrainer:
    model = PriorVLAModel.from_pretrained(places["base"], backbone=places["backbone"])
    processor = PriorVLAProcessor.from_pretrained(places["base"])
    sources = [load_trajectories(places["demonstrations"], frames=True)]
    windows = TrajectoryDataset(sources, processor.embodiments, model.config.expert.chunk_size)
    set_seed(1)
    defaults = {
        "max_steps": ADAPTER_STEPS,
        "warmup_steps": 2,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    return VLATrainer(
        model,
        VLATrainingArguments(output_dir=str(folder), per_device_train_batch_size=batch, **{**defaults, **arguments}),
        peft_config=lora_config(model, "all", ["small"], rank=2),
        train_dataset=LiveObservationDataset(windows, sources, processor, language=True),
        processor=processor,
        base_model=BASE,
    )


def losses(trainer: ActionPriorTrainer) -> list[float]:
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


# --- in every process of torchrun -------------------------------------------------------------------------------------


def main(folder: Path, places: dict[str, Path], data: list[Path]) -> None:
    """Trains, resumes, evaluates, shards and adapts; process 0 writes what it saw into `folder`."""
    half = BATCH // int(os.environ["WORLD_SIZE"])
    trainer = make_trainer(data, folder / "run", half, save_strategy="steps", save_steps=3, gradient_checkpointing=True)
    trainer.train()
    trainer.save_model()
    resumed = make_trainer(data, folder / "resumed", half, gradient_checkpointing=True)
    resumed.train(resume_from_checkpoint=str(folder / "run" / "checkpoint-3"))
    resumed.save_model()
    report = {
        "world_size": trainer.args.world_size,
        "losses": losses(trainer),
        "resumed_losses": losses(resumed),
        "eval_loss": trainer.evaluate()["eval_loss"],
        "sharding": shard_and_compare(data),
        "adapter": adapt(folder, places, half),
    }
    if trainer.is_world_process_zero():
        (folder / "report.json").write_text(json.dumps(report))
    dist.destroy_process_group()


def adapt(folder: Path, places: dict[str, Path], batch: int) -> dict[str, list[float]]:
    """Trains an adapter, pushes it, and resumes it."""
    pushed = {"push_to_hub": True, "hub_model_id": REPO, "license": "mit"}
    saves = {"save_strategy": "steps", "save_steps": 3}
    trainer = make_adapter_trainer(places, folder / "adapter", batch, **saves, **pushed)
    trainer.train()
    trainer.save_model(str(folder / f"saved_by_{dist.get_rank()}"))
    resumed = make_adapter_trainer(places, folder / "adapter_resumed", batch, gradient_checkpointing=True)
    resumed.train(resume_from_checkpoint=str(folder / "adapter" / "checkpoint-3"))
    resumed.save_model()
    return {"losses": losses(trainer), "resumed_losses": losses(resumed)}


def shard_and_compare(data: list[Path]) -> dict[str, float]:
    """Largest differences of loss and gradient between a sharded model and a whole one.

    Every process has one body alone, so that each lacks projections that another one has.
    """
    dataset, rank, world_size = make_dataset(data), dist.get_rank(), dist.get_world_size()
    batch = dataset.__getitems__([0, 1, 12, 13])  # the large body's windows are those from 12 on
    inputs = {key: batch[key] for key in ("actions", "action_mask", "states", "embodiment_ids")}
    whole = make_model(dataset).train()
    sharded = copy.deepcopy(whole)
    draws = whole.draw(BATCH, H, torch.Generator().manual_seed(0))
    loss = whole(**inputs, draws=draws).loss
    loss.backward()

    sharded.give_every_embodiment_a_gradient()
    for layer in (*sharded.expert.layers, *sharded.encoder.layers):
        fully_shard(layer)
    fully_shard(sharded)
    own = BATCH // world_size
    mine = {key: value[rank * own : (rank + 1) * own] for key, value in inputs.items()}
    part = sharded(**mine, draws=draws.rows(rank * own, own)).loss
    part.backward()
    mean = part.detach().clone()
    dist.all_reduce(mean)
    gradients = dict(whole.named_parameters())
    differences = [
        (parameter.grad.full_tensor() - gradients[name].grad).abs().max()
        for name, parameter in sharded.named_parameters()
        if parameter.grad is not None and gradients[name].grad is not None
    ]
    without = [name for name, parameter in sharded.named_parameters() if parameter.grad is None]
    return {
        "loss": abs(mean.item() / world_size - loss.item()),
        "gradient": float(torch.stack(differences).max()),
        "compared": len(differences),
        "without": len(without),
    }


# --- tests ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def places(tmp_path_factory, bodies, write_demonstrations, save_policy, tiny_backbone) -> dict[str, Path]:
    """What an adapter is made of: a policy for one body, its backbone, and 13 windows with images."""
    folder = tmp_path_factory.mktemp("places")
    base = save_policy(folder / "base", bodies[:1], fusion="cross")
    demonstrations = write_demonstrations(folder / "demonstrations", bodies[0], [7, 6])
    return dict(zip(NAMES, (base, tiny_backbone, demonstrations), strict=True))


@pytest.fixture(scope="module")
def hub(loopback_hubs, tmp_path_factory):
    with loopback_hubs.LoopbackHub(tmp_path_factory.mktemp("hub")) as hub:
        base = hub.root / "models" / BASE  # an adapter is pushed only when its base is there
        base.mkdir(parents=True)
        (base / "config.json").write_text("{}")
        yield hub


@pytest.fixture(scope="module")
def one_process(data, tmp_path_factory) -> ActionPriorTrainer:
    trainer = make_trainer(data, tmp_path_factory.mktemp("one") / "run", BATCH)
    trainer.train()
    trainer.save_model()
    return trainer


@pytest.fixture(scope="module")
def two_processes(data, places, hub, tmp_path_factory) -> Path:
    """The folder in which two processes, each with half of every batch, have trained."""
    folder = tmp_path_factory.mktemp("two")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*command, __file__, str(folder), *map(str, places.values()), *map(str, data)],
        env={
            **os.environ,
            **hub.settings(folder / "cache"),
            **{"HF_TOKEN": hub.token, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-12000:]
    return folder


def report_of(folder: Path) -> dict:
    return json.loads((folder / "report.json").read_text())


def test_two_processes_have_the_losses_and_weights_of_one(one_process, two_processes):
    report = report_of(two_processes)
    assert report["world_size"] == 2 and len(report["losses"]) == STEPS
    assert report["losses"] == pytest.approx(losses(one_process), abs=1e-5)
    ours = load_file(two_processes / "run" / "model.safetensors")
    theirs = load_file(one_process.run_folder / "model.safetensors")
    torch.testing.assert_close(ours, theirs, **WEIGHTS)


def test_accumulated_passes_have_the_losses_and_weights_of_one_large_batch(one_process, data, tmp_path):
    trainer = make_trainer(data, tmp_path / "run", BATCH // 2, gradient_accumulation_steps=2)
    trainer.train()
    assert losses(trainer) == pytest.approx(losses(one_process), abs=1e-5)
    torch.testing.assert_close(trainer.model.state_dict(), one_process.model.state_dict(), **WEIGHTS)


def test_two_processes_evaluate_as_one(one_process, two_processes):
    assert report_of(two_processes)["eval_loss"] == pytest.approx(one_process.evaluate()["eval_loss"], abs=1e-5)


def test_two_processes_resume_to_the_bit(two_processes):
    report = report_of(two_processes)
    assert report["resumed_losses"] == report["losses"]
    ours, theirs = (load_file(two_processes / name / "model.safetensors") for name in ("resumed", "run"))
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_a_sharded_model_has_the_loss_and_gradients_of_a_whole_one_also_where_a_body_is_absent(two_processes):
    sharding = report_of(two_processes)["sharding"]
    assert sharding["loss"] < 1e-5 and sharding["gradient"] < 1e-5
    assert sharding["compared"] > 50 and sharding["without"] == 0


def test_an_adapter_of_two_processes_is_that_of_one_and_resumes_to_the_bit(two_processes, places, tmp_path):
    report = report_of(two_processes)["adapter"]
    trainer = make_adapter_trainer(places, tmp_path / "one", BATCH)
    trainer.train()
    trainer.save_model()
    assert len(report["losses"]) == ADAPTER_STEPS
    assert report["losses"] == pytest.approx(losses(trainer), abs=1e-5)
    folders = two_processes / "adapter", two_processes / "adapter_resumed", tmp_path / "one"
    ours, resumed, theirs = (load_file(folder / "adapter_model.safetensors") for folder in folders)
    torch.testing.assert_close(ours, theirs, **WEIGHTS)
    assert report["resumed_losses"] == report["losses"]
    assert all(torch.equal(value, resumed[name]) for name, value in ours.items())


def test_one_process_of_two_saves_the_adapter_and_pushes_it(two_processes, hub):
    assert (two_processes / "saved_by_0" / "adapter_model.safetensors").is_file()
    assert not (two_processes / "saved_by_1").exists()
    repository = hub.opened("models", REPO)
    assert [commit.title for commit in repository.commits.values()][1:] == ["End of training"]
    pushed, saved = (folder / "adapter_model.safetensors" for folder in (repository.folder, two_processes / "adapter"))
    assert pushed.read_bytes() == saved.read_bytes()
    assert sum(line.startswith("POST") and "/commit/" in line for line in hub.requests) == 1


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.yaml")), ids=lambda file: file.stem)
def test_accelerate_reads_the_shipped_settings_and_wraps_layers_that_exist(file, data):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(file))
    assert (
        config.num_processes == 2 and config.distributed_type.value == {"ddp": "MULTI_GPU", "fsdp2": "FSDP"}[file.stem]
    )
    wrapped = config.fsdp_config.get("fsdp_transformer_layer_cls_to_wrap")
    if wrapped is not None:
        assert set(wrapped.split(",")) == set(make_model(make_dataset(data))._no_split_modules)


def test_both_settings_are_shipped():
    assert {file.stem for file in CONFIGS.glob("*.yaml")} == {"ddp", "fsdp2"}


if __name__ == "__main__":
    given = [Path(path) for path in sys.argv[1:]]
    main(given[0], dict(zip(NAMES, given[1:4], strict=True)), given[4:])
