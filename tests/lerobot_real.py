"""Our plugin in LeRobot itself: `make test-lerobot` runs this file with the Python of an environment that has lerobot.

A tiny policy is trained by `lerobot-train` on a tiny dataset, from our checkpoint and from a converted one, resumed,
driven by `lerobot-eval` in PushT and by `lerobot-rollout` on a robot without a body, and saved and loaded by LeRobot's
own code. Pytest does not collect it.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import torch

COMMANDS = Path(sys.executable).parent
PLUGIN = "--policy.discover_packages_path=priorvla.deployment.lerobot"
RUN = ["--wandb.enable=false", "--policy.push_to_hub=false", "--policy.device=cpu", "--num_workers=0", "--seed=0"]
RUN += ["--dataloader_multiprocessing_context=null", "--batch_size=4", "--log_freq=1", "--env_eval_freq=0"]
CAMERA, EPISODES = "image", (12, 9)


def main() -> None:
    with tempfile.TemporaryDirectory() as place:
        scratch = Path(place)
        os.environ["HF_LEROBOT_HOME"] = str(scratch / "lerobot")
        backbone, checkpoint, dataset = make_files(scratch)
        trained = scratch / "run_path"
        steps: list[Callable[[], str]] = [
            lambda: train_from_our_checkpoint(scratch, backbone, checkpoint, dataset),
            lambda: train_from_a_policy_folder(scratch, backbone, checkpoint, dataset),
            lambda: resume(scratch, trained),
            lambda: evaluate_in_pusht(scratch, backbone, trained),
            lambda: roll_out(scratch, backbone, trained, "sync"),
            lambda: roll_out(scratch, backbone, trained, "rtc"),
            lambda: save_and_load(scratch, backbone, trained),
        ]
        for step in steps:
            print(step(), flush=True)
    print(f"{len(steps)} passed, 0 failed")


def make_files(scratch: Path) -> tuple[Path, Path, Path]:
    """A tiny backbone, a policy for PushT on it, and two episodes of a LeRobot dataset, all by our own code."""
    import conftest

    from priorvla.configuration.embodiment import Embodiment
    from priorvla.training.data.lerobot_writer import LeRobotDatasetWriter

    random = np.random.default_rng(0)
    places = random.uniform(0, 512, (50, 2))
    body = Embodiment("pusht", ["x", "y"], ["x", "y"], 10.0, cameras=[CAMERA]).with_statistics(places, places)
    backbone = conftest.load_beside("tiny_backbones").save_dual_encoder(scratch / "backbone")
    save = conftest.save_policy.__wrapped__(backbone, conftest.tiny_fields.__wrapped__())
    checkpoint = save(scratch / "checkpoint", [body], fusion="cross")
    with LeRobotDatasetWriter(scratch / "dataset", body, {CAMERA: (28, 28)}) as writer:
        for length in EPISODES:
            moves = random.uniform(0, 512, (2, length, 2))
            pictures = random.integers(0, 256, (length, 28, 28, 3), dtype=np.uint8)
            writer.add_episode(moves[0], moves[1], "push the block", {CAMERA: pictures})
    return backbone, checkpoint, scratch / "dataset"


def run(*command: str) -> str:
    done = subprocess.run(
        [str(COMMANDS / command[0]), *command[1:]], capture_output=True, text=True, timeout=600, check=False
    )
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout[-6000:]}\n{done.stderr[-6000:]}")
    return done.stdout + done.stderr


def train(scratch: Path, name: str, dataset: Path, *arguments: str) -> str:
    data = ["--dataset.repo_id=tiny/dataset", f"--dataset.root={dataset}", "--dataset.video_backend=pyav"]
    return run("lerobot-train", *arguments, *data, *RUN, "--steps=3", "--save_freq=2", f"--output_dir={scratch / name}")


def train_from_our_checkpoint(scratch: Path, backbone: Path, checkpoint: Path, dataset: Path) -> str:
    policy = [f"--policy.checkpoint={checkpoint}", f"--policy.backbone={backbone}", "--policy.type=priorvla"]
    train(scratch, "run_type", dataset, PLUGIN, *policy)
    trained = scratch / "run_type/checkpoints/last/pretrained_model"
    text = (trained / "config.json").read_text(encoding="utf-8")
    assert str(scratch) not in text, text
    before, after = weights(checkpoint), weights(trained / "priorvla")
    assert before.keys() == after.keys() and any(not torch.equal(before[key], after[key]) for key in before)
    return "lerobot-train --policy.type=priorvla --policy.checkpoint: 3 steps, weights moved, no path of this machine"


def train_from_a_policy_folder(scratch: Path, backbone: Path, checkpoint: Path, dataset: Path) -> str:
    from priorvla.deployment.lerobot.convert import from_lerobot, to_lerobot

    folder = to_lerobot(checkpoint, scratch / "policy")
    back = from_lerobot(folder, scratch / "back")
    files = {file.relative_to(checkpoint): file.read_bytes() for file in checkpoint.rglob("*") if file.is_file()}
    assert files == {file.relative_to(back): file.read_bytes() for file in back.rglob("*") if file.is_file()}
    installed = any(
        (found.metadata["Name"] or "").startswith("lerobot_policy_") for found in importlib.metadata.distributions()
    )
    assert installed, "lerobot_policy_priorvla is not installed in this environment"
    train(scratch, "run_path", dataset, f"--policy.path={folder}", f"--policy.backbone={backbone}")
    return "convert there and back, bit-equal; lerobot-train --policy.path, found through lerobot_policy_priorvla"


def resume(scratch: Path, folder: Path) -> str:
    copy = shutil.copytree(folder, scratch / "resumed", symlinks=True)
    shutil.rmtree(copy / "checkpoints/000003")
    (copy / "checkpoints/last").unlink()
    (copy / "checkpoints/last").symlink_to("000002")
    settings = copy / "checkpoints/000002/pretrained_model/train_config.json"
    settings.write_text(settings.read_text(encoding="utf-8").replace(str(folder), str(copy)), encoding="utf-8")
    run("lerobot-train", f"--config_path={settings}", "--resume=true")
    began, whole, resumed = (
        weights(place / "pretrained_model/priorvla")
        for place in (folder / "checkpoints/000002", folder / "checkpoints/000003", copy / "checkpoints/000003")
    )
    # Not to the bit: LeRobot restores the random state before its loader draws a number from it, so the noise differs.
    assert any(not torch.equal(began[key], resumed[key]) for key in began)
    assert all(torch.allclose(whole[key], resumed[key], atol=2e-3) for key in whole)  # of a step of Adam each
    return "lerobot-train --resume=true from step 2: goes on to step 3"


def evaluate_in_pusht(scratch: Path, backbone: Path, folder: Path) -> str:
    trained = folder / "checkpoints/last/pretrained_model"
    small = ["--env.type=pusht", "--env.episode_length=8", "--eval.n_episodes=2", "--eval.batch_size=2"]
    place = [f"--policy.path={trained}", f"--policy.backbone={backbone}", "--policy.device=cpu"]
    place += ['--rename_map={"observation.image": "observation.images.image"}']
    run("lerobot-eval", *place, *small, "--eval.use_async_envs=false", f"--output_dir={scratch / 'evaluation'}")
    assert (scratch / "evaluation/eval_info.json").is_file()
    return "lerobot-eval in PushT: 2 episodes at once"


def roll_out(scratch: Path, backbone: Path, folder: Path, inference: str) -> str:
    package, log = scratch / "pretended_robot", scratch / f"told_{inference}.txt"
    package.mkdir(exist_ok=True)
    shutil.copy(Path(__file__).with_name("lerobot_pretended_robot.py"), package / "__init__.py")
    os.environ.update(PRETENDED_ROBOT_LOG=str(log), PYTHONPATH=str(scratch))
    place = [f"--policy.path={folder / 'checkpoints/last/pretrained_model'}", f"--policy.backbone={backbone}"]
    robot = ["--robot.discover_packages_path=pretended_robot", "--robot.type=pretended_robot", "--play_sounds=false"]
    robot += ["--fps=10", "--task=push the block", "--return_to_initial_position=false"]
    commands: list[str] = []
    for seconds in (4, 60):  # on a busy machine four may be over before the first prediction is
        if len(commands) <= 5:
            log.write_text("", encoding="utf-8")
            run(
                "lerobot-rollout",
                *place,
                *robot,
                f"--duration={seconds}",
                "--device=cpu",
                f"--inference.type={inference}",
            )
            commands = log.read_text(encoding="utf-8").splitlines()
    assert len(commands) > 5 and len(set(commands)) > 5, commands
    return f"lerobot-rollout --inference.type={inference}: {len(commands)} commands to a robot"


def save_and_load(scratch: Path, backbone: Path, folder: Path) -> str:
    from lerobot.configs import PreTrainedConfig
    from lerobot.policies import make_pre_post_processors
    from lerobot.policies.factory import get_policy_class

    import priorvla.deployment.lerobot  # noqa: F401  # registers the type

    trained = folder / "checkpoints/last/pretrained_model"
    config: Any = PreTrainedConfig.from_pretrained(trained, cli_overrides=[f"--backbone={backbone}"])
    policy = get_policy_class(config.type).from_pretrained(trained, config=config)
    before, after = make_pre_post_processors(config, str(trained))
    observation = {
        "observation.state": torch.full((2,), 256.0),
        "observation.images.image": torch.zeros(3, 28, 28),
        "task": "push the block",
    }
    action = after(policy.select_action(before(dict(observation))))
    policy.save_pretrained(scratch / "again")
    for pipeline in (before, after):
        pipeline.save_pretrained(scratch / "again")
    config = PreTrainedConfig.from_pretrained(scratch / "again", cli_overrides=[f"--backbone={backbone}"])
    again = get_policy_class(config.type).from_pretrained(scratch / "again", config=config)
    before, after = make_pre_post_processors(config, str(scratch / "again"))
    assert torch.equal(action, after(again.select_action(before(dict(observation)))))
    chunk = policy.predict_action_chunk(before(dict(observation)))
    known = policy.predict_action_chunk(before(dict(observation)), inference_delay=2, prev_chunk_left_over=chunk[0, 2:])
    assert torch.equal(known[0, :2], chunk[0, 2:4])
    assert action.shape == (1, 2) and (action.abs() < 2000).all(), action
    return "save_pretrained / from_pretrained of policy and pipelines: the same action, to the bit"


def weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


if __name__ == "__main__":
    main()
