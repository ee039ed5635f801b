"""Whether data fit a checkpoint: a table by point with remedies, refusal of what means something else, warnings."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from priorvla.configuration.compatibility import compatibility_report, first_difference, require_compatible
from priorvla.configuration.embodiment import Embodiment, FeatureStatistics, RotationGroup

NAMES = ["shoulder", "elbow", "wrist", "grip"]
BODY = Embodiment("arm", NAMES, NAMES, 30.0, gripper_dims=[3], cameras=["front"])


def data(scale: float | list[float] = 1.0, shift: float | list[float] = 0.0, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (4000, 4)) * scale + shift


TRAINED = BODY.with_statistics(data(), data())


def test_the_same_body_fits_and_says_so() -> None:
    report = compatibility_report(TRAINED, BODY.with_statistics(data(seed=1), data(seed=2)))
    assert report.fits and not report.warnings
    assert str(report).startswith("embodiment 'arm': fits, 0 warnings")
    assert require_compatible(TRAINED, BODY) == compatibility_report(TRAINED, BODY)


@pytest.mark.parametrize(
    ("fields", "key", "trained", "found"),
    [
        (
            {"action_names": NAMES[:3], "gripper_dims": [], "action_kinds": [], "learned_kinds": []},
            "action_dim",
            "4",
            "3",
        ),
        ({"state_names": NAMES[:2]}, "state_dim", "4", "2"),
        ({"action_names": [*NAMES[1::-1], *NAMES[2:]]}, "action_names", str(NAMES), "['elbow', 'shoulder'"),
        ({"control_rate": 50.0}, "control_rate", "30.0", "50.0"),
        ({"action_kinds": ["delta"] * 4}, "action_kinds", "['absolute', 'absolute'", "['delta', 'delta'"),
        ({"gripper_dims": []}, "gripper_dims", "[3]", "[]"),
        ({"rotations": [RotationGroup([0, 1, 2], [], "axis_angle")]}, "rotations", "[]", "[RotationGroup("),
    ],
)
def test_what_means_something_else_is_refused_with_a_remedy(fields: dict, key: str, trained: str, found: str) -> None:
    other = replace(BODY, **{"reference_dims": [], **fields})
    report = compatibility_report(TRAINED, other)
    refused = {row.key: row for row in report.rows if row.verdict == "refused"}
    assert not report.fits and key in refused
    assert refused[key].trained.startswith(trained) and refused[key].data.startswith(found) and refused[key].remedy
    with pytest.raises(ValueError, match=r"demos: embodiment 'arm' has .*, the checkpoint was trained with") as error:
        require_compatible(TRAINED, other, "demos")
    assert str(report) in str(error.value)
    assert f"-> {refused[key].remedy}" in str(error.value)


def test_the_report_is_a_table_with_a_row_a_point() -> None:
    lines = str(compatibility_report(TRAINED, replace(BODY, control_rate=15.0))).splitlines()
    assert lines[0] == "embodiment 'arm': 1 of 7 points do not fit"
    row = next(line for line in lines if line.strip().startswith("control_rate"))
    assert row.split() == ["control_rate", "30.0", "15.0", "refused"]
    assert lines[lines.index(row) + 1].strip().startswith("-> resample")
    assert sum(line.endswith("fits") for line in lines) == 6


def test_cameras_that_differ_are_a_warning_and_none_are_nothing() -> None:
    assert compatibility_report(TRAINED, replace(BODY, cameras=[])).warnings == []
    (row,) = compatibility_report(TRAINED, replace(BODY, cameras=["wrist"])).warnings
    assert (row.key, row.trained, row.data) == ("cameras", "['front']", "['wrist']")


def test_a_checkpoints_own_choices_are_none_of_the_datas_business() -> None:
    learned = replace(TRAINED, learned_kinds=["relative"] * 3 + ["absolute"], rotations=[], minimum_range=0.2)
    turned = replace(TRAINED, rotations=[RotationGroup([0, 1, 2], [], "euler_xyz")], action_statistics=None)
    assert compatibility_report(learned, BODY).fits
    assert compatibility_report(turned, BODY).fits


def test_values_where_none_were_trained_on_are_pointed_at_by_dim_with_their_share() -> None:
    moved = BODY.with_statistics(data(), data(shift=[0, 0, 1.0, 0]))
    (row,) = compatibility_report(TRAINED, moved).warnings
    assert row.key == "action range 'wrist'"
    assert "51% of the data's range was not trained on, up to 2.0" in row.remedy
    assert compatibility_report(TRAINED, moved).fits


@pytest.mark.parametrize(
    ("ours", "theirs", "hint"),
    [
        (1.0, 180 / np.pi, "are the data in degrees, the checkpoint in radians?"),
        (1.0, 5.0, "check units"),
        (1.0, 0.2, None),
    ],
)
def test_degrees_where_radians_were_trained_on_are_recognised(ours: float, theirs: float, hint: str | None) -> None:
    rows = compatibility_report(
        BODY.with_statistics(data(ours), data()), BODY.with_statistics(data(theirs), data())
    ).warnings
    assert [row.key for row in rows] == ([f"state range {name!r}" for name in NAMES] if hint else [])
    assert all(hint in row.remedy for row in rows if hint)


def test_radians_where_degrees_were_trained_on_are_recognised_although_they_lie_within() -> None:
    (row,) = compatibility_report(
        BODY.with_statistics(data(180 / np.pi), data()), BODY.with_statistics(data(), data())
    ).warnings
    assert (row.key, row.data) == ("state range", "1.7% of it")
    assert row.remedy == "are the data in radians, the checkpoint in degrees?"


def test_a_joint_that_hardly_moved_warns_only_beyond_its_minimum_range() -> None:
    still = replace(BODY, minimum_range=0.1).with_statistics(data(0.0), data(0.0))
    assert not compatibility_report(still, BODY.with_statistics(data(0.0, 0.04), data(0.0, 0.04))).warnings
    rows = compatibility_report(still, BODY.with_statistics(data(0.0, 0.2), data(0.0, 0.2))).warnings
    assert len(rows) == 8 and "100% of the data's range was not trained on, up to 4 " in rows[0].remedy


def test_ranges_of_other_learned_values_are_not_compared_unless_given() -> None:
    relative = BODY.learning("relative").with_statistics(data(), 0.01 * data().reshape(-1, 1, 4) + data()[:, None])
    absolute = BODY.with_statistics(data(), data())
    assert not compatibility_report(relative, absolute).warnings
    given = {"action": FeatureStatistics.from_values(data())}
    keys = [row.key for row in compatibility_report(relative, absolute, given).warnings]
    assert keys == [f"action range {name!r}" for name in NAMES[:3]]


def test_of_a_long_list_the_first_difference_is_shown() -> None:
    names = [f"joint_{index}" for index in range(30)]
    one = Embodiment("humanoid", names, [], 10.0)
    other = replace(one, action_names=[*names[:20], names[21], names[20], *names[22:]])
    assert first_difference(one, other, ["name", "action_names"]) == ("action_names[20]", "'joint_20'", "'joint_21'")
    assert first_difference(one, one, ["name", "action_names"]) is None
    assert "'absolute' 30 times" in str(compatibility_report(one, one)) and "30 entries" in str(
        compatibility_report(one, one)
    )
