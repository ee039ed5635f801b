"""The quickstart: what it may say, what it refuses, how it goes on after a stop, and a tiny run of all of it."""

from __future__ import annotations

import csv
import importlib
import json
import re
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

if find_spec("metaworld") is None:
    pytest.skip("needs the extra 'metaworld'", allow_module_level=True)

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
TASK = "drawer-close"


@pytest.fixture(scope="module", autouse=True)
def benchmarks_on_the_path() -> Any:
    """The benchmarks are scripts, not a package: they import one another from their own folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield


@pytest.fixture
def quickstart() -> Any:
    return importlib.import_module("quickstart")


@pytest.fixture
def page() -> Any:
    return importlib.import_module("quickstart_report")


@pytest.fixture
def progress() -> Any:
    return importlib.import_module("quickstart_progress")


# --- what may be said -------------------------------------------------------------------------------------------------


def test_the_sentence_claims_success_only_where_the_interval_leaves_zero_out(page: Any) -> None:
    ahead, behind = page.sentence(250, (50, 60), (20, 60)), page.sentence(250, (20, 60), (50, 60))
    assert "After **250 steps**" in ahead and "50 of 60" in ahead and "+50 points" in ahead
    assert "more success with the prior" in ahead and "spans zero" not in ahead
    assert "less success with the prior" in behind and "-50 points" in behind


@pytest.mark.parametrize("counts", [((6, 10), (5, 10)), ((5, 10), (6, 10)), ((0, 10), (0, 10)), ((10, 10), (10, 10))])
def test_the_sentence_takes_no_side_where_the_interval_spans_zero(page: Any, counts: Any) -> None:
    said = page.sentence(100, *counts)
    assert "spans zero" in said
    assert not re.search(r"\b(more|less|better|worse|ahead|gain|improve\w*)\b", said)


def test_the_comparison_is_of_all_tasks_with_an_interval(page: Any) -> None:
    evaluations = {
        f"{arm}-10": {"overall": {"successes": n, "trials": 20}} for arm, n in (("prior", 18), ("control", 4))
    }
    found = page.comparison(evaluations, 10)
    assert (found["prior"], found["control"], found["difference"]) == (0.9, 0.2, pytest.approx(0.7))
    low, high = found["interval"]
    assert 0 < low < 0.7 < high < 1


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"budgets": (0, 100)}, "--budgets 0 must be at least 1"),
        ({"budgets": (-5,)}, "--budgets -5 must be"),
        ({"budgets": (100, 200, 100)}, "--budgets names 100 twice"),
        ({"budgets": ()}, "--budgets names no number"),
        ({"budgets": (7, 2000)}, "a checkpoint every 1 steps, 2000 of an arm, and 50 at most"),
        ({"trials": 0}, "--trials 0 must be at least 1"),
        ({"seed": -1}, "--seed -1 must be at least 0"),
    ],
)
def test_impossible_settings_are_refused_before_anything_is_done(quickstart: Any, values: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        quickstart.Settings(**values)


def test_a_bad_budget_on_the_command_line_is_a_usage_error(
    quickstart: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["quickstart.py", "--output-dir", str(tmp_path / "run"), "--budgets", "100", "100"])
    with pytest.raises(SystemExit) as stopped:
        quickstart.main()
    assert stopped.value.code == 2 and "names 100 twice" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_policys_recipe_saves_at_every_budget_and_removes_none(quickstart: Any, tmp_path: Path) -> None:
    run = quickstart.Quickstart(tmp_path, quickstart.Settings(budgets=(100, 250, 2000)))
    recipe, shipped = yaml.safe_load(run._write_policy_recipe().read_text()), quickstart.load_recipe("vla_small")
    training = recipe.pop("training")
    assert training["save_steps"] == 50 and training["save_total_limit"] >= 2000 / 50
    assert {**shipped.pop("training"), "save_steps": 50, "save_total_limit": 40} == training
    assert recipe == shipped


def test_the_shipped_recipe_takes_its_backbone_from_what_the_checkpoint_names(quickstart: Any, tmp_path: Path) -> None:
    run = quickstart.Quickstart(tmp_path, quickstart.Settings())
    policy = run._policy("prior", 200)
    assert policy.keywords == {"backbone": "auto"}
    assert policy.args == (str(tmp_path / "policy-prior" / "checkpoint-200"),)


def test_a_folder_with_a_run_of_other_settings_is_refused(quickstart: Any, tmp_path: Path) -> None:
    quickstart.Quickstart(tmp_path, quickstart.Settings())
    quickstart.Quickstart(tmp_path, quickstart.Settings())
    with pytest.raises(SystemExit, match=r"settings.json: this folder's run has trials=8, not 3"):
        quickstart.Quickstart(tmp_path, quickstart.Settings(trials=3))


def test_a_folder_with_the_results_of_something_else_is_refused_and_left_alone(quickstart: Any, tmp_path: Path) -> None:
    (tmp_path / "prior").mkdir()
    with pytest.raises(SystemExit, match="has a 'prior' of another run"):
        quickstart.Quickstart(tmp_path, quickstart.Settings())
    assert [file.name for file in tmp_path.iterdir()] == ["prior"]


# --- how it goes on ---------------------------------------------------------------------------------------------------


def test_a_step_that_was_stopped_and_continued_has_the_time_of_both(quickstart: Any, tmp_path: Path) -> None:
    result = tmp_path / "result"

    def stop() -> None:
        time.sleep(0.2)
        raise KeyboardInterrupt

    def work() -> None:
        time.sleep(0.1)
        result.touch()

    with pytest.raises(KeyboardInterrupt):
        quickstart.Quickstart(tmp_path, quickstart.Settings())._step("think", result, stop)
    stopped = json.loads((tmp_path / "progress.json").read_text())
    assert 0.2 <= stopped["times_s"]["think"] < 5 and stopped["peak_memory_gb"] > 0.01

    for _ in range(2):  # the second time it is done
        quickstart.Quickstart(tmp_path, quickstart.Settings())._step("think", result, work)
    done = json.loads((tmp_path / "progress.json").read_text())
    assert done["times_s"]["think"] > stopped["times_s"]["think"] + 0.05  # of the 0.1 s, whatever the rounding
    assert done["peak_memory_gb"] >= stopped["peak_memory_gb"]


def test_a_training_resumes_from_a_complete_checkpoint_only(progress: Any, tmp_path: Path) -> None:
    assert not progress.can_resume(tmp_path / "run")
    unfinished = tmp_path / "run" / "checkpoint-50"
    unfinished.mkdir(parents=True)
    (unfinished / "model.safetensors").touch()
    (tmp_path / "features").mkdir()
    assert not progress.can_resume(tmp_path / "run")
    assert not (tmp_path / "run").exists(), "else the training would refuse to start in it"
    assert (tmp_path / "features").is_dir()
    complete = tmp_path / "run" / "checkpoint-100"
    complete.mkdir(parents=True)
    (complete / "trainer_state.json").touch()
    (tmp_path / "run" / "checkpoint-150").mkdir()
    assert progress.can_resume(tmp_path / "run")
    assert complete.is_dir()


def test_a_file_is_there_whole_or_not_at_all(progress: Any, tmp_path: Path) -> None:
    file = tmp_path / "new" / "result.json"
    with pytest.raises(TypeError):
        progress.write_json(file, {"a": object()})
    assert not file.exists()
    progress.write_json(file, {"a": 1})
    with pytest.raises(TypeError):
        progress.write_json(file, {"a": object()})
    assert json.loads(file.read_text()) == {"a": 1}
    assert [path.name for path in file.parent.iterdir()] == ["result.json"]


# --- the page ---------------------------------------------------------------------------------------------------------


def write_log(file: Path, rows: list[dict[str, float]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, sorted({name for row in rows for name in row}))
        writer.writeheader()
        writer.writerows(rows)


def test_final_losses_are_means_over_the_last_tenth_of_each_curve(page: Any, tmp_path: Path) -> None:
    rows: list[dict[str, float]] = [{"step": step, "loss": 100 - step, "grad_norm": 1.0} for step in range(1, 101)]
    for row in rows[:20]:
        row["loss_align"] = 200 - row["step"]
    write_log(tmp_path / "log.csv", rows)
    assert page.final_losses(tmp_path / "log.csv") == {"loss": 4.5, "loss_align": 180.5}


def small_report(page: Any) -> dict[str, Any]:
    def evaluation(successes: int) -> dict[str, Any]:
        outcome = {"successes": successes, "trials": 10, "interval": [0.1, 0.9]}
        return {"tasks": {TASK: outcome}, "overall": outcome}

    names = {"prior-5": 4, "control-5": 3, "prior-10": 9, "control-10": 1, "blank": 2, "random": 0}
    evaluations = {name: evaluation(successes) for name, successes in names.items()}
    collected = {"episodes": 4, "frames": 100, "success_rates": {TASK: 1.0}}
    return {
        "settings": {
            "tasks": [TASK],
            "budgets": [5, 10],
            "demonstrations": 2,
            "seed": 0,
            "trials": 10,
            "prior_steps": 4,
        },
        "comparisons": {str(budget): page.comparison(evaluations, budget) for budget in (5, 10)},
        "evaluations": evaluations,
        "prior_metrics": {"reconstruction_error/metaworld_sawyer": 0.1, "mean_chunk_error/metaworld_sawyer": 0.3},
        "final_losses": {"prior": {"loss": 0.5}, "prior arm": {"loss": 0.2, "loss_pred": 0.1}, "control arm": {}},
        "collection": {"motion": collected, "demonstrations": collected},
        "times_s": {"collect motion": 3.2},
        "total_time_s": 3.2,
        "peak_memory_gb": 1.5,
        "cores": 2,
        "versions": {"python": "3.12.0"},
    }


def test_the_page_is_written_from_the_report_and_loads_nothing(page: Any, tmp_path: Path) -> None:
    write_log(tmp_path / "prior" / "log.csv", [{"step": step, "loss": 1 / step} for step in range(1, 5)])
    for arm in ("prior", "control"):
        rows = [{"step": step, "loss": 2 / step, "loss_pred": 1 / step, "loss_align": 1.0} for step in range(1, 11)]
        write_log(tmp_path / f"policy-{arm}" / "log.csv", rows)
    (tmp_path / "films" / "prior-10").mkdir(parents=True)
    (tmp_path / "films" / "prior-10" / f"{TASK}-0-success.mp4").write_bytes(b"film")
    page.write_report(small_report(page), tmp_path)
    html = (tmp_path / "report.html").read_text()
    for said in ("more success with the prior", "spans zero", "9 / 10", f"{TASK}, prior: success", "1.5 GB", "3.12.0"):
        assert said in html, said
    fetched = re.findall(r"""(?:src|srcset|poster|data|xlink:href)\s*=\s*["']?([^"'\s>]+)""", html)
    fetched += re.findall(r"""<(?:link|use|image)[^>]*\bhref\s*=\s*["']?([^"'\s>]+)""", html)
    fetched += re.findall(r"""url\(\s*["']?([^"')\s]+)""", html)
    assert any(source.startswith("data:video/mp4") for source in fetched)
    assert all(source.startswith(("data:", "#")) for source in fetched)
    assert "<script" not in html and "@import" not in html


# --- all of it --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["tiny_backbone", "tiny_smolvlm"])  # one line of the recipe
def test_a_tiny_run_goes_through_and_a_second_start_has_nothing_to_do(
    quickstart: Any, tmp_path: Path, backbone: str, tiny_fields: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    training = {"per_device_train_batch_size": 8, "logging_steps": 1}
    common = {"device": "cpu", "holdout": 0.5}
    recipes = {
        "prior.yaml": {**common, "model": tiny_fields, "training": training},
        "vla.yaml": {
            **common,
            "holdout": 0.0,
            "frame-stride": 4,
            "backbone": str(request.getfixturevalue(backbone)),
            "model": {"fusion_transformer": {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}},
            "training": {**training, "distillation_steps": 2},
        },
    }
    for name, recipe in recipes.items():
        (tmp_path / name).write_text(yaml.safe_dump(recipe))
    settings = quickstart.Settings(
        tasks=(TASK,),
        motion_tasks=("handle-press", "coffee-button"),
        motion_episodes=1,
        demonstrations=1,
        prior_steps=3,
        budgets=(2, 6),
        trials=1,
        floor_trials=1,
        prior_recipe=str(tmp_path / "prior.yaml"),
        vla_recipe=str(tmp_path / "vla.yaml"),
    )
    folder = tmp_path / "run"
    report = quickstart.Quickstart(folder, settings, workers=1).run()

    written = json.loads((folder / "report.json").read_text())
    assert written == json.loads(json.dumps(report))
    assert written["comparisons"].keys() == {"2", "6"}
    for found in written["comparisons"].values():
        assert found["difference"] == found["prior"] - found["control"]
        low, high = found["interval"]
        assert -1 <= low <= found["difference"] <= high <= 1
    arms = {f"{arm}-{budget}" for arm in ("prior", "control") for budget in (2, 6)}
    assert written["evaluations"].keys() == arms | {"blank", "random"}
    assert all(evaluation["overall"]["trials"] == 1 for evaluation in written["evaluations"].values())
    assert written["final_losses"].keys() == {"prior", "prior arm", "control arm"}
    assert {"loss", "loss_pred", "loss_align"} <= written["final_losses"]["prior arm"].keys()
    assert "loss_align" not in written["final_losses"]["control arm"]
    assert "mean_chunk_error/metaworld_sawyer" in written["prior_metrics"]
    assert {"python", "priorvla", "torch", "numpy", "metaworld", "mujoco"} <= written["versions"].keys()
    assert written["collection"]["motion"]["episodes"] == 2
    assert written["peak_memory_gb"] > 0.1
    assert written["total_time_s"] == pytest.approx(sum(written["times_s"].values()), abs=0.1)
    assert len(written["times_s"]) == 2 + 3 + len(arms) + 2  # collections, trainings, evaluations
    assert (folder / "policy-prior" / "checkpoint-2").is_dir()
    assert {film.parent.name for film in folder.glob("films/*/*.mp4")} == {"prior-6", "control-6"}
    assert TASK in (folder / "report.html").read_text()

    assert quickstart.Quickstart(folder, settings, workers=1).run()["times_s"] == report["times_s"]
