"""Training on a stream: what a run saw is never seen again after a resume, and nothing is left out."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import set_seed

from priorvla.configuration.configuration_action_prior import ActionPriorConfig
from priorvla.modeling_priorvla.modeling_action_prior import ActionPriorModel
from priorvla.training.action_prior_arguments import ActionPriorTrainingArguments
from priorvla.training.action_prior_trainer import ActionPriorTrainer
from priorvla.training.data.parquet_streams import StreamedSource
from priorvla.training.data.streaming import StreamingTrajectoryDataset
from priorvla.training.data.trajectory_dataset import expert_dims

BATCH = 4


@pytest.fixture
def make_trainer(tmp_path, bodies, write_demonstrations, tiny_fields):
    """Two demonstration datasets of one file each; the trainer keeps the actions of every batch that it trains on."""
    folders = [
        write_demonstrations(tmp_path / f"data-{n}", body, [7, 5], n, images=False) for n, body in enumerate(bodies)
    ]
    sources = [StreamedSource.from_lerobot(folder, body) for folder, body in zip(folders, bodies, strict=True)]

    def make(folder, batch_size=BATCH, **arguments):
        set_seed(1)
        expert = {**tiny_fields["expert"], **expert_dims(bodies)}
        model = ActionPriorModel(ActionPriorConfig(expert=expert, encoder=tiny_fields["encoder"]))
        settings = {"warmup_steps": 1, "logging_steps": 1, "save_steps": 3, "use_cpu": True, "disable_tqdm": True}
        dataset = StreamingTrajectoryDataset(sources, bodies, 6, batch_size, pool_windows=10)
        trainer = ActionPriorTrainer(
            model,
            ActionPriorTrainingArguments(
                str(tmp_path / folder), max_steps=8, per_device_train_batch_size=BATCH, **settings, **arguments
            ),
            train_dataset=dataset,
        )
        trainer.seen = []
        model.register_forward_pre_hook(
            lambda _, args, inputs: trainer.seen.append(inputs["actions"]), with_kwargs=True
        )
        return trainer

    return make


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_goes_on_with_the_next_batch_and_ends_with_the_same_weights(make_trainer, workers):
    whole = make_trainer("whole", dataloader_num_workers=workers)
    whole.train()
    assert [len(actions) for actions in whole.seen] == [BATCH] * 8
    resumed = make_trainer("resumed", dataloader_num_workers=workers)
    checkpoint = whole.run_folder / "checkpoint-3"
    assert json.loads((checkpoint / "stream-0.json").read_text())["settings"]["workers"] == max(1, workers)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert len(resumed.seen) == 5
    shutil.rmtree(whole.run_folder / "checkpoint-8")
    again = make_trainer("whole", dataloader_num_workers=workers)
    again.train(resume_from_checkpoint=True)  # the last checkpoint now, of step 6
    assert [torch.equal(ours, theirs) for ours, theirs in zip(again.seen, whole.seen[6:], strict=True)] == [True] * 2
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(resumed.seen, whole.seen[3:], strict=True))
    for ours, theirs in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_stream_of_other_batches_than_the_arguments_say_is_refused(make_trainer):
    with pytest.raises(ValueError, match="batch_size=5 and per_device_train_batch_size=4 must be equal"):
        make_trainer("run", batch_size=5).train()


def test_a_checkpoint_without_its_streams_position_is_not_resumed(make_trainer):
    trainer = make_trainer("run")
    trainer.train()
    checkpoint = trainer.run_folder / "checkpoint-3"
    Path(checkpoint / "stream-0.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"stream-0\.json is missing"):
        make_trainer("again").train(resume_from_checkpoint=str(checkpoint))
