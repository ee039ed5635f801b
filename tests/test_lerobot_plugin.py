"""Our policies in LeRobot's hands, by its contract: found by name, trained, driven, saved, converted there and back."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from priorvla.configuration.embodiment import Embodiment
from priorvla.deployment.policy import PriorVLAPolicy as RobotPolicy
from priorvla.modeling_priorvla.modeling_priorvla import PriorVLAModel
from priorvla.modeling_priorvla.processing_priorvla import PriorVLAProcessor

SENTENCES = ["open the drawer", "press the red button now", "close the door"]


@pytest.fixture(scope="module")
def checkpoint(save_policy, bodies, tmp_path_factory):
    return save_policy(tmp_path_factory.mktemp("checkpoint"), bodies, fusion="cross", use_history=True, history_size=4)


@pytest.fixture(scope="module")
def relative_checkpoint(save_policy, tmp_path_factory):
    """Of one body, whose two joints are learned relative to the state at a chunk's first step."""
    names, random = ["a", "b", "grip"], np.random.default_rng(0)
    body = Embodiment("arm", names, names, 10.0, gripper_dims=[2], cameras=["front"]).learning("relative")
    body = body.with_statistics(random.normal(size=(50, 3)), random.normal(size=(50, 6, 3)))
    return save_policy(tmp_path_factory.mktemp("relative"), [body], fusion="cross")


@pytest.fixture
def make_config(lerobot, tiny_backbone):
    """`(checkpoint, action_dim=4, state_dim=3, **fields)`: as LeRobot makes it for a dataset of such features."""
    kind = lerobot.stand_in.PolicyFeature
    types = lerobot.stand_in.FeatureType

    def make(checkpoint: Path, action_dim: int = 4, state_dim: int = 3, camera: str = "front", **fields: Any) -> Any:
        return lerobot.plugin.PriorVLAConfig(
            **{"checkpoint": str(checkpoint), "backbone": str(tiny_backbone), "embodiment": "small", **fields},
            input_features={
                "observation.state": kind(types.STATE, (state_dim,)),
                f"observation.images.{camera}": kind(types.VISUAL, (3, 28, 28)),
            },
            output_features={"action": kind(types.ACTION, (action_dim,))},
        )

    return make


@pytest.fixture
def make_policy(lerobot, make_config):
    def make(checkpoint: Path, **fields: Any) -> Any:
        config = make_config(checkpoint, **fields)
        return lerobot.stand_in.policy_class(config)(config=config, dataset_stats={}, dataset_meta=None)

    return make


def batch(rows: int = 3, dims: int = 4, state_dim: int = 3, seed: int = 0) -> dict[str, Any]:
    """A batch as LeRobot's loader makes it of windows of 6 steps, the second of which ends after 4."""
    random = torch.Generator().manual_seed(seed)
    padding = torch.zeros(rows, 6, dtype=torch.bool)
    padding[1:2, 4:] = True
    return {
        "observation.state": torch.randn(rows, state_dim, generator=random),
        "observation.images.front": torch.randint(0, 256, (rows, 3, 28, 28), generator=random) / 255,
        "action": torch.randn(rows, 6, dims, generator=random),
        "action_is_pad": padding,
        "task": SENTENCES[:rows],
    }


def observation(given: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in given.items() if not key.startswith("action")}


# --- found, and configured --------------------------------------------------------------------------------------------


def test_lerobot_finds_policy_and_pipelines_by_the_names_of_the_config(lerobot, checkpoint, make_config):
    config = make_config(checkpoint)
    assert config.type == "priorvla"
    policy = lerobot.stand_in.policy_class(config)
    assert policy.name == config.type and policy.config_class is type(config)
    before, after = lerobot.stand_in.make_processors(config, dataset_stats={"action": {}})
    assert (before.name, after.name) == ("policy_preprocessor", "policy_postprocessor")


def test_the_config_asks_for_the_checkpoints_chunk_and_single_observations(checkpoint, make_config):
    config = make_config(checkpoint)
    assert config.action_delta_indices == [0, 1, 2, 3, 4, 5]
    assert config.observation_delta_indices is None and config.reward_delta_indices is None
    assert config.n_action_steps == 3
    assert config.get_optimizer_preset().lr == config.get_scheduler_preset().peak_lr == config.optimizer_lr


def test_without_lerobot_the_import_says_what_to_install():
    code = "import sys; sys.modules['lerobot'] = None\nimport priorvla.deployment.lerobot"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=Path.home())
    assert done.returncode and "ImportError: lerobot is not installed" in done.stderr and "3.12" in done.stderr


def test_the_second_distribution_has_the_name_that_lerobot_looks_for_and_registers_our_policy(lerobot, monkeypatch):
    folder = Path(__file__).resolve().parents[1] / "lerobot_policy_priorvla"
    project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))
    name = project["project"]["name"]
    assert name.startswith("lerobot_policy_") and project["tool"]["setuptools"]["packages"] == [name]
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, name, raising=False)
    assert __import__(name).PriorVLAConfig is lerobot.stand_in.PreTrainedConfig.choices["priorvla"]


def test_mistakes_in_the_config_are_refused_with_the_remedy(
    lerobot, checkpoint, make_config, make_policy, tiny_priors, tmp_path
):
    identity = lerobot.stand_in.NormalizationMode
    with pytest.raises(ValueError, match="IDENTITY"):
        make_config(checkpoint, normalization_mapping={"ACTION": identity.MEAN_STD})
    with pytest.raises(ValueError, match=r"chunk_size=50 .* has 6"):
        make_config(checkpoint, chunk_size=50)
    with pytest.raises(ValueError, match="between 1 and the chunk's 6"):
        make_config(checkpoint, n_action_steps=7)
    with pytest.raises(ValueError, match=r"--policy\.checkpoint="):
        _ = lerobot.plugin.PriorVLAConfig().action_delta_indices
    with pytest.raises(ValueError, match=r"action has shape \(7,\), embodiment 'small' .* 4 dims"):
        make_policy(checkpoint, action_dim=7)
    with pytest.raises(ValueError, match=r"cameras front, .* has wrist: rename"):
        make_policy(checkpoint, camera="wrist")
    prior, robots = tiny_priors.make_prior([tiny_priors.motion(tiny_priors.body("arm", 3), "waves", 1, 0)])
    with pytest.raises(ValueError, match="is an action prior"):
        make_config(tiny_priors.save_prior(prior, robots, tmp_path / "prior"))


# --- batches ----------------------------------------------------------------------------------------------------------


def test_every_grey_level_survives_lerobots_floats(lerobot):
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(1, 3, 16, 16)
    for images in (levels, levels.float() / 255):
        frames = lerobot.batches.frames_of(images)
        np.testing.assert_array_equal(frames[0, ..., 0], np.arange(256).reshape(16, 16))


def test_a_batch_that_lacks_something_is_refused_by_its_name(checkpoint, make_policy):
    policy, whole = make_policy(checkpoint), batch()
    for key in ("observation.state", "task", "action"):
        with pytest.raises(ValueError, match=f"no '{key}'"):
            policy.forward({name: value for name, value in whole.items() if name != key})
    renamed = {key.replace("front", "wrist"): value for key, value in whole.items()}
    with pytest.raises(ValueError, match=r"cameras front, the batch has wrist"):
        policy.forward(renamed)


# --- training ---------------------------------------------------------------------------------------------------------


def test_the_loss_is_that_of_our_model_on_our_processors_inputs(checkpoint, make_policy, tiny_backbone):
    given = batch()
    policy = make_policy(checkpoint)
    torch.manual_seed(5)
    loss, parts = policy.forward(given)

    model = PriorVLAModel.from_pretrained(checkpoint, backbone=tiny_backbone)
    pictures = (given["observation.images.front"] * 255).round().byte().permute(0, 2, 3, 1).numpy()
    inputs = PriorVLAProcessor.from_pretrained(checkpoint)(
        embodiment="small",
        state=given["observation.state"].numpy(),
        actions=given["action"].numpy(),
        action_mask=~given["action_is_pad"].numpy(),
        images=[{"front": picture} for picture in pictures],
        text=SENTENCES,
    )
    torch.manual_seed(5)
    expected = model(**inputs, draws=model.draw(3, 6))
    assert torch.equal(loss, expected.loss)
    assert parts == {"loss_pred": expected.losses["pred"].item()}


def test_padded_steps_have_no_part_in_the_loss(checkpoint, make_policy):
    policy, given = make_policy(checkpoint), batch()
    other = {**given, "action": given["action"].masked_fill(given["action_is_pad"][..., None], 1e3)}
    losses = []
    for own in (given, other):
        torch.manual_seed(0)
        losses.append(policy.forward(own)[0])
    assert torch.equal(*losses)


def test_losses_of_single_windows_have_the_batchs_loss_as_their_mean(checkpoint, make_policy):
    policy, given = make_policy(checkpoint), batch()
    torch.manual_seed(0)
    mean, _ = policy.forward(given)
    torch.manual_seed(0)
    single, _ = policy.forward(given, reduction="none")
    assert single.shape == (3,) and len(set(single.tolist())) == 3
    torch.testing.assert_close(single.mean(), mean)
    with pytest.raises(ValueError, match="reduction='sum'"):
        policy.forward(given, reduction="sum")


def test_steps_of_lerobots_optimizer_lower_the_loss_and_leave_the_backbone_alone(checkpoint, make_policy):
    policy = make_policy(checkpoint)
    policy.train()
    backbone = {name: value.clone() for name, value in policy.model.backbone.state_dict().items()}
    optimizer = policy.config.get_optimizer_preset().build(policy.get_optim_params())
    losses = []
    for _ in range(30):
        torch.manual_seed(0)
        loss, _ = policy.forward(batch())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert all(torch.equal(value, backbone[name]) for name, value in policy.model.backbone.state_dict().items())


def test_every_trained_parameter_is_in_one_group_and_what_belongs_to_one_body_does_not_decay(checkpoint, make_policy):
    policy = make_policy(checkpoint)
    groups = policy.get_optim_params()
    members = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(members) == sorted(id(own) for own in policy.parameters() if own.requires_grad)
    undecayed = {id(own) for group in groups if group.get("weight_decay") == 0 for own in group["params"]}
    for name, parameter in policy.model.named_parameters():
        assert (id(parameter) in undecayed) == ("projections" in name or "tokens" in name or parameter.ndim != 2) or (
            not name.endswith(".weight")
        ), name


# --- acting -----------------------------------------------------------------------------------------------------------


def test_it_acts_as_our_own_policy_does_past_and_queue_included(checkpoint, make_policy, tiny_backbone):
    ours = RobotPolicy.from_pretrained(checkpoint, backbone=tiny_backbone, embodiment="small")
    policy = make_policy(checkpoint)
    sessions = [ours.new_session(seed) for seed in (0, 1)]
    for step in range(8):
        given = observation(batch(rows=2, seed=step))
        pictures = (given["observation.images.front"] * 255).round().byte().permute(0, 2, 3, 1).numpy()
        states = given["observation.state"].numpy()
        rows = zip(states, pictures, given["task"], strict=True)
        seen = [{"state": state, "images": {"front": own}, "instruction": text} for state, own, text in rows]
        np.testing.assert_array_equal(policy.select_action(given).numpy(), ours.act(sessions, seen))


def test_a_step_that_is_learned_relative_to_the_state_is_decoded_with_that_of_its_chunk(
    relative_checkpoint, make_policy, lerobot
):
    def actions(states: list[float]) -> torch.Tensor:
        policy = make_policy(relative_checkpoint, embodiment=None, action_dim=3)
        before, after = lerobot.stand_in.make_processors(policy.config)
        given = [observation(batch(rows=1)) | {"observation.state": torch.full((1, 3), state)} for state in states]
        return torch.cat([after(policy.select_action(before(own))) for own in given])

    still, moved = actions([1.0, 1.0, 1.0]), actions([1.0, 50.0, 50.0])
    assert torch.equal(still, moved)


def test_pipelines_change_no_number(checkpoint, make_policy, lerobot):
    policy = make_policy(checkpoint)
    before, after = lerobot.stand_in.make_processors(policy.config)
    given = batch()
    assert torch.equal(before(given)["action"], given["action"])
    action = policy.select_action(observation(given))
    assert torch.equal(after(action), action)


def test_a_reset_starts_new_episodes_and_another_number_of_robots_in_between_is_refused(checkpoint, make_policy):
    policy = make_policy(checkpoint)
    given = observation(batch(rows=2))
    first = policy.select_action(given)
    with pytest.raises(ValueError, match=r"has 3 robots, it had 2: call reset"):
        policy.select_action(observation(batch(rows=3)))
    policy.reset()
    again = policy.select_action(given)
    assert not torch.equal(first, again), "every episode has noise of its own"
    assert torch.equal(make_policy(checkpoint).select_action(given), first), "the same seed, the same actions"


@pytest.fixture(scope="module")
def make_checkpoint(save_policy, bodies, tmp_path_factory):
    """`(kinds=..., **fields)`: of the small body, whose actions are of these kinds; without a past."""
    saved: dict[Any, Path] = {}

    def make(kinds: tuple[str, ...] = ("absolute",) * 4, **fields: Any) -> Path:
        if (key := (kinds, *fields.items())) not in saved:
            body = replace(bodies[0], action_kinds=list(kinds), learned_kinds=list(kinds))
            saved[key] = save_policy(tmp_path_factory.mktemp("kinds"), [body], fusion="cross", **fields)
        return saved[key]

    return make


def test_a_chunk_goes_on_from_what_will_be_executed_anyway(make_checkpoint, make_policy):
    policy = make_policy(make_checkpoint())
    given = observation(batch(rows=1))
    chunk = policy.predict_action_chunk(given)
    assert chunk.shape == (1, 6, 4)
    left_over = torch.cat([chunk[0, 3:], torch.zeros(5, 4)])  # LeRobot fills it up with zeros
    for delay, known in ((2, 2), (5, 3), (0, 0)):
        following = policy.predict_action_chunk(given, inference_delay=delay, prev_chunk_left_over=left_over)
        assert torch.equal(following[0, :known], chunk[0, 3 : 3 + known])
        assert following[0, known:].any(dim=-1).all()
    assert policy.supports_rtc()
    with pytest.raises(ValueError, match="one robot, the batch has 2"):
        policy.predict_action_chunk(
            observation(batch(rows=2)), inference_delay=1, prev_chunk_left_over=torch.zeros(2, 4)
        )


@pytest.mark.parametrize(("kinds", "behind"), [(("absolute",) * 4, 1), (("delta",) * 4, 0)], ids=["targets", "moves"])
def test_steps_that_are_truly_zero_are_known_too(make_checkpoint, make_policy, kinds, behind):
    policy, given = make_policy(make_checkpoint(kinds)), observation(batch(rows=1))
    left_over = torch.zeros(4, 4)
    left_over[0] = 0.3
    left_over[3 - behind] = 0.1  # of targets, the last row is filled up
    chunk = policy.predict_action_chunk(given, inference_delay=3, prev_chunk_left_over=left_over)
    assert torch.equal(chunk[0, :3], left_over[:3])
    still = policy.predict_action_chunk(given, inference_delay=2, prev_chunk_left_over=torch.zeros(4, 4))
    assert (not still[0, :2].any()) == (kinds[0] == "delta")


def test_real_time_chunking_is_refused_where_nobody_tells_what_was_executed(
    checkpoint, make_checkpoint, make_policy, tmp_path
):
    limits = tmp_path / "limits.yaml"
    limits.write_text("max_rate: 1.0\nstart: [null, null, null, null]\n")
    refused = {
        "looks back": make_policy(checkpoint),
        "recorded relative": make_policy(make_checkpoint(("relative",) * 4)),
        "inference.type=sync": make_policy(make_checkpoint(), action_limits=str(limits)),
    }
    for reason, policy in refused.items():
        assert not policy.supports_rtc()
        with pytest.raises(ValueError, match=f"no real-time chunking: .*{reason}"):
            policy.predict_action_chunk(observation(batch(rows=1)), inference_delay=0)
    with pytest.raises(ValueError, match="from command to command"):
        refused["inference.type=sync"].predict_action_chunk(observation(batch(rows=1)))
    with pytest.raises(ValueError, match="actions of 'small' were recorded relative"):
        refused["recorded relative"].select_action(observation(batch(rows=1)))


def test_limits_of_a_file_are_kept_by_actions_and_their_range_by_chunks(make_checkpoint, make_policy, tmp_path):
    limits, given = tmp_path / "limits.yaml", observation(batch(rows=1))
    limits.write_text("low: -0.2\nhigh: [0.1, 0.2, 0.2, null]\n")
    policy = make_policy(make_checkpoint(), action_limits=str(limits))
    high = torch.tensor([0.1, 0.2, 0.2, torch.inf])
    for actions in (policy.predict_action_chunk(given)[0], policy.select_action(given)):
        assert (actions >= -0.2).all() and (actions <= high).all() and (actions[:, :3] == high[:3]).any()
    limits.write_text("max_rate: [1.0, 1.0, 1.0, null]\nstart: [s0, s1, s2, null]\n")
    policy = make_policy(make_checkpoint(), action_limits=str(limits))
    moved = policy.select_action(given)[0, :3] - given["observation.state"][0]
    assert moved.abs().max() == pytest.approx(0.1, abs=1e-5)  # at 10 Hz
    policy.save_pretrained(tmp_path / "saved")
    assert "limits.yaml" not in (tmp_path / "saved/config.json").read_text()


# --- saving and converting --------------------------------------------------------------------------------------------


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_a_saved_policy_acts_the_same_when_lerobot_loads_it_and_names_no_place_of_this_machine(
    lerobot, checkpoint, make_policy, tiny_backbone, tmp_path
):
    policy = make_policy(checkpoint)
    with torch.no_grad():
        policy.model.expert.final_norm.weight += 0.5  # as if it was trained
    given = observation(batch())
    expected = policy.select_action(given)
    policy.save_pretrained(tmp_path / "saved")
    assert (
        str(checkpoint) not in (text := (tmp_path / "saved/config.json").read_text()) and str(tiny_backbone) not in text
    )
    config = lerobot.stand_in.PreTrainedConfig.from_pretrained(tmp_path / "saved", backbone=str(tiny_backbone))
    loaded = lerobot.stand_in.policy_class(config).from_pretrained(tmp_path / "saved", config=config, dataset_stats={})
    assert not loaded.training
    assert torch.equal(loaded.select_action(given), expected)


def test_weights_that_lerobot_gathered_from_shards_are_those_that_are_saved(checkpoint, make_policy, tmp_path):
    policy = make_policy(checkpoint)
    gathered = {name: value + 1 for name, value in policy.state_dict().items()}
    policy.save_pretrained(tmp_path, state_dict=gathered)
    loaded = PriorVLAModel.from_pretrained(tmp_path / "priorvla", backbone=None)
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, gathered[f"model.{name}"]), name


def test_a_checkpoint_goes_to_lerobot_and_back_to_the_bit(lerobot, checkpoint, tiny_backbone, tmp_path):
    before = files_of(checkpoint)
    (checkpoint / "optimizer.pt").write_bytes(b"the run's, not the checkpoint's")
    folder = lerobot.convert.to_lerobot(checkpoint, tmp_path / "policy", embodiment="large")
    (checkpoint / "optimizer.pt").unlink()
    assert {"config.json", "policy_preprocessor.json", "policy_postprocessor.json"} < set(files_of(folder))
    config = lerobot.stand_in.PreTrainedConfig.from_pretrained(folder, backbone=str(tiny_backbone))
    assert config.embodiment == "large" and config.checkpoint is None
    assert config.input_features["observation.images.front"].shape == (3, 28, 28)
    policy = lerobot.stand_in.policy_class(config).from_pretrained(folder, config=config)
    assert policy.select_action(observation(batch(state_dim=5))).shape == (3, 7)
    assert files_of(lerobot.convert.from_lerobot(folder, tmp_path / "back")) == before


def test_what_was_trained_in_lerobot_is_a_checkpoint_of_ours(lerobot, checkpoint, make_policy, tiny_backbone, tmp_path):
    policy = make_policy(checkpoint)
    policy.save_pretrained(tmp_path / "trained")
    folder = lerobot.convert.from_lerobot(tmp_path / "trained", tmp_path / "ours")
    ours = RobotPolicy.from_pretrained(folder, backbone=tiny_backbone, embodiment="small")
    for name, value in ours.model.state_dict().items():
        assert torch.equal(value, policy.model.state_dict()[name]), name


def test_a_policy_folder_on_the_hub_is_taken_by_its_id(lerobot, checkpoint, hub, tmp_path):
    folder = lerobot.convert.to_lerobot(checkpoint, tmp_path / "policy", embodiment="small")
    shutil.copytree(folder, hub.repository("models", "me/policy"))
    assert files_of(lerobot.convert.from_lerobot("me/policy", tmp_path / "back")) == files_of(checkpoint)
    with pytest.raises(FileNotFoundError, match="does not exist: pass a policy folder, or its Hub id"):
        lerobot.convert.from_lerobot("no/such/folder", tmp_path / "other")


def test_a_conversion_that_is_interrupted_leaves_nothing_and_can_be_made_again(
    lerobot, checkpoint, monkeypatch, tmp_path
):
    def interrupted(config: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(lerobot.convert, "make_priorvla_pre_post_processors", interrupted)
        with pytest.raises(KeyboardInterrupt):
            lerobot.convert.to_lerobot(checkpoint, tmp_path / "policy", embodiment="small")
    assert not list(tmp_path.iterdir())
    lerobot.convert.to_lerobot(checkpoint, tmp_path / "policy", embodiment="small")


def test_the_command_converts_and_names_what_is_wrong(lerobot, checkpoint, tmp_path, capsys):
    policy = str(tmp_path / "policy")
    assert lerobot.convert.main([str(checkpoint), policy]) == 1
    assert "no embodiment was given, and this processor has: small, large" in capsys.readouterr().err
    assert lerobot.convert.main([str(checkpoint), policy, "--embodiment", "small"]) == 0
    assert lerobot.convert.main([str(checkpoint), policy, "--embodiment", "small"]) == 1
    assert "exists: name a new folder" in capsys.readouterr().err
    assert lerobot.convert.main([policy, str(tmp_path / "back"), "--back"]) == 0
    assert lerobot.convert.main([str(checkpoint), str(tmp_path / "other"), "--back"]) == 1
    assert "is no policy folder" in capsys.readouterr().err
