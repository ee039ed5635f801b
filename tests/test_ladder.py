"""The ladder through the command line, on a real simulator: collect, pretrain, train beside its control, evaluate."""

import json
from importlib.util import find_spec

import pytest
import yaml
from safetensors.torch import load_file

if find_spec("metaworld") is None:
    pytest.skip("needs the extra 'metaworld'", allow_module_level=True)
from priorvla.cli import main
from priorvla.deployment.collect import load_collection_summary
from priorvla.training.data.readers import load_trajectories

TASK = "drawer-close"
CHECKPOINT = {"config.json", "model.safetensors", "embodiments.json", "processor_config.json", "README.md"}
RUN = {"log.csv", "loss.png", "metrics.json"}


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_backbone, tiny_fields):
    """Folder in which every command of the ladder has run."""
    folder = tmp_path_factory.mktemp("ladder")
    common = {"dataset": str(folder / "demos"), "device": "cpu", "holdout": 0.5}
    training = {"per_device_train_batch_size": 8, "logging_steps": 1}
    recipes = {
        "prior.yaml": {**common, "max-steps": 9, "model": tiny_fields, "training": training},
        "policy.yaml": {
            **common,
            "max-steps": 3,
            "frame-stride": 4,
            "backbone": str(tiny_backbone),
            "model": {"fusion_transformer": {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}},
            "training": {**training, "distillation_steps": 2},
        },
    }
    for name, recipe in recipes.items():
        (folder / name).write_text(yaml.safe_dump(recipe))
    for command in (
        f"collect --tasks {TASK} --episodes 2 --image-size 56 --workers 1 --output-dir {folder}/demos",
        f"pretrain --config {folder}/prior.yaml --max-steps 4 --output-dir {folder}/prior",
        f"train --config {folder}/policy.yaml --prior {folder}/prior --output-dir {folder}/policy",
        f"train --config {folder}/policy.yaml --prior {folder}/prior --control --output-dir {folder}/control",
        f"evaluate {folder}/policy --tasks {TASK} --trials 1 --max-episode-steps 12 --workers 1 "
        f"--backbone {tiny_backbone} --output-dir {folder}/evaluation",
    ):
        assert main(command.split()) == 0, command
    return folder


def names(folder) -> set[str]:
    return {path.name for path in folder.iterdir()}


def config_of(folder) -> dict:
    return json.loads((folder / "config.json").read_text())


def test_demonstrations_are_collected_with_pictures(run):
    source = load_trajectories(run / "demos", frames=True)
    assert len(source) == 2 and source.embodiment.name == "metaworld_sawyer"
    assert source.trajectories[0].frames.read("corner2", [0]).shape == (1, 56, 56, 3)
    assert load_collection_summary(run / "demos").success_rates == {TASK: 1.0}


def test_every_run_leaves_a_checkpoint_a_card_a_log_and_a_plot(run):
    for name in ("prior", "policy", "control"):
        assert names(run / name) >= CHECKPOINT | RUN, name
        assert not {path.suffix for path in (run / name).iterdir()} & {".bin", ".pt", ".pth", ".pkl"}
        header, *lines = (run / name / "log.csv").read_text().splitlines()
        assert "loss" in header and lines


def test_the_command_line_won_over_the_recipe_and_the_recipe_over_the_defaults(run):
    steps = {line.split(",")[0] for line in (run / "prior" / "log.csv").read_text().splitlines()[1:]}
    assert steps == {"1", "2", "3", "4"}
    assert config_of(run / "prior")["expert"]["hidden_size"] == 16


def test_the_prior_is_measured_on_episodes_that_it_did_not_see(run):
    metrics = json.loads((run / "prior" / "metrics.json").read_text())
    assert metrics["held_out_windows"] > 0
    assert {"reconstruction_error/metaworld_sawyer", "mean_chunk_error/metaworld_sawyer"} <= metrics.keys()
    report = json.loads((run / "prior" / "report.json").read_text())
    assert report["embodiments"]["metaworld_sawyer"]["windows"] > 0
    assert "What this action prior knows" in (run / "prior" / "report.html").read_text()


def test_prior_and_control_differ_in_weights_and_distillation_alone(run):
    policy, control = config_of(run / "policy"), config_of(run / "control")
    assert policy == control
    assert policy["expert"] == {**config_of(run / "prior")["expert"], "dtype": policy["expert"]["dtype"]}
    theirs, ours = (load_file(run / name / "model.safetensors") for name in ("policy", "control"))
    assert {name: value.shape for name, value in theirs.items()} == {name: value.shape for name, value in ours.items()}
    for name in ("embodiments.json", "processor_config.json"):
        assert (run / "policy" / name).read_text() == (run / "control" / name).read_text()
    for name, distils in (("policy", True), ("control", False)):
        header = (run / name / "log.csv").read_text().splitlines()[0]
        assert ("loss_align" in header and "loss_recon" in header) is distils, name


def test_a_policy_that_started_from_a_prior_is_near_it_and_the_control_is_not(run):
    weights = {name: load_file(run / name / "model.safetensors") for name in ("prior", "policy", "control")}
    name = "expert.layers.0.self_attn.q_proj.weight"
    distance = {arm: (weights[arm][name] - weights["prior"][name]).norm() for arm in ("policy", "control")}
    assert distance["policy"] < 0.3 * distance["control"]


def test_the_backbone_is_named_and_neither_stored_nor_located(run):
    assert config_of(run / "policy")["backbone"]["name"].startswith("tiny_backbone")
    for file in ("config.json", "README.md", "processor_config.json"):
        assert str(run.parent) not in (run / "policy" / file).read_text(), file


def test_the_evaluation_reports_success_by_task(run):
    report = json.loads((run / "evaluation" / "report.json").read_text())
    assert report["tasks"].keys() == {TASK} and report["overall"]["trials"] == 1
    assert report["tasks"][TASK]["successes"] in (0, 1)
    assert TASK in (run / "evaluation" / "report.html").read_text()


def test_info_describes_what_was_trained(run, capsys):
    for name, kind in (("prior", "rung 1"), ("policy", "rung 3")):
        assert main(["info", str(run / name)]) == 0
        said = capsys.readouterr().out
        assert kind in said and "metaworld_sawyer: 4 action dims" in said
    assert "loss" in said
