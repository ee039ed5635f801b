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
    seeing = {key: value for key, value in recipes["policy.yaml"].items() if key != "model"}
    seeing |= {"training": training, "cache-dir": str(folder / "features")}
    (folder / "seeing.yaml").write_text(yaml.safe_dump(seeing))
    for command in (
        f"collect --tasks {TASK} --episodes 2 --image-size 56 --workers 1 --output-dir {folder}/demos",
        f"pretrain --config {folder}/prior.yaml --max-steps 4 --output-dir {folder}/prior",
        f"train --config {folder}/policy.yaml --prior {folder}/prior --output-dir {folder}/policy",
        f"train --config {folder}/policy.yaml --prior {folder}/prior --control --output-dir {folder}/control",
        f"pretrain --kind vision-action --fusion cross --config {folder}/seeing.yaml --prior {folder}/prior "
        f"--output-dir {folder}/sight",
        f"train --config {folder}/seeing.yaml --prior {folder}/sight --listening 2 --output-dir {folder}/three_rungs",
        f"evaluate {folder}/three_rungs --tasks {TASK} --trials 1 --max-episode-steps 12 --workers 1 "
        f"--backbone {tiny_backbone} --output-dir {folder}/three_rungs_evaluation",
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
    for name in ("prior", "sight", "policy", "control", "three_rungs"):
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


@pytest.mark.parametrize("name", ["evaluation", "three_rungs_evaluation"])
def test_the_evaluation_reports_success_by_task(run, name):
    report = json.loads((run / name / "report.json").read_text())
    assert report["tasks"].keys() == {TASK} and report["overall"]["trials"] == 1
    assert report["tasks"][TASK]["successes"] in (0, 1)
    assert TASK in (run / name / "report.html").read_text()


def test_three_rungs_are_one_expert_that_grew(run):
    prior, sight, three = (config_of(run / name) for name in ("prior", "sight", "three_rungs"))
    assert prior["expert"]["expert_layers"] == ["motion"] * 2
    assert sight["expert"]["expert_layers"] == ["vision"] * 2 and not sight["language"]
    assert three["expert"]["expert_layers"] == ["vision", "vision_language"] * 2 and three["language"]
    rungs = ("prior", "sight", "three_rungs")
    weights = {rung: load_file(run / rung / "model.safetensors") for rung in rungs}
    for layer, inherited in ((0, 0), (1, 2)):
        name = "expert.layers.{}.self_attn.q_proj.weight"
        own = weights["prior"][name.format(layer)]
        assert (weights["sight"][name.format(layer)] - own).norm() < 0.3 * own.norm()
        assert (weights["three_rungs"][name.format(inherited)] - own).norm() < 0.3 * own.norm()
    assert len({(run / rung / "embodiments.json").read_text() for rung in rungs}) == 1


def test_info_describes_what_was_trained(run, capsys):
    for name, kind in (("prior", "rung 1"), ("sight", "rung 2"), ("policy", "rung 3"), ("three_rungs", "rung 3")):
        assert main(["info", str(run / name)]) == 0
        said = capsys.readouterr().out
        assert kind in said and "metaworld_sawyer: 4 action dims" in said
    assert "loss" in said
