"""The command line: help for newcomers, and errors that name the option before anything heavy is done."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from priorvla.cli import main
from priorvla.configuration.configuration_action_prior import ActionPriorConfig
from priorvla.configuration.embodiment import Embodiment
from priorvla.configuration.recipe import list_recipes
from priorvla.modeling_priorvla.modeling_action_prior import ActionPriorModel
from priorvla.modeling_priorvla.processing_priorvla import PriorVLAProcessor
from priorvla.training.data.lerobot_writer import LeRobotDatasetWriter
from priorvla.training.data.trajectory_dataset import expert_dims

RUN = ["--config", "--dataset", "--output-dir", "--max-steps", "--seed", "--device", "--resume", "--holdout"]
COLLECT = ["--config", "--env", "--tasks", "--episodes", "--output-dir", "--no-images", "--noise", "--license"]
TRAIN = [
    "--prior",
    "--control",
    "--fusion",
    "--backbone",
    "--backbone-dtype",
    "--backbone-quantization",
    "--image-size",
    "--image-tokens",
    "--prompt",
    "--frame-stride",
    "--cache-dir",
    "--max-cache-gb",
]
EVALUATE = ["checkpoint", "--config", "--env", "--tasks", "--trials", "--output-dir", "--embodiment", "--execute-steps"]
EVALUATE += ["--robot", "--action-space", "--starts", "--image-size", "--open-loop", "--episodes"]
SIMULATOR = ["--robot", "--action-space", "--video", "--image-every"]
INSPECTED = ["--chunk-size", "--episodes", "--strict", "--mapping"]
DRY_RUN = ["--dry-run", "--cameras", "--words", "--tflops"]
SERVER = [
    "--action-limits",
    "--compile",
    "--host",
    "--port",
    "--api-key-file",
    "--tls-cert",
    "--tls-key",
    "--max-clients",
    "--max-batch",
    "--batch-window-ms",
    "--max-message-mb",
    "--rate-limit",
    "--request-timeout",
]
OPTIONS = {
    "collect": [*COLLECT, *SIMULATOR, "--image-size", "--max-episode-steps", "--workers", "--seed", "--overwrite"],
    "inspect": ["dataset", "--config", "--output-dir", "--no-images", *INSPECTED],
    "pretrain": ["--kind", "--train-all", "--like", "--stream", "--data-share", *TRAIN, *RUN],
    "train": [*TRAIN, "--insertion", "--listening", *RUN],
    "evaluate": [
        *EVALUATE,
        "--action-limits",
        "--compile",
        "--max-episode-steps",
        "--films",
        "--blank-images",
        "--backbone",
        "--workers",
        "--batch-size",
        "--seed",
        "--device",
    ],
    "info": ["checkpoint", "--config", "--dataset", "--output-dir", "--seed", *DRY_RUN],
    "serve": ["checkpoint", "--config", "--embodiment", "--backbone", "--device", "--execute-steps", "--seed", *SERVER],
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    """Three episodes of motion."""
    folder = tmp_path_factory.mktemp("data") / "motion"
    random = np.random.default_rng(0)
    with LeRobotDatasetWriter(folder, Embodiment("arm", ["x", "y"], ["s"], 10.0)) as writer:
        for _ in range(3):
            writer.add_episode(random.normal(size=(12, 1)), random.normal(size=(12, 2)), "Move.")
    return folder


@pytest.fixture
def recipe(tmp_path):
    def write(text: str) -> str:
        file = tmp_path / "recipe.yaml"
        file.write_text(text)
        return str(file)

    return write


@pytest.fixture
def fails(capsys):
    """Runs a command that must fail; `(status, what it said)`."""

    def run(*arguments: object) -> tuple[int, str]:
        status = main([str(argument) for argument in arguments])
        _, error, said = capsys.readouterr().err.partition("priorvla: error: ")
        assert status and error, "it did not fail"
        return status, said

    return run


def test_help_answers_without_torch_or_transformers():
    code = "import sys, priorvla.cli as c; c.build_parser(); print({'torch', 'transformers', 'numpy'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], cwd="/", capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_module_runs_as_a_program():
    done = subprocess.run(
        [sys.executable, "-m", "priorvla.cli", "--help"], cwd="/", capture_output=True, text=True, check=True
    )
    assert all(f"\n    {command} " in done.stdout for command in OPTIONS)


@pytest.mark.parametrize("command", OPTIONS)
def test_every_commands_help_explains_every_option(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    lines = text[
        text.index("positional arguments" if not OPTIONS[command][0].startswith("--") else "options:") :
    ].splitlines()
    for option in OPTIONS[command]:
        at = next(
            (index for index, line in enumerate(lines) if line.startswith((f"  {option} ", f"  {option}\n"))), None
        )
        assert at is not None, f"{option} is not in the help"
        explained = len(lines[at].split("  ")) > 2 or lines[at + 1].startswith(" " * 20)
        assert explained, f"{option} is not explained"
    shown = {line.split()[0].rstrip(",") for line in lines if line.startswith("  -")}
    assert shown - {"-h"} <= set(OPTIONS[command]), "an option is not in this test's list"


def test_a_command_must_be_named_and_known(capsys):
    assert main([]) == 2
    assert "COMMAND" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        main(["dance"])
    assert stopped.value.code == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("train --dataset a/b --output-dir x --control", "--prior"),
        ("train --dataset a/b --output-dir x --prior /no/where", "--prior /no/where does not exist"),
        ("pretrain --dataset /no/where --output-dir x", "--dataset /no/where does not exist"),
        ("pretrain --dataset a/b:heavy --output-dir x", "'heavy' after ':' is not a number"),
        ("evaluate /no/where --tasks reach --output-dir x", "checkpoint /no/where does not exist"),
        ("evaluate a/b --tasks reach --output-dir x --trials 0", "--trials 0 must be at least 1"),
        ("info /no/where", "/no/where does not exist"),
    ],
)
def test_a_wrong_argument_is_found_without_loading_any_deep_learning(arguments, message, tmp_path):
    code = (
        "import sys; from priorvla.cli import main; status = main(sys.argv[1:]); "
        "print(status, sorted({'torch', 'transformers', 'diffusers', 'accelerate', 'matplotlib'} & {*sys.modules}))"
    )
    command = [sys.executable, "-c", code, *arguments.split()]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "2 []"
    assert message in done.stderr


ON_ARMS = ["evaluate", "a/x", "--env", "libero", "--suite", "libero_goal", "--output-dir", "x", "--arm", "iiwa"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["collect", "--output-dir", "x"], "--tasks is missing"),
        (["collect", "--tasks", "reach"], "--output-dir is missing"),
        (["pretrain", "--output-dir", "x"], "--dataset is missing"),
        (["train", "--dataset", "x"], "--output-dir is missing"),
        (["evaluate", "x", "--output-dir", "x"], "--tasks is missing"),
        (["evaluate", "x", "--output-dir", "x", "--tasks", "drawer-opne"], "'drawer-opne' is unknown, did you mean"),
        (["evaluate", "x", "--output-dir", "x", "--tasks", "reach", "reach"], "'reach' is named twice"),
        (
            ["evaluate", "a/x", "--output-dir", "x", "--tasks", "reach", "--films", "-1"],
            "--films -1 must be at least 0",
        ),
        (
            ["evaluate", "a/x", "--output-dir", "x", "--tasks", "reach", "--action-limits", "nowhere.yaml"],
            "nowhere.yaml does not exist: name a YAML or JSON file with limits of actions",
        ),
        (["evaluate", "a/x", "--open-loop", "a/y", "--output-dir", "x", "--compile"], "--compile means nothing with"),
        (
            ["evaluate", "a/x", "--open-loop", "a/y", "--output-dir", "x", "--embodiment", "left", "right"],
            "--embodiment left right: a dataset is of one robot, name one",
        ),
        (
            [*ON_ARMS, "ur5e", "--embodiment", "mine"],
            "--embodiment names 1 (mine) for 2 of --arm: name one for each, in their order",
        ),
        (
            [*ON_ARMS, "iiwa"],
            "--arm: 'iiwa' is named twice",
        ),
        (["collect", "--output-dir", "x", "--tasks", "reach", "--env", "matrix"], "no simulator 'matrix'"),
        (["train", "--dataset", "a/x", "--output-dir", "x", "--control"], "name that prior with --prior"),
        (["pretrain", "--dataset", "x", "--output-dir", "x", "--max-steps", "0"], "--max-steps 0 must be at least 1"),
        (["pretrain", "--dataset", "x", "--output-dir", "x", "--holdout", "1"], "--holdout 1.0 must be in [0, 1)"),
        (["pretrain", "--dataset", "a/x", "--output-dir", "nowhere", "--resume"], "checkpoint-* to continue from"),
        (["pretrain", "--dataset", "/no/where", "--output-dir", "x"], "/no/where does not exist"),
        (["info", "/no/where"], "/no/where does not exist: pass a checkpoint's folder or its Hub id"),
        (["pretrain", "--config", "nowhere"], "nowhere is neither a file nor a shipped recipe (action_prior_"),
        (["info", "a", "b", "--output-dir", "x"], "name --dataset, or leave it out"),
        (["inspect", "/no/where"], "/no/where does not exist: give a dataset's folder or file"),
        (["inspect", ".", "--chunk-size", "0"], "--chunk-size 0 must be at least 1"),
        (["pretrain", "--dataset", "a/x", "--output-dir", "x", "--train-all"], "name it with --prior"),
        (["pretrain", "--dataset", "a/x", "--output-dir", "x", "--like", "b"], "--like says how to go on from a prior"),
        (["pretrain", "--dataset", "a/x:2", "--output-dir", "x", "--stream"], "without weights: leave ':WEIGHT' out"),
    ],
)
def test_wrong_arguments_are_named_and_end_with_status_2(arguments, message, fails, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, said = fails(*arguments)
    assert status == 2 and message in said
    assert list(tmp_path.iterdir()) == []


def test_an_output_folder_that_holds_something_is_refused(dataset, fails):
    status, said = fails("pretrain", "--dataset", dataset, "--output-dir", dataset)
    assert status == 2 and "is not empty: choose another, or continue it with --resume" in said


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max-step: 3", "'max_step' is unknown, did you mean 'max_steps'?"),
        ("max-steps: many", "max-steps must be a whole number, got 'many'"),
        ("max-steps: 2.5", "max-steps must be a whole number, got 2.5"),
        ("max-steps:", "max-steps is empty"),
        ("holdout: [0.1]", "holdout must be a number, got [0.1]"),
        ("resume: 1", "resume must be true or false, got 1"),
        ("device: abacus", "device='abacus', use one of auto, cpu, cuda"),
        ("embodiments: {arm: 3}", "embodiments.arm must be a mapping of an embodiment's fields, or a name, got 3"),
        ("embodiments: {arm: {rate: 3}}", "embodiment 'arm': unknown key 'rate'"),
        ("model: small", "model must be a mapping, got str"),
        ("model: {latent_nois: 1}", "model: 'latent_nois' is unknown, did you mean 'latent_noise'?"),
        ("model: {latent_noise: loud}", "model.latent_noise must be a number, got 'loud'"),
        ("model: {expert: {hiden_size: 8}}", "model.expert: 'hiden_size' is unknown, did you mean 'hidden_size'?"),
        ("model: {expert: 8}", "model.expert must be a mapping of its fields, got 8"),
        ("model: {expert: {head_dim: 7}}", "head_dim=7 must be even"),
        ("model: {expert: {hidden_size: 8.5}}", "'hidden_size' expected int, got float"),
        ("model: {expert: {expert_layers: motion}}", "'expert_layers' expected a list"),
        ("training: {learning_rat: 1}", "training: 'learning_rat' is unknown, did you mean 'learning_rate'?"),
        ("training: {learning_rate: fast}", "training.learning_rate must be a number, got 'fast'"),
        ("training: {max_steps: 3}", "training.max_steps is an option of the command itself"),
        ("training: {ema_decay: 1.0}", "ema_decay=1.0 must be in [0, 1)"),
        ("- max-steps", "a recipe is a mapping of options, found list"),
        ("max-steps: {", "not valid YAML"),
    ],
)
def test_a_wrong_recipe_is_refused_by_key_and_value(text, message, recipe, dataset, fails, tmp_path):
    status, said = fails("pretrain", "--config", recipe(text), "--dataset", dataset, "--output-dir", tmp_path / "run")
    assert status == 2 and message in said
    assert not (tmp_path / "run").exists()


def test_the_command_line_wins_over_its_config_file(recipe, dataset, fails, tmp_path):
    file = recipe(f"max-steps: 0\ndataset: {dataset}\noutput-dir: {tmp_path / 'run'}\n")
    assert "--max-steps 0 must" in fails("pretrain", "--config", file)[1]
    assert "--max-steps -1 must" in fails("pretrain", "--config", file, "--max-steps", "-1")[1]
    assert "--max-steps -2 must" in fails("pretrain", "--max-steps", "-2", "--config", file)[1]


def test_an_option_of_two_names_has_both_in_a_config_file(recipe, fails, tmp_path):
    command = ("collect", "--env", "libero", "--output-dir", tmp_path / "data", "--config")
    status, said = fails(*command, recipe("suite: libero_goal/turn_on_the_stove\narm: ur5e"))
    assert status == 2 and "no scripted expert for 'libero_goal/turn_on_the_stove'" in said
    status, said = fails(*command, recipe("suite: [libero_object]\ntasks: [libero_object]"))
    assert status == 2 and "tasks is said twice, under two of its names" in said


def test_numbers_in_scientific_notation_are_numbers_in_a_recipe(recipe, tmp_path):
    from priorvla.configuration.recipe import load_recipe

    content = load_recipe(recipe("a: 1e-3\nb: -2E+4\nc: 1.5e3\nd: 1e-3x\ne: 12\nf: e3"))
    assert content == {"a": 1e-3, "b": -2e4, "c": 1500.0, "d": "1e-3x", "e": 12, "f": "e3"}


@pytest.mark.parametrize("name", list_recipes())
def test_a_shipped_recipe_is_found_by_its_name_and_every_key_of_it_is_known(name, fails, tmp_path):
    command = "pretrain" if "prior" in name else "finetune" if "finetune" in name else "train"
    base = ("--base", "owner/base") if command == "finetune" else ()
    status, said = fails(command, "--config", name, "--dataset", tmp_path, "--output-dir", tmp_path / "run", *base)
    # the fields are checked before data is read, or a base is looked for
    assert status and ("owner/base" if base else "info.json") in said and "unknown" not in said


def test_work_that_fails_ends_with_status_1_and_ctrl_c_with_130(fails, capsys, tmp_path, monkeypatch):
    pytest.importorskip("metaworld")
    command = ["collect", "--tasks", "drawer-open", "--episodes", "1", "--no-images", "--workers", "1"]
    command += ["--output-dir", str(tmp_path / "data")]
    status, said = fails(*command, "--max-episode-steps", "3")
    assert status == 1 and "the expert failed 10 starts in a row" in said

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("priorvla.deployment.demonstrations.record_demonstration", interrupt)
    assert main(command) == 130
    said = capsys.readouterr().err
    assert "stopped. No dataset was written" in said and "--resume" not in said
    assert list(tmp_path.iterdir()) == []


def test_a_collection_says_how_many_starts_the_expert_solved_task_by_task(capsys, tmp_path):
    pytest.importorskip("metaworld")
    command = ["collect", "--tasks", "handle-press", "coffee-button", "--episodes", "1", "--no-images"]
    assert main([*command, "--workers", "1", "--output-dir", str(tmp_path / "data")]) == 0
    said = capsys.readouterr().out
    for task in ("handle-press", "coffee-button"):
        assert f"{task}: the expert solved 100% of its starts" in said


def test_a_stopped_training_says_how_it_goes_on(dataset, capsys, tmp_path, monkeypatch):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("priorvla.training.pretrain.set_seed", interrupt)
    command = ["pretrain", "--dataset", str(dataset), "--output-dir", str(tmp_path / "run"), "--device", "cpu"]
    assert main(command) == 130
    said = capsys.readouterr().err
    assert "the same command starts again" in said and "--resume" not in said
    (tmp_path / "run" / "checkpoint-5").mkdir(parents=True)
    (tmp_path / "run" / "checkpoint-5" / "trainer_state.json").write_text("{}")
    assert main([*command, "--resume"]) == 130
    assert "goes on with the same command and --resume" in capsys.readouterr().err


def test_a_traceback_is_shown_where_it_is_asked_for(monkeypatch):
    monkeypatch.setenv("PRIORVLA_TRACEBACK", "1")
    with pytest.raises(FileNotFoundError):
        main(["info", "/no/where"])


def test_info_says_what_an_action_prior_is(bodies, tiny_fields, tmp_path, capsys):
    torch.manual_seed(0)
    expert = {**tiny_fields["expert"], **expert_dims(bodies)}
    model = ActionPriorModel(ActionPriorConfig(expert=expert, encoder=tiny_fields["encoder"]))
    model.save_pretrained(tmp_path)
    PriorVLAProcessor(embodiments=bodies, chunk_size=6).save_pretrained(tmp_path)
    assert main(["info", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    parameters = sum(parameter.numel() for parameter in model.parameters())
    for part in ("action prior (rung 1", "6 actions", "2 layers, 16 wide, latent 8", f"{parameters / 1e6:.2f} M"):
        assert part in said, part
    assert "small: 4 action dims, 3 state dims, 10 Hz, front" in said and "large: 7 action dims" in said
    assert "backbone" not in said


def test_info_says_what_a_policy_is(save_policy, bodies, tmp_path, capsys):
    assert main(["info", str(save_policy(tmp_path, bodies, use_history=True, history_size=5))]) == 0
    said = capsys.readouterr().out
    for part in ("policy (rung 3)", "latent", "tiny-backbone (hub, sha256", "history                     5"):
        assert part in said, part


def test_info_on_something_else_names_the_file(tmp_path, fails):
    assert "config.json is missing" in fails("info", tmp_path)[1]
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    status, said = fails("info", tmp_path)
    assert status == 2 and "model_type 'bert' is not one of priorvla_action_prior, priorvla" in said
