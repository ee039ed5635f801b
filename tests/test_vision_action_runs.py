"""The commands of rungs 2 and 3: sight with and without an action prior, language on top, and what is refused."""

from __future__ import annotations

import json
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

import priorvla
from priorvla.cli import main
from priorvla.configuration.embodiment import load_embodiments
from priorvla.deployment.policy import PriorVLAPolicy
from priorvla.hub_cards.publishing import load_card
from priorvla.training import listening_after_training
from priorvla.training.data.lerobot_writer import LeRobotDatasetWriter
from priorvla.training.run_options import VisionPriorOptions
from priorvla.training.train import pretrain_vision_action_prior

pytestmark = pytest.mark.usefixtures("imports_are_not_garbage")

SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
MOTION = {
    "expert": {**SMALL, "num_key_value_heads": 1, "head_dim": 8, "chunk_size": 4, "expert_layers": ["motion"]},
    "encoder": {**SMALL, "head_dim": 8, "num_hidden_layers": 1},
}
SIGHT = {"expert": MOTION["expert"]}
TRAINING = {"per_device_train_batch_size": 8, "disable_tqdm": True}
KINDS = {  # checkpoint -> what `info` calls it, and the title of its card
    "prior": ("action prior (rung 1", "# Action prior for small"),
    "sight": ("vision-action prior (rung 2", "# Vision-action prior for small"),
    "sight_control": ("vision-action prior (rung 2", "# Vision-action prior for small"),
    "policy": ("policy (rung 3)", "# Vision-language-action"),
    "policy_control": ("policy (rung 3)", "# Vision-language-action"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def demonstrations(folder, bodies, write_demonstrations) -> Path:
    """Four episodes of two tasks."""
    return write_demonstrations(folder / "demonstrations", bodies[0], [6, 5, 5, 4])


@pytest.fixture(scope="module")
def command(folder, demonstrations, tiny_backbone):
    """`(name, *arguments, model, training, **recipe)`: the exit status of a training command, run in `folder / name`.

    A single step has a learning rate of 0: what is saved is then what the run began with.
    """

    def run(name, *arguments, model=None, training=None, dataset=demonstrations, **recipe):
        recipe = {"max-steps": 1, "holdout": 0.25, "device": "cpu", **recipe}
        file = folder / f"{name}.yaml"
        file.write_text(yaml.safe_dump({**recipe, "model": model or {}, "training": {**TRAINING, **(training or {})}}))
        arguments = [*arguments, "--config", file, "--dataset", dataset, "--output-dir", folder / name]
        if "train" in arguments or "vision-action" in arguments:
            arguments += ["--cache-dir", folder / "features"]
            if "--backbone" not in arguments:
                arguments += ["--backbone", tiny_backbone]
        return main([str(argument) for argument in arguments])

    return run


@pytest.fixture(scope="module")
def ladder(folder, command) -> Path:
    """Folder with a checkpoint of every rung on the dual encoder: `KINDS`."""
    sight = ("pretrain", "--kind", "vision-action", "--prior", folder / "prior", "--fusion", "joint")
    policy = ("train", "--prior", folder / "sight", "--listening", "2")
    assert command("prior", "pretrain", model=MOTION) == 0
    assert command("sight", *sight, training={"learning_rate": 1e-2}, **{"max-steps": 3}) == 0
    assert command("sight_control", *sight, "--control") == 0
    assert command("policy", *policy) == 0
    assert command("policy_control", *policy, "--control") == 0
    return folder


@pytest.fixture
def fails(command, capsys, folder):
    """`(*arguments, **recipe)`: what a command says that must be refused as wrong arguments."""

    def run(*arguments, **recipe):
        capsys.readouterr()
        status = command("refused", *arguments, **recipe)
        _, error, said = capsys.readouterr().err.partition("priorvla: error: ")
        assert status == 2 and error, "it was not refused"
        assert not (folder / "refused").exists()
        return said

    return run


@pytest.fixture(scope="module")
def observations():
    """Of the small body, with two instructions."""
    random = np.random.default_rng(0)
    return [
        {
            "state": random.normal(size=3).astype(np.float32),
            "images": {"front": random.integers(0, 256, (28, 28, 3), dtype=np.uint8)},
            "instruction": instruction,
        }
        for instruction in ("open the drawer", "press the red button now")
    ]


def act(checkpoint: Path, backbone: Path, observations: list[dict]) -> np.ndarray:
    """A chunk for each observation, all from the same noise."""
    policy = PriorVLAPolicy.from_pretrained(checkpoint, backbone=backbone)
    chunks = []
    for observation in observations:
        policy.reset()
        chunks.append(policy.predict_chunk(observation))
    return np.stack(chunks)


def config_of(run: Path) -> dict:
    return json.loads((run / "config.json").read_text())


def weights_in(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model.safetensors")


# --- rung 2 -----------------------------------------------------------------------------------------------------------


def test_every_checkpoint_says_what_it_is(ladder, capsys):
    for name, (kind, title) in KINDS.items():
        assert main(["info", str(ladder / name)]) == 0
        assert kind in capsys.readouterr().out, name
        assert title in load_card(ladder / name).text, name
        names = {file.name for file in (ladder / name).iterdir()}
        assert {"config.json", "model.safetensors", "embodiments.json", "README.md", "metrics.json", "log.csv"} <= names
    for name in ("sight", "policy"):
        below = {"sight": "prior", "policy": "sight"}[name]
        assert load_card(ladder / name).data.base_model == below or below in load_card(ladder / name).text
        assert (
            str(ladder) not in (ladder / name / "README.md").read_text() + (ladder / name / "config.json").read_text()
        )


def test_sight_over_an_action_prior_has_its_expert_and_statistics_and_its_control_their_shapes(ladder):
    prior, sight, control = (config_of(ladder / name) for name in ("prior", "sight", "sight_control"))
    assert sight == control and sight["language"] is False and sight["fusion"] == "joint"
    assert sight["expert"]["expert_layers"] == ["vision"] and sight["backbone_training"] == "frozen"
    assert load_embodiments(ladder / "sight") == load_embodiments(ladder / "prior")
    weights = {name: weights_in(ladder / name) for name in ("prior", "sight", "sight_control")}
    name = "expert.layers.0.self_attn.q_proj.weight"
    distance = {arm: (weights[arm][name] - weights["prior"][name]).norm() for arm in ("sight", "sight_control")}
    assert distance["sight"] < 0.3 * distance["sight_control"]
    assert {key: value.shape for key, value in weights["sight"].items()} == {
        key: value.shape for key, value in weights["sight_control"].items()
    }
    header = (ladder / "sight" / "log.csv").read_text().splitlines()[0]
    assert "gate_memory" in header and "loss_align" not in header
    assert json.loads((ladder / "sight" / "metrics.json").read_text()).keys() == {"loss", "loss_pred"}
    assert prior["expert"]["hidden_size"] == sight["expert"]["hidden_size"] == 16


def test_without_a_prior_the_host_is_paper_bs(command, folder, tiny_backbone, observations):
    assert command("alone", "pretrain", "--kind", "vision-action", model=SIGHT) == 0
    assert config_of(folder / "alone")["fusion"] == "gated"
    chunks = act(folder / "alone", tiny_backbone, [{**observations[0], "instruction": text} for text in ("open", "")])
    assert chunks.shape == (2, 4, 4) and np.array_equal(*chunks)


def test_a_share_of_the_episodes_is_trained_on_and_the_rest_kept_for_rung_3(ladder, demonstrations, tiny_backbone):
    trainer = pretrain_vision_action_prior(
        VisionPriorOptions(
            [str(demonstrations)],
            ladder / "share",
            1,
            device="cpu",
            holdout=0.25,
            model=SIGHT,
            training=TRAINING,
            backbone=str(tiny_backbone),
            cache_dir=ladder / "features",
            fusion="cross",
            data_share=0.34,
        )
    )
    lengths = {4, 5, 6}  # one of the three episodes that are not held out
    assert len(trainer.train_dataset) in lengths and len(trainer.eval_dataset) in lengths


def test_a_stopped_rung_2_goes_on_with_resume(ladder, command):
    settings = {"model": SIGHT, "training": {"save_steps": 1}, "max-steps": 2}
    arguments = ("pretrain", "--kind", "vision-action", "--fusion", "cross")
    assert command("whole", *arguments, **settings) == 0
    (ladder / "stopped").mkdir()
    shutil.copytree(ladder / "whole" / "checkpoint-1", ladder / "stopped" / "checkpoint-1")
    assert command("stopped", *arguments, "--resume", **settings) == 0
    whole, stopped = weights_in(ladder / "whole"), weights_in(ladder / "stopped")
    assert whole.keys() == stopped.keys() and all(torch.equal(stopped[name], value) for name, value in whole.items())


# --- rung 3 -----------------------------------------------------------------------------------------------------------


def test_a_policy_begins_as_its_vision_action_prior_and_its_control_does_not(ladder, tiny_backbone, observations):
    chunks = {name: act(ladder / name, tiny_backbone, observations) for name in ("sight", "policy", "policy_control")}
    np.testing.assert_allclose(chunks["policy"], chunks["sight"], atol=1e-6)
    assert not np.allclose(chunks["policy_control"], chunks["sight"], atol=1e-2)
    assert config_of(ladder / "policy") == config_of(ladder / "policy_control")
    assert config_of(ladder / "policy")["expert"]["expert_layers"] == ["vision", "vision_language"]
    assert load_embodiments(ladder / "policy") == load_embodiments(ladder / "sight")


@pytest.mark.parametrize(
    ("insertion", "layers"), [("before", ["vision_language", "vision"]), ("token", ["vision_language"])]
)
def test_layers_that_read_stand_where_they_were_asked_for(
    ladder, command, tiny_backbone, observations, insertion, layers
):
    name = f"policy_{insertion}"
    assert command(name, "train", "--prior", ladder / "sight", "--insertion", insertion, "--listening", "0") == 0
    assert config_of(ladder / name)["expert"]["expert_layers"] == layers
    same = np.allclose(
        act(ladder / name, tiny_backbone, observations), act(ladder / "sight", tiny_backbone, observations), atol=1e-6
    )
    assert same is (insertion == "before")


def test_a_policy_learns_to_hear_and_it_is_told_whether_it_does(ladder, command, tiny_backbone, observations, capsys):
    settings = {"training": {"learning_rate": 3e-2, "ema_decay": 0.0}, "max-steps": 6}
    assert command("hearing", "train", "--prior", ladder / "sight", "--listening", "3", **settings) == 0
    told = capsys.readouterr().err
    assert "Does it listen?" in told
    metrics = json.loads((ladder / "hearing" / "metrics.json").read_text())
    assert {"language_sensitivity/swap", "language_sensitivity/paraphrase", "language_sensitivity/empty"} <= set(
        metrics
    )
    assert metrics["loss"] == pytest.approx(metrics["loss_pred"])
    assert "Does it listen?" in load_card(ladder / "hearing").text
    said = [{**observations[0], "instruction": text} for text in ("open the drawer", "press the red button now")]
    assert not np.array_equal(*act(ladder / "hearing", tiny_backbone, said))
    assert np.array_equal(*act(ladder / "sight", tiny_backbone, said))
    header = (ladder / "hearing" / "log.csv").read_text().splitlines()[0]
    assert "gate_memory" in header and "distillation_weight" not in header
    program, *next_command = shlex.split(told.splitlines()[-1].partition("Next: ")[2])
    assert program == "priorvla" and main(next_command) == 0
    assert (ladder / "hearing-replay" / "report.html").is_file()


def test_an_action_prior_in_a_seeing_host_is_one_step_from_motion_to_language(ladder, command):
    arguments = ("train", "--prior", ladder / "prior", "--fusion", "gated", "--listening", "0")
    assert command("two_rungs", *arguments, model={"use_latent": True}) == 0
    assert config_of(ladder / "two_rungs")["expert"]["expert_layers"] == ["vision_language"]
    assert "loss_align" in (ladder / "two_rungs" / "log.csv").read_text().splitlines()[0]


# --- a generative backbone --------------------------------------------------------------------------------------------


def test_a_generative_backbone_climbs_to_a_policy_with_adapters(ladder, command, tiny_smolvlm, observations):
    backbone = ("--backbone", tiny_smolvlm)
    assert command("seeing_vlm", "pretrain", "--kind", "vision-action", *backbone, model=SIGHT) == 0
    arguments = ("train", "--prior", ladder / "seeing_vlm", *backbone, "--listening", "2")
    settings = {"model": {"backbone_training": "lora", "lora": {"r": 2}}, "training": {"backbone_learning_rate": 1e-2}}
    assert command("tuned_start", *arguments, **settings) == 0
    chunks = {name: act(ladder / name, tiny_smolvlm, observations) for name in ("seeing_vlm", "tuned_start")}
    np.testing.assert_allclose(chunks["tuned_start"], chunks["seeing_vlm"], atol=1e-6)
    assert command("tuned", *arguments, **settings, **{"max-steps": 3}) == 0
    assert not np.allclose(act(ladder / "tuned", tiny_smolvlm, observations), chunks["tuned_start"], atol=1e-6)
    adapters = {name for name in weights_in(ladder / "tuned") if name.startswith("trained_backbone.")}
    assert adapters and all(".lora_" in name for name in adapters)
    card = load_card(ladder / "tuned").text
    assert "backbone learning rate" in card and "LoRA" in card


def test_a_query_token_in_the_backbone_is_trained_from_an_action_prior(ladder, command, tiny_smolvlm, observations):
    arguments = ("train", "--prior", ladder / "prior", "--backbone", tiny_smolvlm, "--listening", "2")
    model = {"tail": "backbone", "use_history": True, "history_size": 2}
    assert command("query", *arguments, model=model, **{"max-steps": 2}) == 0
    assert "loss_align" in (ladder / "query" / "log.csv").read_text().splitlines()[0]
    policy = PriorVLAPolicy.from_pretrained(ladder / "query", backbone=tiny_smolvlm, execute_steps=1)
    assert all(np.isfinite(policy.select_action(observation)).all() for observation in 2 * observations)


# --- refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        ("action", "--control"),
        ("action", "--fusion cross"),
        ("action", "--backbone owner/name"),
        ("action", "--backbone-dtype bfloat16"),
        ("action", "--backbone-quantization int8"),
        ("action", "--data-share 0.5"),
        ("action", "--frame-stride 2"),
        ("action", "--cache-dir features"),
        ("action", "--max-cache-gb 3"),
        ("vision-action", "--train-all"),
        ("vision-action", "--like small"),
        ("vision-action", "--stream"),
    ],
)
def test_an_option_of_the_other_kind_is_refused_by_its_name(fails, kind, arguments):
    option, *value = arguments.split()
    assert f"{option} is not for --kind {kind}: leave it out" in fails("pretrain", "--kind", kind, option, *value)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"embodiments": {"small": {"name": "mine"}}}, "--embodiments is not for --kind vision-action"),
        ({"model": {"language": True}}, "model.language cannot be set: pretrain --kind vision-action and train differ"),
        ({"model": {"fusion": "cross"}}, "model.fusion cannot be set: give --fusion"),
        ({"model": {**SIGHT, "backbone_training": "lora"}}, "leave it 'frozen' on this rung"),
        ({"fusion": "latent"}, "--fusion latent: no layer of the expert sees there: use cross, joint or gated"),
        ({"data-share": 0.0}, "--data-share 0.0 must be above 0 and at most 1"),
        ({"control": True}, "name that prior with --prior"),
    ],
)
def test_a_recipe_that_cannot_be_of_rung_2_is_refused(fails, recipe, message):
    assert message in fails("pretrain", "--kind", "vision-action", **recipe)


@pytest.mark.parametrize(
    ("arguments", "prior", "message"),
    [
        (
            "pretrain --kind vision-action",
            "policy",
            "is a policy, not a prior: name an action prior or a vision-action",
        ),
        ("pretrain --kind vision-action", "sight", "is a vision-action prior already: go on with priorvla train"),
        ("pretrain", "sight", "is a vision-action prior: motion alone goes on from an action prior"),
        ("pretrain", "policy", "is a policy: motion alone goes on from an action prior"),
        ("train", "policy", "is a policy, not a prior: name an action prior or a vision-action prior"),
        ("train --fusion gated", "sight", "is 'joint', and so is that of what comes of it: leave --fusion out"),
        (
            "train --insertion before",
            "prior",
            "--insertion before says where new layers stand beside those",
        ),
        ("train --insertion token", None, "name one with --prior, or leave it out"),
        ("train --listening 1", "sight", "--listening 1 must be 0 or at least 2"),
    ],
)
def test_a_start_that_cannot_be_is_refused_with_a_sentence(ladder, fails, arguments, prior, message):
    start = () if prior is None else ("--prior", ladder / prior)
    assert message in fails(*arguments.split(), *start)


def test_another_backbone_than_the_one_it_has_learned_to_see_with_is_refused(ladder, fails, tiny_smolvlm):
    said = fails("train", "--prior", ladder / "sight", "--backbone", tiny_smolvlm)
    assert "has learned to see with 'tiny_backbone" in said and "whose weights these are not: use that one" in said


def test_features_in_another_dtype_than_the_one_it_has_learned_to_see_with_are_refused(ladder, fails):
    said = fails("train", "--prior", ladder / "sight", "--backbone-dtype", "bfloat16")
    assert "has learned to see with what its backbone has itself: leave it out" in said


def test_how_images_are_shown_is_kept_from_rung_to_rung_and_nothing_else_is_accepted(folder, command, fails):
    shown = ("--image-size", "42", "--image-tokens", "9")
    assert command("close_sight", "pretrain", "--kind", "vision-action", *shown, model=SIGHT) == 0
    assert command("close_policy", "train", "--prior", folder / "close_sight", "--listening", "0") == 0
    for run in ("close_sight", "close_policy"):
        reference = config_of(folder / run)["backbone"]
        assert (reference["image_size"], reference["tokens_per_image"]) == ([42, 42], 9)
        processor = priorvla.PriorVLAProcessor.from_pretrained(folder / run)
        assert processor.image_processor.size == {"height": 42, "width": 42}
    said = fails("train", "--prior", folder / "close_sight", "--image-tokens", "4")
    assert "--image-tokens 4: the vision-action prior" in said and "has learned to see with 9: leave it out" in said
    assert "--image-size 0 must be at least 1" in fails("train", "--image-size", "0")


def test_only_the_first_layers_of_a_language_model_are_loaded_where_only_they_are_read(folder, command, tiny_smolvlm):
    arguments = ("train", "--backbone", tiny_smolvlm, "--fusion", "cross", "--prompt", "raw", "--listening", "0")
    assert command("shallow", *arguments, model={**SIGHT, "backbone_layers": 2}) == 0
    model = priorvla.PriorVLAModel.from_pretrained(folder / "shallow", backbone=tiny_smolvlm)
    assert model.config.backbone["prompt"] == "raw" and model.config.taps == (2,)
    assert len(model.backbone.language_model.layers) == 2


def test_a_resumed_run_reads_the_same_layers_of_the_same_backbone(folder, command, capsys):
    arguments = ("train", "--fusion", "latent", "--listening", "0")
    shape = {**SIGHT, "fusion_transformer": {"hidden_size": 16, "num_hidden_layers": 1}, "backbone_layers": 2}
    assert command("resumed", *arguments, model=shape, training={"save_steps": 1}) == 0
    capsys.readouterr()
    more = {"max-steps": 2, "training": {"save_steps": 1}}
    assert command("resumed", *arguments, "--resume", model={**shape, "backbone_layers": 1}, **more) == 2
    assert "began with backbone_layers=2, now it would be 1" in capsys.readouterr().err
    assert command("resumed", *arguments, "--resume", model={**shape, "prefix_probability": 0.1}, **more) == 2
    assert "began with prefix_probability=" in capsys.readouterr().err
    file = folder / "resumed" / "checkpoint-1" / "config.json"
    config = json.loads(file.read_text())
    for key in ("image_size", "tokens_per_image", "prompt", "around_images"):  # as an older release wrote it
        del config["backbone"][key]
    file.write_text(json.dumps(config))
    assert command("resumed", *arguments, "--resume", model=shape, **more) == 0


@pytest.mark.parametrize(("taps", "used"), [(None, 1), ([1], 1), ([2], 2)])
def test_a_policy_uses_two_thirds_of_a_vision_encoder_or_what_its_taps_ask_for(folder, command, taps, used):
    expert = {**MOTION["expert"], **({"expert_layers": ["vision"], "tap_layers": taps} if taps else {})}
    name = f"taps-{taps}"
    assert command(name, "pretrain", "--kind", "vision-action", "--fusion", "cross", model={"expert": expert}) == 0
    config = config_of(folder / name)
    assert config["backbone_layers"] == used and config["expert"]["tap_layers"] == [used]
    assert config["normalize_features"] and len(config["image_grid"]) == 2


def test_a_run_that_an_older_release_began_goes_on_reading_its_backbone_as_it_did(folder, command):
    arguments = ("train", "--fusion", "joint", "--listening", "0")
    shape = {"expert": {**MOTION["expert"]}, "backbone_layers": 2, "image_grid": None, "normalize_features": False}
    assert command("older", *arguments, model=shape, training={"save_steps": 1}) == 0
    file = folder / "older" / "checkpoint-1" / "config.json"
    config = json.loads(file.read_text())
    assert config["image_grid"] is None
    del config["image_grid"], config["normalize_features"]
    file.write_text(json.dumps(config))
    more = {"max-steps": 2, "training": {"save_steps": 1}}
    assert command("older", *arguments, "--resume", model={"expert": MOTION["expert"]}, **more) == 0
    after = config_of(folder / "older")
    assert (after["backbone_layers"], after["image_grid"], after["normalize_features"]) == (2, None, False)


def test_a_recipe_cannot_say_that_the_backbone_was_another(folder, command):
    named = {**SIGHT, "backbone": {"source": "hub", "name": "somebody/else"}}
    assert command("named", "train", "--fusion", "cross", "--listening", "0", model=named) == 0
    assert config_of(folder / "named")["backbone"]["name"] != "somebody/else"


# --- what later runs keep ---------------------------------------------------------------------------------------------


def test_cameras_stay_in_the_order_in_which_a_prior_has_learned_to_see_with_them(folder, command, bodies):
    """A camera's embedding is found by its place: another order would show the model one camera as the other."""
    random = np.random.default_rng(0)
    for name, cameras in (("two", ["front", "wrist"]), ("swapped", ["wrist", "front"]), ("one", ["front"])):
        body = replace(bodies[0], cameras=cameras)
        with LeRobotDatasetWriter(folder / name, body, dict.fromkeys(cameras, (28, 28))) as writer:
            for length in (5, 4):
                pictures = {camera: random.integers(0, 256, (length, 28, 28, 3), dtype=np.uint8) for camera in cameras}
                states, actions = (random.normal(size=(length, dims)) for dims in (3, 4))
                writer.add_episode(states, actions, "open the drawer", pictures)

    sight = ("pretrain", "--kind", "vision-action", "--fusion", "cross")
    assert command("sees-two", *sight, dataset=folder / "two", model=SIGHT) == 0
    for dataset, status in (("two", 0), ("swapped", 0), ("one", 2)):
        arguments = ("train", "--prior", folder / "sees-two", "--listening", "0")
        assert command(f"hears-{dataset}", *arguments, dataset=folder / dataset) == status
        if not status:
            assert load_embodiments(folder / f"hears-{dataset}")[0].cameras == ["front", "wrist"]


def test_a_run_is_not_resumed_as_another_model_whose_tensors_have_the_same_names(ladder, command, capsys):
    settings = {"model": {}, "training": {"save_steps": 1}, "max-steps": 2}
    arguments = ("train", "--prior", ladder / "sight", "--listening", "0")
    assert command("turned", *arguments, "--insertion", "before", **settings) == 0
    (ladder / "turned" / "metrics.json").unlink()
    assert command("turned", *arguments, "--insertion", "after", "--resume", **settings) == 2
    said = capsys.readouterr().err
    assert "--resume: the run in" in said and "began with expert_layers=['vision_language', 'vision']" in said


def test_a_measurement_that_fails_loses_no_training(ladder, command, capsys, monkeypatch):
    def fail(*_, **__):
        raise ValueError("the policy gives actions that are not finite")

    monkeypatch.setattr(listening_after_training, "language_sensitivity", fail)
    assert command("unmeasured", "train", "--prior", ladder / "sight") == 0
    assert "whether the policy listens could not be measured: the policy gives" in capsys.readouterr().err
    assert {"model.safetensors", "metrics.json"} <= {file.name for file in (ladder / "unmeasured").iterdir()}


def test_gates_on_a_card_are_those_of_the_weights_beside_it(ladder, command):
    """And not those of the last step: what is saved is their moving average."""
    arguments = ("pretrain", "--kind", "vision-action", "--fusion", "gated")
    settings = {"model": SIGHT, "training": {"learning_rate": 3e-2}, "max-steps": 6}
    assert command("averaged", *arguments, **settings) == 0
    model = priorvla.PriorVLAModel.from_pretrained(ladder / "averaged", backbone=None)
    cells = [cell.strip() for cell in load_card(ladder / "averaged").text.split("|")]
    assert all(f"{value:.4g}" in cells for value in model.gate_values().values())
