"""What users of other projects report of normalisation, dims, padding and cameras, each as a test by its number.

The mistake either cannot be made here or gives an error that says what to do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from priorvla.configuration.compatibility import compatibility_report, require_compatible
from priorvla.configuration.configuration_action_prior import ActionPriorConfig
from priorvla.configuration.embodiment import Embodiment, NormalizationMode, load_embodiments
from priorvla.deployment.policy import PriorVLAPolicy
from priorvla.modeling_priorvla.flow_matching import velocity_loss
from priorvla.modeling_priorvla.modeling_action_prior import ActionPriorModel
from priorvla.modeling_priorvla.processing_priorvla import PriorVLAProcessor

JOINTS = [f"joint_{index}" for index in range(6)]
ARM = Embodiment("arm", [*JOINTS, "grip"], [*JOINTS, "grip"], 20.0, gripper_dims=[6], cameras=["front", "wrist"])
H = 6

# q01 and q99 of the joint angles that openpi#814 prints: the fifth joint moved by a milliradian.
ISSUE_814 = [
    (-1.1452, -0.7886),
    (-2.2426, -1.4988),
    (-2.2572, -1.4468),
    (-1.1533, -0.9084),
    (1.5686, 1.5696),
    (-1.6607, -1.3030),
]


def recorded(body: Embodiment = ARM, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(N, S) states and (N, H, D) windows: random motion of every joint, the gripper open or closed."""
    random = np.random.default_rng(seed)
    states = random.uniform(-1, 1, (400, body.state_dim))
    actions = random.uniform(-1, 1, (400, H, body.action_dim))
    for dim in body.gripper_dims:
        actions[..., dim] = random.random((400, H)) < 0.3
    return states.astype(np.float32), actions.astype(np.float32)


def still_wrist() -> tuple[np.ndarray, np.ndarray]:
    """The data of openpi#814: every joint within its range, the fifth within a milliradian; actions follow states."""
    random = np.random.default_rng(0)
    low, high = np.array([*ISSUE_814, (0.0, 1.0)]).T
    states = random.uniform(low, high, (1000, 7))
    steps = random.uniform(-0.02, 0.02, (1000, H, 7)) * (high - low)
    return states, states[:, None] + np.cumsum(steps, axis=1)


def test_openpi_763_the_mode_is_the_users_choice_and_stays_with_the_checkpoint(tmp_path: Path) -> None:
    """Quantiles were fixed by the model's type, and worse than mean and deviation on somebody's own arm."""
    states, actions = recorded()
    seen = {}
    for mode in NormalizationMode:
        body = replace(ARM, action_normalization=mode, state_normalization=mode).with_statistics(states, actions)
        PriorVLAProcessor(embodiments=[body], chunk_size=H).save_pretrained(tmp_path / mode)
        loaded = PriorVLAProcessor.from_pretrained(tmp_path / mode)
        batch = loaded(embodiment="arm", actions=actions[0], state=states[0])
        seen[mode] = batch["actions"]
        assert loaded.embodiment("arm").action_normalization is mode
        np.testing.assert_allclose(loaded.decode_actions(batch["actions"], "arm")[0], actions[0], atol=1e-5)
    assert all(not torch.equal(seen["identity"], seen[mode]) for mode in NormalizationMode if mode != "identity")


@pytest.mark.parametrize("mode", ["quantile", "quantile_10_90", "mean_std", "min_max"])
@pytest.mark.parametrize("kind", ["absolute", "relative", "delta"])
def test_openpi_814_a_joint_that_hardly_moves_cannot_explode(kind: str, mode: str) -> None:
    """Differences were normalised by the quantiles of angles, one of them a milliradian wide: -3200, and the loss."""
    states, actions = still_wrist()
    body = replace(ARM, action_normalization=NormalizationMode(mode)).learning(kind).with_statistics(states, actions)
    normalized = body.normalize_actions(actions, states)
    assert np.abs(normalized).max() < 10
    at_rest = np.repeat(states[:, None], H, axis=1)  # the action that stays: differences of zero
    assert np.abs(body.normalize_actions(at_rest, states)).max() < 10
    nudged = at_rest + np.eye(7)[4] * 0.01  # 10 mrad on the joint that was still
    assert np.abs(body.normalize_actions(nudged, states)).max() < 10
    np.testing.assert_allclose(body.denormalize_actions(normalized, states), actions, atol=1e-5)


def test_openpi_814_statistics_are_of_the_values_that_are_learned() -> None:
    states, actions = still_wrist()
    relative = ARM.learning("relative").with_statistics(states, actions)
    assert relative.action_statistics is not None
    np.testing.assert_allclose(relative.action_statistics.mean[:6], 0, atol=0.01)
    with pytest.raises(ValueError, match=r"learns relative actions.*pass the raw state"):
        ARM.learning("relative").with_statistics(states, actions[:, 0])


def test_openpi_1025_a_compatibility_report_says_what_does_not_fit_before_training() -> None:
    """Users want to see, read-only, whether a checkpoint's statistics suit their data: dims, range, share outside."""
    trained = ARM.with_statistics(*recorded())
    states, actions = recorded(seed=1)
    report = compatibility_report(trained, ARM.with_statistics(states, actions))
    assert report.fits and not report.warnings
    actions[..., 2] = np.rad2deg(actions[..., 2])
    report = compatibility_report(trained, ARM.with_statistics(states, actions))
    (warning,) = report.warnings
    assert report.fits and warning.key == "action range 'joint_2'"
    assert "98% of the data's range was not trained on" in warning.remedy and "in degrees" in warning.remedy
    assert warning.remedy in str(report)


@pytest.mark.parametrize("change", [{"control_rate": 5.0}, {"action_kinds": ["delta"] * 7}, {"state_names": JOINTS}])
def test_openpi_1025_other_dims_rate_or_kinds_are_an_error_with_that_report(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"trained with[\s\S]*points do not fit[\s\S]*refused[\s\S]*->"):
        require_compatible(ARM.with_statistics(*recorded()), replace(ARM, reference_dims=[], **change), "demos")


def test_openvla_87_with_several_bodies_an_unnamed_one_is_an_error_that_lists_them(
    save_policy: Callable[..., Path], bodies: list[Embodiment], tiny_backbone: Path, tmp_path: Path
) -> None:
    """Which statistics a fine-tuned checkpoint wants (`unnorm_key`) was an assertion that listed 26 dataset names."""
    folder = save_policy(tmp_path, bodies)
    with pytest.raises(ValueError, match="no embodiment was given, and this processor has: small, large"):
        PriorVLAPolicy.from_pretrained(folder, backbone=tiny_backbone)
    with pytest.raises(ValueError, match="'my_dataset' is unknown here, this processor has: small, large"):
        PriorVLAProcessor.from_pretrained(folder).decode_actions(np.zeros((H, 7)), "my_dataset")


def test_openvla_274_a_checkpoint_of_one_body_needs_no_key(
    save_policy: Callable[..., Path], bodies: list[Embodiment], tiny_backbone: Path, tmp_path: Path
) -> None:
    policy = PriorVLAPolicy.from_pretrained(save_policy(tmp_path, bodies[:1]), backbone=tiny_backbone)
    assert policy.embodiment == bodies[0]
    assert policy.embodiment.action_statistics is not None


def test_lerobot_699_weights_never_come_without_statistics(tmp_path: Path) -> None:
    """Pretrained weights were published without the statistics that their actions need."""
    processor = PriorVLAProcessor(embodiments=[ARM.with_statistics(*recorded())], chunk_size=H)
    processor.save_pretrained(tmp_path)
    assert load_embodiments(tmp_path)[0].action_statistics == processor.embodiment("arm").action_statistics
    (tmp_path / "embodiments.json").unlink()
    with pytest.raises(OSError, match=r"embodiments\.json"):
        PriorVLAProcessor.from_pretrained(tmp_path)
    bare = PriorVLAProcessor(embodiments=[ARM], chunk_size=H)
    with pytest.raises(ValueError, match=r"'arm' has no action_statistics.*fit them with with_statistics"):
        bare.decode_actions(np.zeros((H, 7)), "arm")


def make_prior(bodies: list[Embodiment], tiny_fields: dict[str, Any]) -> ActionPriorModel:
    dims = {
        "embodiments": [body.name for body in bodies],
        "action_dims": [body.model_action_dim for body in bodies],
        "state_dims": [body.model_state_dim for body in bodies],
    }
    torch.manual_seed(0)
    return ActionPriorModel(
        ActionPriorConfig(expert={**tiny_fields["expert"], **dims}, encoder=tiny_fields["encoder"])
    ).eval()


def humanoid(dims: int = 44) -> Embodiment:
    names = [f"motor_{index}" for index in range(dims)]
    return Embodiment("humanoid", names, names, 50.0)


def test_groot_78_a_robot_of_more_than_32_dims_is_only_a_wider_robot(tiny_fields: dict[str, Any]) -> None:
    """Actions wider than the model's fixed 32 slots needed changes to the code and the checkpoint."""
    wide = humanoid().with_statistics(*recorded(humanoid()))
    processor = PriorVLAProcessor(embodiments=[ARM.with_statistics(*recorded()), wide], chunk_size=H)
    model = make_prior(processor.embodiments, tiny_fields)
    model.config.expert.require_embodiments(processor.embodiments)
    _, actions = recorded(humanoid())
    batch = processor(embodiment="humanoid", actions=actions[0], states=actions[0])
    assert batch["actions"].shape == (1, H, 44) and batch["action_mask"].all()
    assert torch.isfinite(model(**batch).loss)
    chunk = model.sample_actions(embodiment_ids=batch["embodiment_ids"], generator=torch.Generator().manual_seed(0))
    assert processor.decode_actions(chunk, "humanoid").shape == (1, H, 44)


def test_groot_338_a_body_with_other_joints_is_another_body_not_the_same_tag(tiny_fields: dict[str, Any]) -> None:
    """An arm with two joints more was to be trained under the old robot's tag, into its weights and statistics."""
    longer = [*JOINTS, "joint_6", "joint_7", "grip"]
    changed = Embodiment("arm", longer, longer, 20.0, gripper_dims=[8], cameras=["front", "wrist"])
    trained = ARM.with_statistics(*recorded())
    with pytest.raises(ValueError, match=r"has action_dim=9, the checkpoint was trained with 7.*another name") as error:
        require_compatible(trained, changed)
    assert "action_dim" in str(error.value) and "-> this is another body" in str(error.value)
    fitted = replace(changed, name="arm_9").with_statistics(*recorded(changed))
    processor = PriorVLAProcessor(embodiments=[trained, fitted], chunk_size=H)
    assert [processor.embodiment_id(name) for name in ("arm", "arm_9")] == [0, 1]
    with pytest.raises(ValueError, match="the config's embodiments are"):
        make_prior([trained], tiny_fields).config.expert.require_embodiments(processor.embodiments)


@pytest.mark.parametrize("garbage", [0.0, 7.0, float("nan")])
def test_lerobot_3353_3433_padded_steps_are_neither_in_the_sum_nor_in_the_count(garbage: float) -> None:
    """Padded steps were zeroed and then averaged over: a chunk that was mostly padding hardly counted."""
    random = torch.Generator().manual_seed(0)
    velocity, target = torch.randn(2, H, 7, generator=random), torch.randn(2, H, 7, generator=random)
    mask = torch.zeros(2, H, 7, dtype=torch.bool)
    mask[0, :2, :7] = True  # the end of an episode
    mask[1, :, :4] = True  # a narrower robot
    expected = ((velocity - target).square()[0, :2].mean() + (velocity - target).square()[1, :, :4].mean()) / 2
    velocity[~mask] = garbage
    torch.testing.assert_close(velocity_loss(velocity, target, mask), expected)


def test_lerobot_3353_3433_the_processor_masks_the_steps_that_it_pads() -> None:
    _, actions = recorded()
    processor = PriorVLAProcessor(embodiments=[ARM.with_statistics(*recorded())], chunk_size=H)
    batch = processor(embodiment="arm", actions=actions[0, :2])
    assert batch["action_mask"].any(-1).tolist() == [[True, True, False, False, False, False]]


@pytest.fixture(scope="module")
def seeing(tiny_backbone: Path) -> PriorVLAProcessor:
    """A checkpoint of two bodies, one with two cameras, one with three, all named as their owners named them."""
    three = replace(humanoid(4), cameras=["head", "left_hand", "right_hand"])
    bodies = [ARM.with_statistics(*recorded()), three.with_statistics(*recorded(three))]
    return PriorVLAProcessor.for_backbone(tiny_backbone, bodies, chunk_size=H, max_text_length=8)


def picture(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (28, 28, 3), dtype=np.uint8)


def test_lerobot_2262_1620_cameras_keep_the_names_that_the_robot_gives_them(seeing: PriorVLAProcessor) -> None:
    """Data with `top` and `wrist` met a model that knew `camera1` to `camera3`, and no image at all was found."""
    batch = seeing(embodiment="arm", images={"wrist": picture(1), "front": picture(0)})
    swapped = seeing(embodiment="arm", images={"front": picture(0), "wrist": picture(1)})
    assert torch.equal(batch["pixel_values"], swapped["pixel_values"])  # by name, not by order
    assert batch["pixel_attention_mask"].tolist() == [[True, True, False]]
    with pytest.raises(ValueError, match="'arm' has no camera 'camera1', its cameras are: front, wrist"):
        seeing(embodiment="arm", images={"camera1": picture()})


def test_lerobot_3181_training_and_the_robot_read_camera_names_from_one_place(
    seeing: PriorVLAProcessor, tmp_path: Path
) -> None:
    """A map of camera names was given to one half of a program and not to the other."""
    seeing.save_pretrained(tmp_path)
    loaded = PriorVLAProcessor.from_pretrained(tmp_path)
    assert [body.cameras for body in loaded.embodiments] == [body.cameras for body in seeing.embodiments]
    images = {"wrist": picture()}
    assert torch.equal(
        loaded(embodiment="arm", images=images)["pixel_values"], seeing(embodiment="arm", images=images)["pixel_values"]
    )


def test_lerobot_4245_a_robot_of_two_cameras_needs_no_empty_third(seeing: PriorVLAProcessor) -> None:
    """A checkpoint with three slots demanded `empty_camera_0` of a robot that has two cameras."""
    batch = seeing(embodiment="arm", images={"front": picture(), "wrist": picture()})
    assert batch["pixel_values"].shape[1] == 3 and batch["pixel_attention_mask"].sum() == 2
    assert batch["pixel_values"][0, 2].eq(0).all()
    one = seeing(embodiment="arm", images={"wrist": picture()})  # one that fails is left out
    assert one["pixel_attention_mask"].tolist() == [[False, True, False]]


@pytest.mark.parametrize("recorded_kind", ["delta", "relative"])
@pytest.mark.parametrize("learned", ["delta", "relative", "absolute"])
def test_openpi_1047_a_difference_is_not_taken_twice(recorded_kind: str, learned: str) -> None:
    """LIBERO's actions are differences already; taking them again cost 25 points of success."""
    kinds = [recorded_kind] * 6 + ["absolute"]
    body = replace(ARM, action_kinds=kinds)
    assert body.learned_kinds == kinds and not body.needs_reference
    asked = [learned] * 6 + ["absolute"]
    if learned == recorded_kind:
        states, actions = recorded()
        same = replace(body, learned_kinds=asked).with_statistics(states, actions)
        np.testing.assert_array_equal(same.learned_actions(actions, states), actions)
        return
    with pytest.raises(
        ValueError, match=rf"'joint_0' is recorded as {recorded_kind} and cannot be learned as"
    ) as error:
        replace(body, learned_kinds=asked)
    assert f"Set learned_kinds[0] to '{recorded_kind}'" in str(error.value)


def test_openpi_1047_asking_a_body_that_records_differences_for_differences_changes_nothing() -> None:
    body = replace(ARM, action_kinds=["delta"] * 6 + ["absolute"])
    assert body.learning("relative") == body == body.learning("delta")
