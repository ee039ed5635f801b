"""How far motion lies from what priors know: which one is nearest, what cannot be told apart, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from priorvla.configuration.embodiment import Embodiment
from priorvla.training.data.trajectory_dataset import TrajectoryDataset
from priorvla.training.motion_distance import cannot_be_told_apart, motion_distance
from priorvla.training.motion_distance_report import compare_motion, describe_distances, write_distance_report
from priorvla.training.prior_quality import measure_prior
from priorvla.training.prior_report import read_report, write_prior_report


@pytest.fixture(scope="module")
def arm(tiny_priors: Any) -> Embodiment:
    return tiny_priors.body("arm", 2)


@pytest.fixture(scope="module")
def priors(arm, tiny_priors, tmp_path_factory) -> dict[str, Path]:
    """Priors of the same arm: of `waves`, with a report, and of `sways`; and the first once more."""
    folder = tmp_path_factory.mktemp("priors")
    for kind in ("waves", "sways"):
        training = tiny_priors.motion(arm, kind, 24, seed=0)
        model, bodies = tiny_priors.train_prior([training], latent_dropout=0.5)  # it is asked for motion in general
        tiny_priors.save_prior(model, bodies, folder / kind)
        if kind == "waves":
            held_out = tiny_priors.motion(arm, kind, 10, seed=1)
            datasets = [TrajectoryDataset([source], bodies, tiny_priors.CHUNK) for source in (held_out, training)]
            write_prior_report(folder / kind, measure_prior(model, *datasets))
            tiny_priors.save_prior(model, bodies, folder / "waves_again")
    return {path.name: path for path in folder.iterdir()}


def test_the_nearest_prior_is_the_one_trained_on_that_kind_of_motion(priors, tiny_priors):
    """The new robot has other dims, another rate and another scale."""
    robot = tiny_priors.body("newcomer", 4, rate=25.0, minimum_range=1.0)
    for kind in ("waves", "sways"):
        source = tiny_priors.motion(robot, kind, 12, seed=3, steps=80)
        for trajectory in source.trajectories:
            trajectory.actions *= 50
        first, second = motion_distance([priors["sways"], priors["waves"]], source)
        assert first.prior == kind
        assert not cannot_be_told_apart(first, second) and first.coverage.value >= second.coverage.value
        assert first.known is None and first.compatibility is None
        said = describe_distances([first, second], source)
        assert "nearest: the interval" in said and "does not know this body: it knows arm" in said


def test_two_copies_of_a_prior_cannot_be_told_apart_and_that_is_said(priors, arm, tiny_priors):
    source = tiny_priors.motion(arm, "waves", 10, seed=4)
    first, second = motion_distance([priors["waves"], priors["waves_again"]], source)
    assert first.distance.value == pytest.approx(second.distance.value) and cannot_be_told_apart(first, second)
    assert "do not tell it apart from" in describe_distances([first, second], source)


def test_a_prior_that_knows_the_body_says_what_it_recorded_and_what_it_finds(priors, arm, tiny_priors):
    recorded = read_report(priors["waves"])["embodiments"]["arm"]
    known = motion_distance([priors["waves"]], tiny_priors.motion(arm, "waves", 10, seed=1))[0].known
    assert known.recorded_velocity == recorded["velocity"]["own"]["value"]
    assert known.velocity.own.value == pytest.approx(known.recorded_velocity, rel=0.3)
    strange = motion_distance([priors["waves"]], tiny_priors.motion(arm, "sways", 10, seed=1))[0].known
    assert strange.velocity.own.interval[0] > known.velocity.own.interval[1]


def test_deltas_of_a_motion_are_as_near_as_its_targets(priors, arm, tiny_priors):
    targets = tiny_priors.motion(arm, "waves", 12, seed=6)
    deltas = tiny_priors.motion(
        tiny_priors.body("stepper", 2, action_kinds=["delta", "delta"], minimum_range=1e-4), "waves", 12, seed=6
    )
    for trajectory in deltas.trajectories:
        trajectory.actions = np.diff(trajectory.actions, axis=0, prepend=trajectory.actions[:1])
    one, other = (motion_distance([priors["waves"]], source)[0] for source in (targets, deltas))
    assert one.distance.value == pytest.approx(other.distance.value, abs=0.01)


def test_a_body_that_differs_is_named_with_the_difference(priors, tiny_priors):
    source = tiny_priors.motion(tiny_priors.body("arm", 3), "waves", 6, seed=0)
    entry = motion_distance([priors["waves"]], source)[0]
    assert entry.known is None and not entry.compatibility.fits
    said = describe_distances([entry], source)
    assert "another body of this name, which differs in action_dim, state_dim" in said
    assert "give it another name and add it to the checkpoint" in said


def test_what_cannot_be_compared_is_refused(priors, arm, tmp_path, tiny_priors):
    with pytest.raises(ValueError, match="at least one prior"):
        motion_distance([], tiny_priors.motion(arm, "waves", 3, seed=0))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="is no action prior"):
        motion_distance([tmp_path], tiny_priors.motion(arm, "waves", 3, seed=0))
    with pytest.raises(ValueError, match="one step alone"):
        motion_distance([priors["waves"]], tiny_priors.motion(arm, "waves", 5, seed=0, steps=1))
    with pytest.raises(FileNotFoundError, match="does not exist"):
        motion_distance([tmp_path / "nowhere"], tiny_priors.motion(arm, "waves", 3, seed=0))


def test_a_comparison_over_few_steps_of_a_slow_robot_says_so(priors, arm, tiny_priors):
    slow, same = tiny_priors.body("slow", 2, rate=3.0), tiny_priors.motion(arm, "waves", 8, seed=2)
    source = tiny_priors.motion(slow, "waves", 8, seed=2)
    assert "2.1 of your steps, too short" in describe_distances(motion_distance([priors["waves"]], source), source)
    assert "too short" not in describe_distances(motion_distance([priors["waves"]], same), same)


def test_the_distance_report_is_written_for_people_and_programs(priors, arm, tmp_path, tiny_priors):
    source = tiny_priors.motion(arm, "waves", 10, seed=4)
    distances = motion_distance([priors["waves"], priors["sways"]], source)
    page, file = write_distance_report(tmp_path, distances, source, seed=0)
    content = json.loads(file.read_text())
    assert [entry["prior"] for entry in content["priors"]] == ["waves", "sways"]
    assert content["priors"][0]["distance"]["interval"][0] <= content["priors"][0]["distance"]["value"]
    assert content["priors"][0]["known_body"]["recorded_velocity_loss"] > 0
    assert "What came out" in page.read_text() and sorted(path.name for path in tmp_path.iterdir()) == [
        "report.html",
        "report.json",
    ]


def test_a_dataset_is_compared_from_its_folder(priors, arm, write_demonstrations, tmp_path, tiny_priors):
    statistics = np.random.default_rng(0).normal(size=(50, 2))
    folder = write_demonstrations(
        tmp_path / "mine", arm.with_statistics(statistics, statistics), [30] * 8, images=False
    )
    said = compare_motion([str(priors["waves"]), str(priors["sways"])], folder, tmp_path / "compared")
    assert "8 episodes, 240 steps" in said and "\nwaves " in said
    assert f"Report: {tmp_path / 'compared' / 'report.html'}" in said
    assert read_report(tmp_path / "compared") == {}  # not a report about a prior
