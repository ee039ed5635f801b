"""The examples run as they stand in the folder, with small numbers."""

import json
import os
import runpy
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from priorvla import (
    ActionPriorConfig,
    ActionPriorModel,
    Embodiment,
    PriorVLAModel,
    PriorVLAProcessor,
    expert_dims,
    fit_embodiments,
    load_trajectories,
)
from priorvla.configuration.embodiment import load_embodiments
from priorvla.configuration.embodiment_registry import load_embodiment
from priorvla.hub_cards.bundled_code import bundle_code
from priorvla.hub_cards.checkpoints import kind_of
from priorvla.hub_cards.publishing import publish

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs an example as a program and returns what it printed."""

    def start(name: str, *arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return start


def printed_chunk(text: str) -> np.ndarray:
    rows = text[text.index("[[") : text.index("]]")].replace("[", "").split("]")
    return np.array([[float(number) for number in row.split()] for row in rows])


def sawyer() -> Embodiment:
    """The body of Meta-World."""
    from priorvla.deployment.environments.metaworld_env import metaworld_embodiment

    return metaworld_embodiment().with_statistics(np.zeros((2, 4)), np.array([[-1.0] * 4, [1.0] * 4]))


@pytest.mark.parametrize("example", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_an_example_is_short_and_says_how_it_is_run(example, run, capsys):
    text = (EXAMPLES / example).read_text()
    assert len(text.splitlines()) < 60
    assert f"python examples/{example}" in text
    with pytest.raises(SystemExit) as stopped:
        run(example, "--help")
    assert stopped.value.code == 0
    assert f"python examples/{example}" in capsys.readouterr().out


def test_joint_logs_become_a_dataset_a_prior_and_a_chunk_of_actions(run, tmp_path):
    random, files = np.random.default_rng(0), []
    for episode in range(3):
        files.append(tmp_path / f"log{episode}.npz")
        np.savez(files[-1], states=random.normal(size=(20, 5)), actions=random.uniform(3, 4, size=(20, 2)))
    said = run("pretrain_from_joint_logs.py", *files, "--max-steps", 2, "--output-dir", tmp_path / "arm")
    source = load_trajectories(tmp_path / "arm" / "dataset")
    assert [len(trajectory) for trajectory in source.trajectories] == [20, 20, 20]
    assert source.embodiment.control_rate == 50
    np.testing.assert_allclose(source.trajectories[2].actions, np.load(files[2])["actions"], rtol=1e-6)
    saved = {path.name for path in (tmp_path / "arm" / "prior").iterdir()}
    assert {"config.json", "model.safetensors", "embodiments.json", "README.md"} <= saved
    chunk = printed_chunk(said)
    assert chunk.shape == (16, 2) and abs(chunk.mean() - 3.5) < 2  # the logs' units, whatever two steps have taught


def test_without_logs_an_arm_is_made_up(run, tmp_path):
    said = run("pretrain_from_joint_logs.py", "--max-steps", 1, "--output-dir", tmp_path / "arm")
    assert printed_chunk(said).shape == (16, 3)


@pytest.mark.skipif(find_spec("metaworld") is None, reason="needs the extra 'metaworld'")
def test_a_checkpoint_drives_a_robot(run, save_policy, tiny_backbone, tmp_path):
    checkpoint = save_policy(tmp_path, [sawyer()])
    options = ["--backbone", tiny_backbone, "--episodes", 2, "--max-episode-steps", 7]
    lines = run("drive_a_robot.py", checkpoint, *options).splitlines()
    assert lines[0].startswith("metaworld_sawyer: '")
    assert lines[1:] == ["episode 0: no success after 7 steps", "episode 1: no success after 7 steps"]


def test_a_prior_learns_to_see_and_then_to_listen(
    run, write_demonstrations, tiny_fields, tiny_backbone, bodies, tmp_path
):
    data = write_demonstrations(tmp_path / "demonstrations", bodies[0], [6, 5])
    blind = [replace(bodies[0], cameras=[])]
    torch.manual_seed(0)
    expert = {**tiny_fields["expert"], **expert_dims(blind)}
    moving = ActionPriorModel(ActionPriorConfig(**{**tiny_fields, "expert": expert}, num_inference_steps=2))
    moving.save_pretrained(tmp_path / "prior")
    PriorVLAProcessor(embodiments=blind, chunk_size=6).save_pretrained(tmp_path / "prior")
    options = ["--prior", tmp_path / "prior", "--backbone", tiny_backbone, "--max-steps", 2]
    said = run("see_then_listen.py", data, *options, "--output-dir", tmp_path / "arm")
    assert "Does it listen?" in said and "another instruction" in said
    sight, policy = (
        PriorVLAModel.from_pretrained(tmp_path / "arm" / name, backbone=None) for name in ("sight", "policy")
    )
    assert kind_of(sight.config) == "vision-action-prior" and kind_of(policy.config) == "vla"
    assert len(policy.expert.layers) == 2 * len(sight.expert.layers) == 2 * len(moving.expert.layers)
    assert load_embodiments(tmp_path / "arm" / "policy")[0].cameras == ["front"]


@pytest.fixture
def prior(tiny_priors, tmp_path) -> Path:
    """A prior of two bodies, the second of which learns its actions relative to the state, with metrics and a card."""
    arm, hand = tiny_priors.body("arm", 3), tiny_priors.body("hand", 2, rate=20.0).learning("relative")
    sources = [tiny_priors.motion(robot, "waves", 3, seed) for seed, robot in enumerate((arm, hand))]
    bodies = fit_embodiments(sources, tiny_priors.CHUNK)
    expert = {**tiny_priors.WIDTHS, **expert_dims(bodies), "chunk_size": tiny_priors.CHUNK, "hidden_size": 32}
    torch.manual_seed(0)
    model = ActionPriorModel(
        ActionPriorConfig(expert={**expert, "num_key_value_heads": 2, "expert_layers": ["motion"]})
    )
    processor = PriorVLAProcessor(embodiments=bodies, chunk_size=tiny_priors.CHUNK)
    facts = {"license": "mit", "metrics": {"velocity_loss/arm": 0.25}}
    return publish(model, processor, tmp_path / "prior", **facts)


def test_a_prior_says_what_it_knows_and_makes_up_motion(run, prior, tmp_path):
    plot, saved = tmp_path / "chunks.png", tmp_path / "chunks.npz"
    options = ["--embodiment", "hand", "--samples", 3, "--plot", plot, "--save", saved]
    said = run("sample_a_prior.py", prior, *options)
    assert "arm: j0, j1, j2; 10 Hz" in said and "hand: j0, j1; 20 Hz" in said
    assert "3 chunks of hand, 0.4 s each" in said
    chunks = np.load(saved)
    assert chunks["chunks"].shape == (3, 8, 2) and not np.allclose(chunks["chunks"][0], chunks["chunks"][1])
    assert chunks["control_rate"] == 20
    np.testing.assert_allclose(printed_chunk(said), chunks["chunks"][0], atol=6e-4)
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert printed_chunk(run("sample_a_prior.py", prior)).shape == (8, 3)


def test_a_policy_is_no_prior_to_sample(run, save_policy, bodies, tmp_path, capsys):
    model = PriorVLAModel.from_pretrained(save_policy(tmp_path / "policy", bodies), backbone=None)
    model.config.backbone = None  # nothing is looked for on the Hub
    model.save_pretrained(tmp_path / "policy")
    with pytest.raises(SystemExit):
        run("sample_a_prior.py", tmp_path / "policy")
    assert "is no action prior" in capsys.readouterr().err


@pytest.mark.parametrize("preset", ["expert", "all"])
def test_a_new_robot_gets_an_adapter_that_acts_on_its_base(
    run, save_policy, write_demonstrations, tiny_backbone, bodies, tmp_path, preset
):
    pytest.importorskip("peft")
    base = save_policy(tmp_path / "base", bodies, fusion="cross")
    before = load_file(base / "model.safetensors")
    robot = replace(bodies[0], action_names=["x", "grip"], action_statistics=None, state_statistics=None)
    data = write_demonstrations(tmp_path / "data", robot, [6, 5])
    options = ["--robot", "mine", "--preset", preset, "--backbone", tiny_backbone, "--max-steps", 2]
    lines = run("fine_tune_on_my_robot.py", base, data, *options, "--output-dir", tmp_path / "mine").splitlines()
    assert lines[-2].startswith("trained for mine: ") and lines[-2].endswith(" MB")
    assert lines[-1].startswith(("'open the drawer': [", "'press the red button now': ["))
    saved = {path.name for path in (tmp_path / "mine").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "embodiments.json", "README.md"} <= saved
    assert "model.safetensors" not in saved and ("features" in saved) == (preset == "expert")
    settings = json.loads((tmp_path / "mine" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(base)
    own = [body.name for body in load_embodiments(tmp_path / "mine")]
    assert own == ["small", "large", "mine"]
    assert all(tensor.equal(before[name]) for name, tensor in load_file(base / "model.safetensors").items())


def test_a_checkpoint_is_published_found_and_loaded(run, prior, hub):
    lines = run("publish_a_checkpoint.py", prior, "me/arm-prior", "--license", "apache-2.0").splitlines()
    assert lines[0].startswith(f"published: {hub.url}/me/arm-prior/commit/")
    assert lines[1] == "found: me/arm-prior, apache-2.0, knows arm, hand; velocity_loss/arm 0.25"
    assert lines[2].startswith("loaded: ActionPriorModel of ") and lines[2].endswith(" for arm, hand")
    assert hub.opened("models", "me/arm-prior").private
    run("publish_a_checkpoint.py", prior, "me/open", "--license", "mit", "--public", "--code")
    assert not hub.opened("models", "me/open").private
    assert (hub.repository("models", "me/open") / "modeling_action_prior.py").is_file()


def test_a_checkpoint_is_published_into_a_folder(run, prior, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = run("publish_a_checkpoint.py", prior, "./shared/prior", "--license", "mit").splitlines()
    assert lines[0] == f"published: {tmp_path / 'shared' / 'prior'}"
    assert [line.split(":")[0] for line in lines] == ["published", "loaded"]


@pytest.mark.skipif(find_spec("metaworld") is None, reason="needs the extra 'metaworld'")
def test_a_policy_is_evaluated_with_intervals(run, save_policy, tiny_backbone, tmp_path):
    checkpoint = save_policy(tmp_path / "policy", [sawyer()])
    options = ["--tasks", "drawer-open", "reach", "--trials", 2, "--workers", 1, "--max-episode-steps", 5]
    options += ["--backbone", tiny_backbone, "--films", tmp_path / "films"]
    assert run("evaluate_a_policy.py", checkpoint, *options).splitlines() == [
        "drawer-open: 0 of 2 episodes succeeded (0% to 66%)",
        "reach: 0 of 2 episodes succeeded (0% to 66%)",
        "all tasks: 0 of 4 episodes succeeded (0% to 49%)",
    ]
    films = {path.name for path in (tmp_path / "films").iterdir()}
    assert films == {"drawer-open-0-failure.mp4", "reach-0-failure.mp4"}


MY_ROBOT = """
import gymnasium, numpy as np

class MyRobot(gymnasium.Env):
    action_space = gymnasium.spaces.Box(-9, 9, (4,))

    def look(self):
        return {"state": np.zeros(3), "images": {"front": np.zeros((28, 28, 3), np.uint8)}}

    def reset(self, *, seed=None, options=None):
        self.steps = 0
        return self.look(), {}

    def step(self, action):
        assert action.shape == (4,)
        self.steps += 1
        return self.look(), 0.0, self.steps == 3, False, {"is_success": self.steps == self.solved_at}

def make(task, max_episode_steps):
    robot = MyRobot()
    robot.solved_at = {"open the drawer": 3, "press the button": 4}[task]
    return gymnasium.wrappers.TimeLimit(robot, max_episode_steps)
"""


@pytest.mark.skipif(find_spec("gymnasium") is None, reason="needs gymnasium")
def test_a_policy_is_evaluated_in_an_environment_of_ones_own(
    run, save_policy, tiny_backbone, bodies, tmp_path, monkeypatch
):
    (tmp_path / "my_robot.py").write_text(MY_ROBOT)
    monkeypatch.syspath_prepend(tmp_path)
    checkpoint = save_policy(tmp_path / "policy", bodies[:1])
    options = ["--environment", "my_robot:make", "--tasks", "open the drawer", "press the button", "--trials", 2]
    lines = run("evaluate_a_policy.py", checkpoint, *options, "--workers", 1, "--backbone", tiny_backbone).splitlines()
    assert lines == [
        "open the drawer: 2 of 2 episodes succeeded (34% to 100%)",
        "press the button: 0 of 2 episodes succeeded (0% to 66%)",
        "all tasks: 2 of 4 episodes succeeded (15% to 85%)",
    ]


@pytest.mark.skipif(find_spec("gym_pusht") is None, reason="needs the extra 'pusht'")
def test_a_policy_is_evaluated_in_an_environment_that_knows_nothing_of_priorvla(
    run, save_policy, tiny_backbone, tmp_path
):
    body = replace(load_embodiment("pusht"), cameras=["top"]).with_statistics(np.eye(2), np.array([[0, 0], [512, 512]]))
    checkpoint = save_policy(tmp_path / "policy", [body])
    options = ["--trials", 2, "--max-episode-steps", 6, "--image-size", 28, "--backbone", tiny_backbone]
    said = run("any_gymnasium_environment.py", checkpoint, *options)
    assert said == "0 of 2 episodes succeeded\n"


def test_a_policy_acts_where_priorvla_cannot_be_imported(save_policy, tiny_backbone, bodies, tmp_path):
    checkpoint = save_policy(tmp_path / "policy", bodies)
    bundle_code(checkpoint)
    example = str(EXAMPLES / "without_priorvla.py")
    arguments = [example, str(checkpoint), "--backbone", str(tiny_backbone), "--embodiment", "large"]
    hidden = f"import runpy, sys; sys.modules['priorvla'] = None; sys.argv = {arguments}; "
    done = subprocess.run(
        [sys.executable, "-c", f"{hidden}runpy.run_path({example!r}, run_name='__main__')"],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "large, 'Open the drawer.': 6 steps of a0, a1, a2, a3, a4, a5, a6" in done.stdout
    assert printed_chunk(done.stdout).shape == (6, 7)
