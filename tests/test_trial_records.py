"""Finished trials in a folder: never lost, never counted twice, and never of other settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from priorvla.deployment.episodes import Episode
from priorvla.deployment.evaluation import EvaluationResult, TaskResult
from priorvla.deployment.evaluation_report import summary, write_evaluation
from priorvla.deployment.task_files import task_file_name
from priorvla.deployment.trial_records import TrialRecords
from priorvla.hub_cards.card_evaluation import read_evaluation

SETTINGS = {"weights": "abc", "environment": "metaworld", "seed": 0, "execute_steps": None}
FRAMES = np.zeros((6, 8, 8, 3), np.uint8)


def episode(trial: int, success: bool = False, task: str = "reach", **others: Any) -> Episode:
    return Episode(task, trial, success, 10, 0.5, **others)


def write(folder: Path, *trials: int) -> Path:
    with TrialRecords(folder, SETTINGS) as records:
        for trial in trials:
            records.add(episode(trial, trial % 2 == 1))
    return folder / "trials.jsonl"


def outcomes(folder: Path) -> dict:
    with TrialRecords(folder, SETTINGS) as records:
        return records.require(["reach"], 10)


def test_finished_trials_are_there_when_the_folder_is_opened_again(tmp_path):
    write(tmp_path, 0, 1)
    write(tmp_path, 2)
    assert outcomes(tmp_path) == {("reach", 0): False, ("reach", 1): True, ("reach", 2): False}


def test_a_trial_is_there_before_the_records_are_closed(tmp_path):
    with TrialRecords(tmp_path, SETTINGS) as records:
        records.add(episode(0))
        assert len((tmp_path / "trials.jsonl").read_bytes().splitlines()) == 2


@pytest.mark.parametrize("cut", [1, 5, 60])
def test_a_last_line_that_was_cut_off_is_dropped_and_its_trial_written_again(tmp_path, cut):
    file = write(tmp_path, 0, 1)
    whole = file.read_bytes()
    file.write_bytes(whole[:-cut])
    assert outcomes(tmp_path) == {("reach", 0): False}
    write(tmp_path, 1)
    assert file.read_bytes() == whole


def test_a_last_line_of_zeros_is_dropped_and_a_damaged_line_before_it_is_refused(tmp_path):
    file = write(tmp_path, 0, 1)
    whole = file.read_bytes()
    file.write_bytes(whole + b"\0" * 20 + b"\n")
    assert len(outcomes(tmp_path)) == 2 and file.read_bytes() == whole
    header, first, second = whole.splitlines(keepends=True)
    file.write_bytes(header + first[:10] + b"\n" + second)
    with pytest.raises(ValueError, match=r"trials\.jsonl is damaged in line 2"):
        outcomes(tmp_path)


def test_a_damaged_first_line_is_not_to_be_removed_and_a_foreign_file_is_left_as_it_is(tmp_path):
    file = write(tmp_path, 0, 1)
    damaged = b"\0" * 10 + file.read_bytes()[10:]
    for content in (damaged, b'{"precious": 1}\n', b"precious notes", b"[]\n[]\n", b"{}"):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"does not begin with the settings of an evaluation: .* restore"):
            outcomes(tmp_path)
        assert file.read_bytes() == content
    for begun in (b"", b'{"sett', b'{"settings": {"we', b"\0" * 40, b"\0" * 40 + b"\n"):
        file.write_bytes(begun)
        assert outcomes(tmp_path) == {}


@pytest.mark.parametrize(
    "wrong",
    [
        {"trial": "7"},
        {"trial": -1},
        {"trial": True},
        {"success": "no"},
        {"steps": None},
        {"task": 3},
        {"film": 3},
        {"commands": []},
        {"of_a_later_version": 1},
    ],
)
def test_a_record_of_wrong_types_is_damaged_even_at_the_end(tmp_path, wrong):
    file = write(tmp_path, 0, 1)
    *_, last = file.read_bytes().splitlines()
    changed = file.read_bytes() + json.dumps({**json.loads(last), "trial": 2, **wrong}).encode() + b"\n"
    file.write_bytes(changed)
    with pytest.raises(ValueError, match=r"damaged in line 4: remove that line and its trial runs again"):
        outcomes(tmp_path)
    assert file.read_bytes() == changed


def test_files_of_a_task_lie_in_the_folder_whatever_it_is_called(tmp_path):
    folder = tmp_path / "evaluation"
    tasks = [
        "../../escaped",
        "/etc/x",
        "pick and/or place it",
        "pick and/or place it!",
        "a/../b",
        "x" * 300,
        "..",
        "äß",
    ]
    with TrialRecords(folder, SETTINGS) as records:
        for task in tasks:
            records.add(episode(0, task=task, film=FRAMES, strip=FRAMES))
    assert [file.name for file in tmp_path.iterdir()] == ["evaluation"]
    for kind in ("films", "strips"):
        assert len([file for file in (folder / kind).iterdir() if file.is_file()]) == len(tasks)
    assert task_file_name("libero_object/pick_up") == "libero_object/pick_up"
    assert task_file_name("drawer-open") == "drawer-open"


def test_a_trial_that_is_written_twice_counts_once(tmp_path):
    file = write(tmp_path, 0, 1)
    file.write_bytes(file.read_bytes() + file.read_bytes().splitlines(keepends=True)[1].replace(b"false", b"true"))
    assert outcomes(tmp_path) == {("reach", 0): False, ("reach", 1): True}
    with TrialRecords(tmp_path, SETTINGS) as records:
        records.add(episode(0, success=True))
        assert records.finished["", "reach", 0].success is False


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("weights", "def", "another weights: go on"),
        ("seed", 1, r"another seed \(0 there, 1 here\)"),
        ("execute_steps", 4, r"another execute steps \(None there, 4 here\)"),
    ],
)
def test_trials_of_another_setting_are_refused_by_its_name_and_kept(tmp_path, name, value, said):
    before = write(tmp_path, 0).read_bytes()
    with pytest.raises(ValueError, match=said):
        TrialRecords(tmp_path, {**SETTINGS, name: value})
    assert (tmp_path / "trials.jsonl").read_bytes() == before


def test_trials_of_other_versions_are_refused_by_those_that_differ_and_older_records_tell_none(tmp_path):
    told = {**SETTINGS, "versions": {"torch": "2.9", "mujoco": "3.3"}}
    with TrialRecords(tmp_path / "new", told) as records:
        records.add(episode(0))
    with pytest.raises(ValueError, match=r"another versions \({'mujoco': '3.3'} there, {'mujoco': '3.8'} here\)"):
        TrialRecords(tmp_path / "new", {**told, "versions": {"torch": "2.9", "mujoco": "3.8"}})
    write(tmp_path / "old", 0)
    with TrialRecords(tmp_path / "old", told) as records:
        assert len(records.finished) == 1


def test_settings_without_a_trial_bind_nobody(tmp_path):
    write(tmp_path)
    with TrialRecords(tmp_path, {**SETTINGS, "seed": 1}) as records:
        records.add(episode(0))
    with pytest.raises(ValueError, match="another seed"):
        outcomes(tmp_path)


def test_finished_trials_cannot_be_left_out_of_a_report(tmp_path):
    write(tmp_path, 0, 1, 2)
    with TrialRecords(tmp_path, SETTINGS) as records:
        assert len(records.require(["push", "reach"], 5)) == 3
        with pytest.raises(ValueError, match="has finished trials of 'reach': name it in --tasks too"):
            records.require(["push"], 5)
        with pytest.raises(ValueError, match=r"--trials 2: .* has 3 of 'reach' already"):
            records.require(["reach"], 2)


def test_two_processes_cannot_write_into_one_folder(tmp_path):
    pytest.importorskip("fcntl")
    with TrialRecords(tmp_path, SETTINGS), pytest.raises(RuntimeError, match="another evaluation is writing"):
        TrialRecords(tmp_path, SETTINGS)
    write(tmp_path, 0)


def test_films_are_named_in_their_records_and_the_first_failure_of_a_task_has_a_strip(tmp_path):
    suite = "libero_object/pick"
    with TrialRecords(tmp_path, SETTINGS) as records:
        assert records.first_failure(suite) is None
        records.add(episode(0, success=True, task=suite, film=FRAMES))
        records.add(episode(3, task=suite, strip=FRAMES))
        records.add(episode(1, task=suite, strip=FRAMES))
        records.add(episode(2, task=suite, strip=FRAMES))
    lines = [json.loads(line) for line in (tmp_path / "trials.jsonl").read_text().splitlines()[1:]]
    assert [line["film"] is not None for line in lines] == [True, False, False, False]
    assert (tmp_path / lines[0]["film"]).is_file() and "success" in lines[0]["film"]
    with TrialRecords(tmp_path, SETTINGS) as records:
        failure = records.first_failure(suite)
    assert failure.trial == 1
    with Image.open(tmp_path / failure.strip) as strip:
        assert strip.size == (6 * 144 + 5 * 4, 144)


def test_a_report_over_several_suites_counts_each_by_its_robot_and_shows_why_a_task_failed(tmp_path):
    outcomes = {"libero_object/milk": [True, True], "libero_object/soup": [True, False], "libero_goal/stove": [False]}
    result = EvaluationResult(
        {task: TaskResult(task, own, suite=task.split("/")[0]) for task, own in outcomes.items()}, 1.0
    )
    settings = {**SETTINGS, "robot": "libero_iiwa_eef"}
    with TrialRecords(tmp_path, settings) as records:
        for task, own in outcomes.items():
            for trial, success in enumerate(own):
                strip = {} if success else {"strip": FRAMES}
                records.add(episode(trial, success, task, **strip), "libero_iiwa_eef")
        page = write_evaluation({"libero_iiwa_eef": result}, {"libero_iiwa_eef": settings}, records).read_text()
    report = json.loads((tmp_path / "report.json").read_text())
    assert {suite: (row["successes"], row["trials"]) for suite, row in report["suites"].items()} == {
        "libero_object": (3, 4),
        "libero_goal": (0, 1),
    }
    assert report["overall"]["successes"] == 3 and report["episode_time_s"] == 2.5
    assert "libero_iiwa_eef" in page and page.count("<svg") == 3  # suites, and the tasks of each
    assert page.count("<img") == 2 and "soup</strong>: libero_<wbr>iiwa_<wbr>eef, trial 1" in page


ARMS = {arm: {**SETTINGS, "environment_options": {"starts": "recorded"}, "robot": arm} for arm in ("panda", "ur5e")}


def test_the_same_trial_of_two_arms_is_two_trials_and_an_arm_is_added_like_a_task(tmp_path):
    with TrialRecords(tmp_path, ARMS["panda"]) as records:
        records.add(episode(0, success=True), "panda")
    with TrialRecords(tmp_path, *ARMS.values()) as records:
        assert records.require(["reach"], 1, "panda") == {("reach", 0): True}
        assert records.require(["reach"], 1, "ur5e") == {}
        records.add(episode(0, film=FRAMES, strip=FRAMES), "ur5e")
        records.add(episode(1, film=FRAMES, strip=FRAMES), "panda")
    with TrialRecords(tmp_path, *reversed(ARMS.values())) as records:
        assert records.require(["reach"], 2, "panda") == {("reach", 0): True, ("reach", 1): False}
        assert records.require(["reach"], 2, "ur5e") == {("reach", 0): False}
        failures = [records.first_failure("reach", arm) for arm in ARMS]
    assert [(failure.robot, failure.trial) for failure in failures] == [("panda", 1), ("ur5e", 0)]
    assert len({*(tmp_path / "strips").rglob("*.png")} & {tmp_path / failure.strip for failure in failures}) == 2


def test_an_arm_cannot_be_left_out_and_none_of_them_may_have_other_settings(tmp_path):
    with TrialRecords(tmp_path, *ARMS.values()) as records:
        for arm in ARMS:
            records.add(episode(0), arm)
    with pytest.raises(ValueError, match="finished trials of the arm 'panda': name it in --arm too"):
        TrialRecords(tmp_path, ARMS["ur5e"])
    with pytest.raises(ValueError, match=r"another embodiment \(None there, 'mine' here\)"):
        TrialRecords(tmp_path, ARMS["panda"], {**ARMS["ur5e"], "embodiment": "mine"})
    with pytest.raises(ValueError, match="another environment "):
        TrialRecords(tmp_path, {**ARMS["panda"], "robot": "sawyer", "environment": "tabletop"})


def test_settings_that_somebody_has_removed_are_missed(tmp_path):
    with TrialRecords(tmp_path, *ARMS.values()) as records:
        for arm in ARMS:
            records.add(episode(0), arm)
    file = tmp_path / "trials.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([*lines[:2], *lines[3:], lines[1]]))
    with pytest.raises(ValueError, match="has a trial of 'ur5e' in line 3 and no settings of it before: restore"):
        TrialRecords(tmp_path, *ARMS.values())
    file.write_bytes(b"".join([*lines[:2], lines[2][:40] + b"\n", *lines[3:]]))
    with pytest.raises(ValueError, match="damaged in line 3: it has the settings of the trials after it: restore"):
        TrialRecords(tmp_path, *ARMS.values())


def test_records_from_before_an_evaluation_had_several_arms_go_on_and_take_another_arm(tmp_path):
    settings = {**ARMS["ur5e"], "environment_options": {"robot": "ur5e", "starts": "recorded"}}
    trial = {"task": "reach", "trial": 0, "success": False, "steps": 10, "seconds": 0.5, "film": None}
    (tmp_path / "strips").mkdir()
    Image.fromarray(FRAMES[0]).save(tmp_path / "strips" / "reach-0.png")
    (tmp_path / "trials.jsonl").write_text(f"{json.dumps({'settings': settings})}\n{json.dumps(trial)}\n")
    for _ in range(2):
        with TrialRecords(tmp_path, *ARMS.values()) as records:
            assert records.require(["reach"], 1, "ur5e") == {("reach", 0): False}
            assert records.first_failure("reach", "ur5e").strip == "strips/reach-0.png"
            assert records.first_failure("reach", "panda") is None
            records.add(episode(0, success=True), "panda")


def test_a_report_over_two_arms_has_a_column_of_each_and_counts_both_together(tmp_path):
    suites = ("libero_object", "libero_object_swap")
    results = {arm: EvaluationResult({}, 1.0) for arm in ARMS}
    with TrialRecords(tmp_path, *ARMS.values()) as records:
        for arm, result in results.items():
            for suite in suites:
                own = TaskResult(f"{suite}/milk", [arm == "panda", False], suite=suite)
                result.tasks[own.task] = own
                for trial, success in enumerate(own.outcomes):
                    strip = {} if success else {"strip": FRAMES}
                    records.add(episode(trial, success, own.task, **strip), arm)
        page = write_evaluation(results, ARMS, records).read_text().replace("\u00a0", " ").replace("\u2060", "")
        told = summary(results, ARMS, records)
    report = json.loads((tmp_path / "report.json").read_text())
    assert [report["robots"][arm]["suites"][suites[1]]["successes"] for arm in ARMS] == [1, 0]
    assert report["suites"][suites[1]]["trials"] == 4 and report["overall"]["successes"] == 2
    low, high = report["robots"]["panda"]["tasks"]["libero_object/milk"]["interval"]
    assert (round(low, 2), round(high, 2)) == (0.09, 0.91)
    for cell in ("1 / 2 (9–91 %)", "0 / 2 (0–66 %)"):
        assert page.count(f">{cell}</td>") == 4  # of two suites and of two tasks
    assert ">2 / 4 (15–85 %)</td>" in page and ">0 / 4 (0–49 %)</td>" in page
    card = read_evaluation(tmp_path)["tasks"]
    assert card["libero_object/milk (panda)"] == {"successes": 1, "trials": 2} and len(card) == 4
    assert page.count("<img") == 4 and "ur5e, trial 0, no success in 10 steps" in page
    assert told[:2] == ["panda: 2 / 4 (15–85 %)", "ur5e: 0 / 4 (0–49 %)"]
    assert told[2].startswith("2 of 8 episodes succeeded") and len(told) == 3


def test_what_was_done_is_kept_and_counted_where_the_environment_tells(tmp_path):
    told, settings = ["asked", "another", "another", None], {**SETTINGS, "robot": "arm"}
    with TrialRecords(tmp_path, settings) as records:
        for trial, outcome in enumerate(told):
            records.add(episode(trial, outcome == "asked", outcome=outcome), "arm")
    with TrialRecords(tmp_path, settings) as records:
        assert [records.finished["arm", "reach", trial].outcome for trial in range(4)] == told
        tasks = {"reach": TaskResult("reach", [True, False, False, False])}
        page = write_evaluation({"arm": EvaluationResult(tasks, 1.0)}, {"arm": settings}, records)
    assert json.loads((tmp_path / "report.json").read_text())["robots"]["arm"]["outcomes"] == {
        "reach": {"asked": 1, "another": 2}
    }
    text = page.read_text(encoding="utf-8")
    assert "What was done" in text and "Trials by outcome" in text
    silent = tmp_path / "silent"
    with TrialRecords(silent, settings) as records:
        records.add(episode(0), "arm")
        page = write_evaluation(
            {"arm": EvaluationResult({"reach": TaskResult("reach", [False])}, 1.0)}, {"arm": settings}, records
        )
    assert "What was done" not in page.read_text(encoding="utf-8")
    assert "outcomes" not in json.loads((silent / "report.json").read_text())["robots"]["arm"]
