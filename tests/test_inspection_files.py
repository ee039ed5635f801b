"""Inspection of datasets on disk: faults of files become findings, and the report holds all of them."""

from __future__ import annotations

import html
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from priorvla.configuration.embodiment import Embodiment
from priorvla.training.data.lerobot_writer import LeRobotDatasetWriter
from priorvla.training.inspection.findings import Finding, Severity, exit_status
from priorvla.training.inspection.inspection import Inspection, inspect_dataset
from priorvla.training.inspection.inspection_options import InspectionOptions, run_inspection
from priorvla.training.inspection.inspection_report import describe_inspection, inspection_json, write_inspection

DATA_FOLDER = Path(os.environ.get("PRIORVLA_TEST_DATA", Path(__file__).parents[2] / "shared/data"))
UNITREE = DATA_FOLDER / "unitree_g1"
DATA = "data/chunk-000/file-000.parquet"
RATE, LENGTH, EPISODES = 10.0, 40, 10

BODY = Embodiment(name="toy_arm", action_names=["x", "y"], state_names=["x", "y"], control_rate=RATE, cameras=["front"])


def write(folder: Path, *, images: bool = True, video: bool = False, data_file_megabytes: float = 100) -> Path:
    """Ten sound episodes of two joints, each following its target a step later, before a camera that sees them."""
    random = np.random.default_rng(0)
    cameras = {"front": (32, 32)} if images else {}
    options = {"video": video, "video_file_megabytes": 1e-4, "data_file_megabytes": data_file_megabytes}
    with LeRobotDatasetWriter(folder, BODY, cameras, **options) as writer:
        for _ in range(EPISODES):
            time = np.arange(LENGTH + 1)[:, None] / RATE
            path = np.sin(random.uniform(1.0, 2.5, 2) * time + random.uniform(0, 7, 2)) + 0.2 * time
            pictures = np.full((LENGTH, 32, 32, 3), random.integers(30, 90), dtype=np.uint8)
            for step, place in enumerate(np.clip((path[:LENGTH, 0] + 1) * 8, 0, 24).astype(int)):
                pictures[step, 10:18, place : place + 8] = 220
            task = ("open the drawer", "press the red button")[random.integers(2)]
            writer.add_episode(path[:LENGTH], path[1:], task, dict.fromkeys(cameras, pictures))
    return folder


def rewrite(file: Path, column: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Changes a numeric column of a parquet file."""
    table = pq.read_table(file)
    kind = table.schema.field(column).type
    values = np.array(table.column(column).to_pylist())
    changed = pa.array(change(values).tolist(), type=kind)
    pq.write_table(table.set_column(table.schema.get_field_index(column), column, changed), file)


def codes(inspection: Inspection) -> list[str]:
    return [finding.code for finding in inspection.findings]


def only(inspection: Inspection) -> Finding:
    assert len(inspection.findings) == 1, [finding.message for finding in inspection.findings]
    return inspection.findings[0]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("sound") / "dataset")


def test_a_sound_dataset_is_ready(sound):
    inspection = inspect_dataset(sound)
    assert inspection.findings == []
    assert (inspection.episodes, inspection.frames) == (EPISODES, EPISODES * LENGTH)
    assert inspection.exit_status(strict=True) == 0
    assert "Ready" in describe_inspection(inspection)


def test_every_value_that_is_not_finite_is_found_and_the_other_episodes_are_inspected(tmp_path):
    folder = write(tmp_path / "dataset", images=False)

    def damage(values: np.ndarray) -> np.ndarray:
        values[3 * LENGTH + 7, 1] = np.nan
        values[8 * LENGTH : 8 * LENGTH + 2, 0] = np.inf
        return values

    rewrite(folder / DATA, "action", damage)
    inspection = inspect_dataset(folder, frames=False)
    finding = only(inspection)
    assert (finding.code, finding.severity, finding.episodes) == ("not-finite", Severity.ERROR, [3, 8])
    assert finding.dims == ["action y", "action x"]
    assert finding.numbers["count"] == 3
    assert inspection.episodes == EPISODES - 2
    assert inspection.exit_status() == 4


def test_a_missing_and_a_truncated_data_file_are_named(tmp_path):
    folder = write(tmp_path / "dataset", images=False, data_file_megabytes=1e-4)
    files = sorted((folder / "data").rglob("*.parquet"))
    files[2].unlink()
    files[6].write_bytes(files[6].read_bytes()[:500])
    inspection = inspect_dataset(folder, frames=False)
    finding = only(inspection)
    assert (finding.code, finding.episodes, finding.numbers["files"]) == ("unreadable-files", [2, 6], 2)
    assert files[2].name in finding.message
    assert inspection.episodes == EPISODES - 2


def test_a_missing_column_is_named_and_nothing_is_left(tmp_path):
    folder = write(tmp_path / "dataset", images=False)
    table = pq.read_table(folder / DATA)
    pq.write_table(table.drop_columns(["action"]), folder / DATA)
    inspection = inspect_dataset(folder, frames=False)
    assert "'action' is missing" in only(inspection).message
    assert (inspection.episodes, inspection.embodiment) == (0, None)


def test_an_unknown_task_is_the_fault_of_its_episode_alone(tmp_path):
    folder = write(tmp_path / "dataset", images=False)
    rewrite(folder / DATA, "task_index", lambda tasks: np.where(np.arange(len(tasks)) // LENGTH == 4, 9, tasks))
    inspection = inspect_dataset(folder, frames=False)
    finding = only(inspection)
    assert (finding.code, finding.episodes) == ("unreadable-episodes", [4])
    assert "task_index 9" in finding.message


def test_an_episode_with_two_tasks_is_a_warning(tmp_path):
    folder = write(tmp_path / "dataset", images=False)
    rewrite(folder / DATA, "task_index", lambda tasks: np.where(np.arange(len(tasks)) == 4 * LENGTH, 1 - tasks, tasks))
    finding = only(inspect_dataset(folder, frames=False))
    assert finding.code == "reader-warnings"
    assert "episode 4 has several tasks" in finding.message


def test_metadata_that_count_other_episodes_are_told_and_the_rest_is_inspected(tmp_path):
    folder = write(tmp_path / "dataset", images=False)
    info = json.loads((folder / "meta/info.json").read_text())
    (folder / "meta/info.json").write_text(json.dumps({**info, "total_episodes": 12}))
    inspection = inspect_dataset(folder, frames=False)
    finding = only(inspection)
    assert finding.code == "inconsistent-metadata"
    assert "total_episodes is 12" in finding.message
    assert inspection.episodes == EPISODES


def test_metadata_that_cannot_be_read_are_one_error(tmp_path):
    folder = write(tmp_path / "dataset", images=False)
    (folder / "meta/info.json").write_text("{")
    inspection = inspect_dataset(folder)
    assert only(inspection).code == "unreadable-dataset"
    assert inspection.exit_status() == 4
    assert "no episode could be read" in describe_inspection(inspection)
    page = write_inspection(inspection, tmp_path / "report").read_text()
    assert "unreadable-dataset" in page


def test_missing_videos_are_one_finding_and_motion_alone_does_without_them(tmp_path):
    folder = write(tmp_path / "dataset", video=True)
    videos = sorted(folder.rglob("*.mp4"))
    assert len(videos) == EPISODES
    for episode in (1, 2, 3, 7):
        videos[episode].unlink()
    inspection = inspect_dataset(folder)
    finding = only(inspection)
    assert (finding.code, finding.severity, finding.dims) == ("missing-frames", Severity.ERROR, ["front"])
    assert finding.episodes == [1, 2, 3, 7]
    assert "1-3, 7" in finding.message
    assert str(videos[1]) in finding.message
    assert inspect_dataset(folder, frames=False).findings == []
    assert inspect_dataset(folder, episodes=[0, 4, 5, 6, 8, 9]).findings == []


def test_a_video_that_is_damaged_is_an_error_of_its_episode(tmp_path):
    folder = write(tmp_path / "dataset", video=True)
    sorted(folder.rglob("*.mp4"))[5].write_bytes(b"no video")
    finding = only(inspect_dataset(folder))
    assert (finding.code, finding.episodes) == ("unreadable-frames", [5])


def test_a_dataset_without_cameras_says_so_and_is_inspected(tmp_path):
    inspection = inspect_dataset(write(tmp_path / "dataset", images=False))
    assert (only(inspection).code, only(inspection).severity) == ("no-cameras", Severity.INFO)
    assert inspection.exit_status(strict=True) == 0


def test_array_files_are_inspected_too(tmp_path):
    time = np.arange(80)[:, None] / 10
    for episode in range(3):
        path = np.sin(time * (1 + episode) + [0.0, 1.0])
        np.savez(tmp_path / f"episode_{episode}.npz", state=path[:-1], action=path[1:])
    inspection = inspect_dataset(tmp_path, frames=False, mapping={"state": "state", "action": "action", "rate": 10})
    assert inspection.episodes == 3
    assert inspection.measures is not None
    assert inspection.measures.agreement.relation == "absolute"


def test_wrong_arguments_are_no_findings(tmp_path, sound):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        inspect_dataset(tmp_path / "nothing")
    with pytest.raises(ValueError, match="no episode 99"):
        inspect_dataset(sound, episodes=[0, 99])
    with pytest.raises(ValueError, match="chunk_size=0"):
        inspect_dataset(sound, chunk_size=0)


def test_the_reports_hold_every_finding_with_its_remedy(tmp_path):
    folder = write(tmp_path / "dataset")

    def damage(values: np.ndarray) -> np.ndarray:
        values[2 * LENGTH] = np.nan
        values[5 * LENGTH + 3, 0] = 500.0
        return values

    rewrite(folder / DATA, "action", damage)
    inspection = inspect_dataset(folder, chunk_size=50)
    assert {"not-finite", "outliers", "short-episodes"} <= set(codes(inspection))
    page = write_inspection(inspection, tmp_path / "out").read_text()
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    shown = " ".join(html.unescape(page).split())
    text = " ".join(describe_inspection(inspection, width=2000).split())
    assert [finding["code"] for finding in report["findings"]] == codes(inspection)
    for finding in inspection.findings:
        assert f"<code>{finding.code}</code>" in page
        assert finding.message in shown
        assert finding.remedy in shown
        assert finding.message in text
        assert finding.remedy in text
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["report.html", "report.json"]
    assert page.count("<svg") >= 5
    assert "data:image/png" in page


def test_report_json_says_what_programs_need(sound):
    report = json.loads(json.dumps(inspection_json(inspect_dataset(sound)), allow_nan=False))
    assert (report["episodes"], report["frames"], report["embodiment"]) == (EPISODES, EPISODES * LENGTH, "toy_arm")
    assert report["findings"] == []
    assert report["exit_status"] == 0
    assert report["windows"]["count"] == EPISODES * LENGTH
    names = [dim["name"] for dim in report["statistics"]["action"]["dims"]]
    assert names == ["x", "y"]
    assert report["agreement"]["relation"] == "absolute"
    assert report["language"]["episodes"].keys() == {"open the drawer", "press the red button"}


@pytest.mark.parametrize(
    ("severities", "status", "strict"),
    [((), 0, 0), (("info",), 0, 0), (("info", "warning"), 0, 3), (("warning", "error"), 4, 4)],
)
def test_the_exit_status_is_that_of_the_worst_finding(severities, status, strict):
    findings = [Finding("code", Severity(severity), "message", "remedy") for severity in severities]
    assert exit_status(findings) == status
    assert exit_status(findings, strict=True) == strict


def test_the_command_prints_writes_and_returns_its_status(tmp_path, sound, capsys):
    options = InspectionOptions(str(sound), tmp_path / "out", chunk_size=50, strict=True, episodes=["0-4", "7"])
    options.check()
    assert run_inspection(options) == 3  # every episode is shorter than the chunk
    printed = capsys.readouterr().out
    assert "6 episodes" in printed
    assert "short-episodes" in printed
    assert str(tmp_path / "out" / "report.html") in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chunk_size": 0}, "--chunk-size 0"),
        ({"episodes": ["3-1"]}, "ends before it begins"),
        ({"episodes": ["x"]}, "neither a number nor a range"),
        ({"output_dir": Path(__file__)}, "is a file"),
        ({"mapping": Path("nowhere.yaml")}, r"--mapping nowhere\.yaml"),
        ({"dataset": "./nowhere"}, "does not exist"),
    ],
)
def test_options_are_checked_by_name(sound, options, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        InspectionOptions(**{"dataset": str(sound), **options}).check()


def test_checking_options_loads_nothing_heavy():
    program = (
        "import sys; import priorvla.training.inspection.inspection_options; "
        "print([name for name in ('torch', 'matplotlib', 'pyarrow') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.skipif(not UNITREE.is_dir(), reason="the Unitree G1 recordings are not here")
def test_the_real_unitree_recordings():
    inspection = inspect_dataset(UNITREE)
    missing = next(finding for finding in inspection.findings if finding.code == "missing-frames")
    assert missing.numbers["count"] == 97
    assert {29, 30, 59}.isdisjoint(missing.episodes)
    assert codes(inspection).count("missing-frames") == 1
    assert not [finding for finding in inspection.findings if finding.severity is Severity.WARNING]
    assert inspection.measures is not None
    assert {dim.relation for dim in inspection.measures.agreement.dims} == {"absolute"}
    assert all(3 <= dim.lag <= 15 for dim in inspection.measures.agreement.dims)
