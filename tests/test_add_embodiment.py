"""A new body in a trained model: nothing of the old ones moves, not one bit, and the new one learns alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from priorvla.configuration.configuration_action_prior import ActionPriorConfig
from priorvla.configuration.embodiment import Embodiment
from priorvla.modeling_priorvla.backbone import LanguageFeatures, VisionFeatures
from priorvla.modeling_priorvla.modeling_action_prior import ActionPriorModel
from priorvla.modeling_priorvla.modeling_priorvla import PriorVLAModel
from priorvla.modeling_priorvla.processing_priorvla import PriorVLAProcessor
from priorvla.training.action_prior_arguments import ActionPriorTrainingArguments
from priorvla.training.action_prior_trainer import ActionPriorTrainer
from priorvla.training.data.readers import load_trajectories
from priorvla.training.data.trajectory_dataset import TrajectoryDataset, expert_dims

B, WIDE = 6, 14
IDS = torch.tensor([0, 1, 0, 1, 1, 0])
VLA = {
    "fusion_transformer": {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1},
    "vision_hidden_size": 16,
    "text_hidden_size": 24,
}


@pytest.fixture(scope="module")
def new_body() -> Embodiment:
    """Wider than both old bodies: 14 + 14 dims."""
    random = np.random.default_rng(3)
    names = [f"j{i}" for i in range(WIDE)]
    body = Embodiment(name="bimanual", action_names=names, state_names=names, control_rate=10.0)
    return body.with_statistics(random.normal(size=(50, WIDE)), random.normal(size=(50, WIDE)))


@pytest.fixture
def prior(bodies, tiny_fields) -> ActionPriorModel:
    """A 4-dim and a 7-dim body, in which every path has an effect."""
    torch.manual_seed(0)
    expert = {**tiny_fields["expert"], **expert_dims(bodies), "context_tokens": ["latent", "soft", "state"]}
    return awake(ActionPriorModel(ActionPriorConfig(expert=expert, encoder=tiny_fields["encoder"])))


def awake(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    return model.eval()


@torch.no_grad()
def outputs(prior: ActionPriorModel, bodies: list[int] | None = None) -> dict[str, torch.Tensor]:
    """What the model answers for old bodies, cut to their 7 dims; inputs are padded as a dataset pads them."""
    width, steps = prior.config.expert.action_dim, prior.config.expert.chunk_size
    ids = IDS if bodies is None else torch.tensor(bodies)
    generator = torch.Generator().manual_seed(1)

    def padded(dims, widest):
        return nn.functional.pad(torch.randn(len(ids), steps, dims, generator=generator), (0, widest - dims))

    actions, states = padded(7, width), padded(5, prior.config.expert.state_dim)
    noise, timestep = padded(7, width), torch.rand(len(ids), generator=generator)
    forward = prior(actions, ids, states, noise=noise, timestep=timestep)
    prefix = {"prefix_actions": actions[:, :2], "state": states[:, 0]}
    sampled = prior.sample_actions(embodiment_ids=ids, generator=torch.Generator().manual_seed(2), **prefix)
    rebuilt = prior.reconstruct(states, actions, ids, generator=torch.Generator().manual_seed(3))
    return {
        "encode": prior.encode(states, actions, ids),
        "loss": forward.loss,
        "velocity": forward.velocity[..., :7],
        "sample": sampled[..., :7],
        "reconstruction": rebuilt[..., :7],
    }


def require_same_bits(ours: dict, theirs: dict) -> None:
    assert [name for name, value in ours.items() if not torch.equal(value, theirs[name])] == []


def own_parameters(model, index: int) -> set[str]:
    return {
        name for name, _ in model.named_parameters() if f".projections.{index}." in name or f".tokens.{index}" in name
    }


def train_alone(model, bodies, new_body, dataset: TrajectoryDataset, folder, steps: int = 20) -> ActionPriorTrainer:
    arguments = ActionPriorTrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=8,
        warmup_steps=1,
        logging_steps=1,
        learning_rate=1e-2,
        weight_decay=0.5,
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    processor = PriorVLAProcessor(embodiments=[*bodies, new_body], chunk_size=model.config.expert.chunk_size)
    trainer = ActionPriorTrainer(model, arguments, train_dataset=dataset, processor=processor)
    trainer.train()
    trainer.save_model()
    return trainer


@pytest.fixture
def new_motion(tmp_path, bodies, new_body, write_demonstrations, prior) -> TrajectoryDataset:
    """Motion of the new body alone."""
    folder = write_demonstrations(tmp_path / "motion", new_body, [20, 12], images=False)
    return TrajectoryDataset([load_trajectories(folder)], [*bodies, new_body], prior.config.expert.chunk_size)


# --- adding -----------------------------------------------------------------------------------------------------------


def test_a_wider_body_changes_no_bit_of_what_the_model_answers_for_the_old_ones(prior):
    mixed, alone = outputs(prior), outputs(prior, [1, 1, 1])
    assert prior.add_embodiment("bimanual", WIDE, WIDE) == 2
    assert (prior.config.expert.action_dim, prior.config.expert.state_dim) == (WIDE, WIDE)
    require_same_bits(mixed, outputs(prior))
    require_same_bits(alone, outputs(prior, [1, 1, 1]))


def test_a_second_body_beside_the_first_changes_no_bit_either(bodies, tiny_fields):
    torch.manual_seed(0)
    expert = {**tiny_fields["expert"], **expert_dims(bodies[1:]), "context_tokens": ["latent", "soft", "state"]}
    prior = awake(ActionPriorModel(ActionPriorConfig(expert=expert, encoder=tiny_fields["encoder"])))
    before = outputs(prior, [0] * 4)
    prior.add_embodiment("bimanual", WIDE, WIDE)
    require_same_bits(before, outputs(prior, [0] * 4))


def test_the_new_body_can_be_encoded_and_sampled_and_survives_saving(prior, tmp_path):
    index = prior.add_embodiment("bimanual", WIDE, 3)
    ids, state = torch.full((2,), index), torch.zeros(2, 5)
    chunk = prior.sample_actions(embodiment_ids=ids, state=state, generator=torch.Generator().manual_seed(0))
    assert chunk.shape == (2, 6, WIDE) and (chunk != 0).all()
    prior.save_pretrained(tmp_path)
    loaded = ActionPriorModel.from_pretrained(tmp_path)
    assert loaded.config.expert.embodiments == ["small", "large", "bimanual"]
    again = loaded.sample_actions(embodiment_ids=ids, state=state, generator=torch.Generator().manual_seed(0))
    assert torch.equal(chunk, again)


def test_a_body_like_another_starts_as_that_one_and_where_widths_differ_afresh(prior):
    twin = prior.add_embodiment("twin", 7, 3, like="large")
    parameters = dict(prior.named_parameters())
    for name in own_parameters(prior, twin):
        theirs = parameters[name.replace(f".{twin}", ".1")]
        same = parameters[name].shape == theirs.shape and torch.equal(parameters[name], theirs)
        assert same is not ("state_proj" in name), name  # 3 state dims beside 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("large", 3, 3), "'large' is already id 1 here: choose another name"),
        (("new", 0, 3), "action_dim=0 must be positive"),
        (("new", 3, -1), "state_dim=-1 not negative"),
    ],
)
def test_an_impossible_new_body_is_refused(prior, arguments, message):
    with pytest.raises(ValueError, match=message):
        prior.add_embodiment(*arguments)


def test_an_unknown_model_body_is_refused_with_those_that_there_are_and_nothing_is_added(prior):
    names = set(prior.state_dict())
    with pytest.raises(ValueError, match="'tall' is not in this checkpoint, which has small, large"):
        prior.add_embodiment("new", 3, 3, like="tall")
    with pytest.raises(ValueError, match="'tall' is not in this checkpoint"):
        prior.train_only_embodiment("tall")
    assert set(prior.state_dict()) == names and prior.config.expert.embodiments == ["small", "large"]


# --- training it alone ------------------------------------------------------------------------------------------------


def test_training_the_new_body_alone_teaches_it_and_changes_no_bit_of_the_old_ones(
    prior, bodies, new_body, new_motion, tmp_path
):
    before, weights = outputs(prior), {name: value.clone() for name, value in prior.state_dict().items()}
    index = prior.add_embodiment(new_body.name, new_body.action_dim, new_body.state_dim)
    prior.train_only_embodiment(new_body.name)
    trainer = train_alone(prior, bodies, new_body, new_motion, tmp_path / "run")
    trained = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    parameters = dict(prior.named_parameters())
    assert {name for name, p in parameters.items() if id(p) in trained} == own_parameters(prior, index)
    loaded = ActionPriorModel.from_pretrained(tmp_path / "run")
    for model in (prior.eval(), loaded):
        require_same_bits(weights, model.state_dict())
        require_same_bits(before, outputs(model))
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


def test_the_average_of_a_body_that_trains_alone_is_of_its_parameters_alone_and_is_what_is_saved(
    prior, bodies, new_body, new_motion, tmp_path
):
    index = prior.add_embodiment(new_body.name, new_body.action_dim, new_body.state_dim)
    prior.train_only_embodiment(new_body.name)
    born = {name: value.clone() for name, value in prior.state_dict().items()}
    trainer = train_alone(prior, bodies, new_body, new_motion, tmp_path / "run")
    saved, raw = load_file(tmp_path / "run" / "model.safetensors"), prior.state_dict()
    own = own_parameters(prior, index)
    assert trainer.average.trained.keys() == own
    for name in own:
        assert not torch.equal(saved[name], raw[name]) and not torch.equal(saved[name], born[name]), name


def test_the_saved_processor_speaks_for_the_old_bodies_and_the_new_one(prior, bodies, new_body, new_motion, tmp_path):
    prior.add_embodiment(new_body.name, new_body.action_dim, new_body.state_dim)
    prior.train_only_embodiment(new_body.name)
    train_alone(prior, bodies, new_body, new_motion, tmp_path / "run", steps=1)
    names = [body.name for body in PriorVLAProcessor.from_pretrained(tmp_path / "run").embodiments]
    assert names == ["small", "large", "bimanual"]
    with pytest.raises(ValueError, match="bimanual"):
        train_alone(prior, bodies, replace(new_body, name="another"), new_motion, tmp_path / "other", steps=1)


# --- the policy -------------------------------------------------------------------------------------------------------


def test_a_policy_takes_a_new_body_and_answers_as_before_for_the_old_ones(prior):
    vla = awake(PriorVLAModel.from_action_prior(prior, **VLA))
    ids = torch.tensor([0, 1])
    generator = torch.Generator().manual_seed(0)
    seen = {
        "vision_features": VisionFeatures(
            torch.randn(2, 1, 4, 16, generator=generator), torch.ones(2, 4, dtype=torch.bool), 1, (12,)
        ),
        "language_features": LanguageFeatures(
            torch.randn(2, 1, 3, 24, generator=generator), torch.ones(2, 3, dtype=torch.bool), None
        ),
    }
    state = torch.randn(2, 5, generator=generator)

    def act(states, ids):
        return vla.sample_actions(state=states, embodiment_ids=ids, generator=torch.Generator().manual_seed(1), **seen)

    before = act(state, ids)
    new = vla.add_embodiment("bimanual", WIDE, WIDE)
    wide = nn.functional.pad(state, (0, WIDE - 5))
    assert torch.equal(act(wide, ids)[..., :7], before)
    assert (act(wide, torch.tensor([new, new])) != 0).all()
    vla.train_only_embodiment("bimanual")
    assert {name for name, p in vla.named_parameters() if p.requires_grad} == own_parameters(vla, new)
