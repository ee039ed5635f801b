"""A dataset with one fault planted gets exactly that finding, by code, episode and dim; a sound one gets none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from priorvla.configuration.embodiment import Embodiment
from priorvla.training.data.trajectory import Trajectory, TrajectorySource
from priorvla.training.inspection.findings import Finding, Severity
from priorvla.training.inspection.inspection import Inspection, Measures, inspect_source
from priorvla.training.inspection.inspection_report import describe_inspection
from priorvla.training.inspection.thresholds import InspectionThresholds

RATE, LAG, CHUNK = 20.0, 3, 8
JOINTS = ["shoulder", "elbow", "wrist"]
TASKS = ("open the drawer", "press the red button")

ARM = Embodiment(
    name="arm",
    action_names=[*JOINTS, "gripper"],
    state_names=[*JOINTS, "gripper"],
    control_rate=RATE,
    gripper_dims=[3],
    cameras=["front"],
)


class Pictures:
    """A camera that sees a bright square go with the first joint, before a background of its episode's own."""

    cameras = ("front",)

    def __init__(self, joint: np.ndarray, background: int) -> None:
        self.cameras = ["front"]
        self.frames = np.full((len(joint), 64, 64, 3), background, dtype=np.uint8)
        for step, place in enumerate(np.clip((joint + 1.5) * 15, 0, 48).astype(int)):
            self.frames[step, 20:36, place : place + 16] = 230

    def read(self, camera: str, indices: Sequence[int]) -> np.ndarray:
        return self.frames[list(indices)]


def sound_source(episodes: int = 16, seed: int = 0) -> TrajectorySource:
    """Smooth joints that follow absolute targets three steps later, a gripper that switches, tasks drawn freely."""
    random = np.random.default_rng(seed)
    trajectories = []
    for index in range(episodes):
        length = int(random.integers(60, 90))
        time = np.arange(length + LAG)[:, None] / RATE
        wave = [
            np.sin(2 * np.pi * random.uniform(0.2, 0.6, 3) * time + random.uniform(0, 7, 3))
            * random.uniform(0.3, 0.6, 3)
            for _ in range(2)
        ]
        joints = wave[0] + wave[1] + 0.4 * time * random.choice([-0.5, 0.5], 3)
        gripper = (np.arange(length + LAG) > random.integers(15, 45)).astype(float)[:, None]
        path = np.hstack([joints, gripper]).astype(np.float32)
        trajectories.append(
            Trajectory(
                states=path[:length].copy(),
                actions=path[LAG:].copy(),
                task=TASKS[random.integers(2)],
                episode_index=index,
                timestamps=np.arange(length) / RATE,
                frames=Pictures(path[:length, 0], int(random.integers(20, 120))),
                source="memory",
            )
        )
    return TrajectorySource(Path("memory"), "0" * 64, ARM, trajectories)


def inspected(source: TrajectorySource, **thresholds: float) -> tuple[Measures, list[Finding]]:
    return inspect_source(source, CHUNK, InspectionThresholds(**thresholds))  # type: ignore[arg-type]


def only_finding(source: TrajectorySource, **thresholds: float) -> Finding:
    _, findings = inspected(source, **thresholds)
    assert len(findings) == 1, [finding.message for finding in findings]
    (finding,) = findings
    assert finding.remedy
    return finding


@pytest.fixture
def source() -> TrajectorySource:
    return sound_source()


@pytest.mark.parametrize("seed", range(8))
def test_a_sound_dataset_gets_no_finding(seed):
    measures, findings = inspected(sound_source(seed=seed))
    assert findings == []
    assert measures.agreement.relation == "absolute"
    assert measures.agreement.lag == LAG


def test_idle_starts_and_ends_are_counted_in_frames_and_seconds(source):
    for index in (2, 5):
        old = source.trajectories[index]
        rows = np.r_[np.zeros(90, int), np.arange(len(old)), np.full(60, len(old) - 1)]
        noise = np.random.default_rng(0).normal(0, 1e-3, (len(rows), 4)).astype(np.float32)
        source.trajectories[index] = replace(
            old,
            states=old.states[rows] + noise,
            actions=old.actions[rows],
            timestamps=np.arange(len(rows)) / RATE,
            frames=None,
        )
    for trajectory in source.trajectories:
        trajectory.frames = None
    finding = only_finding(source)
    assert finding.code == "idle-frames"
    assert finding.episodes == [2, 5]
    assert finding.numbers["leading_frames"] == pytest.approx(180, abs=20)
    assert finding.numbers["trailing_frames"] == pytest.approx(120, abs=20)
    assert finding.numbers["seconds"] == pytest.approx(15, abs=2)


def test_a_pause_that_is_short_is_no_finding_but_is_counted(source):
    old = source.trajectories[4]
    rows = np.r_[np.zeros(20, int), np.arange(len(old))]
    source.trajectories[4] = replace(
        old,
        states=old.states[rows],
        actions=old.actions[rows],
        timestamps=np.arange(len(rows)) / RATE,
        frames=None,
    )
    measures, findings = inspected(source)
    assert [finding.code for finding in findings] == ["missing-frames"]  # the pictures taken away above
    assert measures.idle[4, 0] == pytest.approx(20, abs=3)


def test_an_episode_in_which_nothing_moves_is_named(source):
    old = source.trajectories[3]
    still = Pictures(np.zeros(len(old)), 60)
    source.trajectories[3] = replace(
        old,
        states=np.repeat(old.states[:1], len(old), 0),
        actions=np.repeat(old.actions[:1], len(old), 0),
        frames=still,
    )
    finding = only_finding(source)
    assert (finding.code, finding.episodes) == ("motionless-episodes", [3])


def plant(source: TrajectorySource, dim: int, change: Callable[[np.ndarray], np.ndarray], *labels: str) -> None:
    """Changes a dim of all episodes' states and actions."""
    for trajectory in source.trajectories:
        for label in labels or ("states", "actions"):
            values = getattr(trajectory, label)
            values[:, dim] = change(values[:, dim])


def test_a_constant_dim_is_named(source):
    plant(source, 1, lambda column: np.full_like(column, 0.25), "states")
    finding = only_finding(source)
    assert (finding.code, finding.dims) == ("constant-dims", ["elbow"])
    assert finding.numbers["of"] == "state"
    assert "0.25" in finding.message


def test_a_state_that_never_changes_at_all_is_an_error(source):
    for dim in range(4):
        plant(source, dim, np.zeros_like, "states")
    for trajectory in source.trajectories:
        trajectory.frames = None
    finding = only_finding(source)
    assert (finding.code, finding.severity) == ("no-motion", Severity.ERROR)


def test_a_dim_that_moves_less_than_the_minimum_range_is_named(source):
    plant(source, 2, lambda column: 0.001 * column)
    _, findings = inspected(source)
    assert {(finding.code, *finding.dims) for finding in findings} == {("near-constant-dims", "wrist")}
    assert {finding.numbers["of"] for finding in findings} == {"action", "state"}


def test_a_dim_that_stands_in_98_percent_of_frames_is_named_with_what_normalisation_makes_of_it(source):
    """openpi#814: q01 ~ q99 on one joint, normalised to -3200."""
    plant(source, 2, lambda column: np.full_like(column, 0.5), "actions", "states")
    for label in ("states", "actions"):
        getattr(source.trajectories[6], label)[20:26, 2] += np.array([0.5, 1, 1.5, 1.5, 1, 0.5])
    _, findings = inspected(source)
    assert {finding.code for finding in findings} == {"rarely-moving-dims"}
    for finding in findings:
        assert (finding.dims, finding.episodes) == (["wrist"], [6])
        assert finding.numbers["normalized_extreme"] == pytest.approx(1.5 / 0.005, rel=0.01)
        assert finding.severity is Severity.WARNING


def test_a_value_far_outside_is_found_by_episode_step_and_value(source):
    source.trajectories[7].actions[31:33, 0] = 90.0
    _, findings = inspected(source)
    assert {finding.code for finding in findings} == {"outliers", "jumps"}
    outlier = next(finding for finding in findings if finding.code == "outliers")
    assert (outlier.episodes, outlier.dims) == ([7], ["shoulder"])
    assert outlier.numbers["worst_value"] == 90.0
    assert (outlier.numbers["worst_episode"], outlier.numbers["worst_step"]) == (7, 31)
    assert outlier.numbers["count"] == 2


def test_a_jump_that_no_motor_makes_is_found_and_a_switch_is_none(source):
    source.trajectories[9].states[40:, 1] += 1.5
    source.trajectories[9].actions[40 - LAG :, 1] += 1.5
    _, findings = inspected(source)
    assert {finding.code for finding in findings} == {"jumps"}
    state = next(finding for finding in findings if "state" in finding.message)
    assert (state.dims, state.episodes, state.numbers["worst_step"]) == (["elbow"], [9], 40)


def test_an_angle_that_wraps_is_told_to_be_unwrapped(source):
    plant(source, 0, lambda column: (3 * column + np.pi) % (2 * np.pi) - np.pi, "states")
    body = replace(ARM, reference_dims=[None, 1, 2, 3])
    wrapped = TrajectorySource(source.root, source.fingerprint, body, source.trajectories)
    finding = only_finding(wrapped)
    assert (finding.code, finding.dims) == ("jumps", ["shoulder"])
    assert "unwrap" in finding.remedy


def test_a_dim_at_its_limit_for_long_is_named(source):
    plant(source, 0, lambda column: np.minimum(column, -0.1), "states")
    finding = only_finding(source)
    assert (finding.code, finding.dims, finding.severity) == ("saturated-dims", ["shoulder"], Severity.INFO)


def test_equal_and_nearly_equal_episodes_are_grouped(source):
    source.trajectories[11] = replace(source.trajectories[1], episode_index=11)
    near = source.trajectories[2]
    source.trajectories[12] = replace(near, states=near.states + 1e-4, actions=near.actions + 1e-4, episode_index=12)
    _, findings = inspected(source)
    found = {finding.code: finding.episodes for finding in findings}
    assert found == {"duplicate-episodes": [1, 11], "near-duplicate-episodes": [2, 12]}


def test_gaps_in_time_are_found(source):
    source.trajectories[5].timestamps[30:] += 0.4
    finding = only_finding(source)
    assert (finding.code, finding.episodes) == ("timestamp-gaps", [5])
    assert finding.numbers["longest_seconds"] == pytest.approx(0.45)
    assert finding.numbers["worst_step"] == 30


def test_a_clock_that_jitters_is_found(source):
    random = np.random.default_rng(0)
    for trajectory in source.trajectories[:8]:
        trajectory.timestamps = trajectory.timestamps + random.uniform(-0.2, 0.2, len(trajectory)) / RATE
    finding = only_finding(source)
    assert finding.code == "irregular-timestamps"
    assert finding.episodes == list(range(8))


def test_time_that_runs_backwards_is_an_error(source):
    source.trajectories[8].timestamps[20] = source.trajectories[8].timestamps[18]
    _, findings = inspected(source)
    back = next(finding for finding in findings if finding.code == "timestamps-backwards")
    assert (back.severity, back.episodes, back.numbers["first_step"]) == (Severity.ERROR, [8], 20)


def test_a_rate_that_is_not_the_declared_one_is_an_error(source):
    for trajectory in source.trajectories:
        trajectory.timestamps = trajectory.timestamps * 2
    finding = only_finding(source)
    assert (finding.code, finding.severity) == ("rate-mismatch", Severity.ERROR)
    assert finding.numbers["measured_rate"] == pytest.approx(10.0)


def cut(trajectory: Trajectory, length: int) -> Trajectory:
    return replace(
        trajectory,
        states=trajectory.states[:length],
        actions=trajectory.actions[:length],
        timestamps=trajectory.timestamps[:length],
    )


def test_episodes_shorter_than_a_chunk_and_of_odd_length_are_named(source):
    source.trajectories[4] = cut(source.trajectories[4], 5)
    source.trajectories[10] = cut(source.trajectories[10], 12)
    _, findings = inspected(source)
    found = {finding.code: finding.episodes for finding in findings}
    assert found == {"short-episodes": [4], "odd-lengths": [10]}


@pytest.mark.parametrize(
    ("actions", "relation", "lag"),
    [
        (lambda states: np.diff(states, axis=0, append=states[-1:]), "delta", 0),
        (lambda states: 20 * np.diff(states, axis=0, append=states[-1:]), "velocity", 0),
        (lambda states: 100 * states[np.minimum(np.arange(len(states)) + 2, len(states) - 1)], "scaled absolute", 2),
    ],
)
def test_what_an_action_is_is_told_with_its_lag(source, actions, relation, lag):
    for trajectory in source.trajectories:
        trajectory.actions[:, :3] = actions(trajectory.states[:, :3])
    measures, findings = inspected(source)
    assert {dim.relation for dim in measures.agreement.dims} == {relation}
    assert measures.agreement.lag == lag
    kinds = [finding for finding in findings if finding.code == "action-kind"]
    if relation == "scaled absolute":
        assert kinds == []
    else:
        assert [finding.dims for finding in kinds] == [JOINTS]


def test_a_difference_that_is_declared_one_is_right_and_a_target_is_not(source):
    delta = replace(ARM, action_kinds=["delta"] * 3 + ["absolute"], learned_kinds=[])
    _, findings = inspected(TrajectorySource(source.root, "0", delta, source.trajectories))
    assert [(finding.code, finding.dims) for finding in findings] == [("action-kind", JOINTS)]
    for trajectory in source.trajectories:
        trajectory.actions[:, :3] = np.diff(trajectory.states[:, :3], axis=0, append=trajectory.states[-1:, :3])
    _, findings = inspected(TrajectorySource(source.root, "0", delta, source.trajectories))
    assert findings == []


def test_an_action_that_only_repeats_the_state_is_found(source):
    for trajectory in source.trajectories:
        trajectory.actions[:, :3] = trajectory.states[:, :3]
    finding = only_finding(source)
    assert (finding.code, finding.dims) == ("action-is-state", JOINTS)


def test_an_action_that_lags_behind_the_state_is_found(source):
    for trajectory in source.trajectories:
        trajectory.actions[:, :3] = np.concatenate([trajectory.states[:2, :3], trajectory.states[:-2, :3]])
    finding = only_finding(source)
    assert (finding.code, finding.numbers["lag_steps"]) == ("action-behind-state", -2)


def test_an_instruction_that_the_start_gives_away_is_found(source):
    for trajectory in source.trajectories:
        side = TASKS.index(trajectory.task)
        trajectory.states[:, 1] += 4 * side
        trajectory.actions[:, 1] += 4 * side
    finding = only_finding(source)
    assert finding.code == "instruction-predictable"
    assert finding.numbers["first_state"] == 1.0
    assert "first_picture" not in finding.numbers


def test_an_instruction_that_the_first_picture_gives_away_is_found(source):
    for trajectory in source.trajectories:
        trajectory.frames.frames[:, :20] = 250 * TASKS.index(trajectory.task)
    finding = only_finding(source)
    assert finding.code == "instruction-predictable"
    assert finding.numbers["first_picture"] >= 0.9


def test_one_instruction_for_all_is_said(source):
    for trajectory in source.trajectories:
        trajectory.task = TASKS[0]
    finding = only_finding(source)
    assert (finding.code, finding.severity) == ("single-instruction", Severity.INFO)


def test_empty_instructions_and_several_spellings_are_named(source):
    source.trajectories[3].task = " "
    for trajectory in source.trajectories[8:]:
        trajectory.task = trajectory.task.capitalize() + "."
    _, findings = inspected(source)
    found = {finding.code: list(finding.episodes) for finding in findings}
    assert found == {"empty-instructions": [3], "instruction-variants": []}


def test_a_frozen_camera_is_found_only_while_the_robot_moves(source):
    source.trajectories[6].frames.frames[:] = source.trajectories[6].frames.frames[0]
    finding = only_finding(source)
    assert (finding.code, finding.episodes, finding.dims) == ("frozen-camera", [6], ["front"])


def test_black_pictures_are_found(source):
    source.trajectories[2].frames.frames[:1] = 0
    finding = only_finding(source)
    assert (finding.code, finding.episodes) == ("blank-frames", [2])
    assert "black" in finding.message


def test_pictures_of_several_sizes_are_found(source):
    source.trajectories[5].frames.frames = source.trajectories[5].frames.frames[:, ::2]
    finding = only_finding(source)
    assert (finding.code, finding.dims) == ("frame-sizes", ["front"])
    assert "64 x 32" in finding.message


def test_damaged_pictures_are_an_error_that_says_what_the_reader_said(source):
    class Damaged(Pictures):
        def read(self, camera: str, indices: Sequence[int]) -> np.ndarray:
            raise ValueError("episode_000007.mp4 is not a readable video")

    source.trajectories[7].frames = Damaged(source.trajectories[7].states[:, 0], 60)
    finding = only_finding(source)
    assert (finding.code, finding.severity, finding.episodes) == ("unreadable-frames", Severity.ERROR, [7])
    assert "episode_000007.mp4" in finding.message


def test_no_more_frames_are_read_than_the_budget(source):
    measures, findings = inspected(source, frame_budget=40)
    assert findings == []
    assert measures.cameras is not None
    assert 0 < measures.cameras.frames_read <= 40


def test_windows_and_their_padding_are_those_of_training(source):
    from priorvla.training.data.trajectory_dataset import TrajectoryDataset, fit_embodiments

    measures, _ = inspected(source)
    dataset = TrajectoryDataset([source], fit_embodiments([source]), CHUNK)
    mask = dataset.__getitems__(list(range(len(dataset))))["action_mask"].any(-1)
    assert measures.windows.count == len(dataset)
    assert measures.windows.padded == int((~mask.all(1)).sum())
    assert measures.windows.padded_steps == pytest.approx(float((~mask).float().mean()))


def test_a_body_without_state_is_inspected_by_its_actions(source):
    body = Embodiment(name="log", action_names=ARM.action_names, state_names=[], control_rate=RATE)
    for trajectory in source.trajectories:
        trajectory.states, trajectory.frames = np.zeros((len(trajectory), 0), np.float32), None
    measures, findings = inspected(TrajectorySource(source.root, "0", body, source.trajectories))
    assert findings == []
    assert measures.agreement.relation is None


@pytest.mark.parametrize("kind", ["absolute", "relative"])
def test_what_is_learned_otherwise_than_it_was_recorded_is_said(kind):
    body = ARM if kind == "absolute" else ARM.learning(kind)
    measures, findings = inspected(replace(sound_source(), embodiment=body))
    said = " ".join(describe_inspection(Inspection("memory", findings, measures)).split())
    assert ("3 action dims as relative, whose statistics training fits" in said) is (kind == "relative")
