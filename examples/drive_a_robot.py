"""Drive a robot with a policy checkpoint: look, ask, act, once every control step.

    python examples/drive_a_robot.py runs/policy --task drawer-close

The robot here is Meta-World's. Yours takes its place with Gymnasium's two methods: `reset()` and `step(action)`, whose
observations hold `state`, the numbers that the policy was trained with, and `images`, a picture by camera name.
"""

import argparse
from typing import Any

from priorvla import PriorVLAPolicy
from priorvla.deployment.environments import make_environment


def drive(policy: PriorVLAPolicy, robot: Any, instruction: str, seed: int) -> tuple[bool, int]:
    """Runs one episode; whether it ended in success, and its steps."""
    policy.reset(seed)  # the queue of actions, the past and the noise are the policy's; the model has no memory
    observation, _ = robot.reset(seed=seed)
    success, truncated, steps = False, False, 0
    while not (success or truncated):
        # A chunk is predicted when the queue of actions is empty; most steps only take the next action from it.
        action = policy.select_action({**observation, "instruction": instruction})
        observation, _, _, truncated, info = robot.step(action)
        success, steps = bool(info["success"]), steps + 1
    return success, steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="folder or Hub id of a policy")
    parser.add_argument("--task", default="drawer-close", help="a task of Meta-World")
    parser.add_argument("--instruction", help="what the robot is told; default: the task's own sentence")
    parser.add_argument("--episodes", type=int, default=3)
    parser.add_argument("--max-episode-steps", type=int, default=200)
    parser.add_argument("--backbone", default="auto", help="folder of the backbone; auto: what the checkpoint names")
    options = parser.parse_args()

    policy = PriorVLAPolicy.from_pretrained(options.checkpoint, backbone=options.backbone)
    robot = make_environment("metaworld", options.task, max_episode_steps=options.max_episode_steps)
    instruction = options.instruction or robot.instruction
    print(f"{policy.embodiment.name}: {instruction!r}")
    for seed in range(options.episodes):
        success, steps = drive(policy, robot, instruction, seed)
        print(f"episode {seed}: {'success' if success else 'no success'} after {steps} steps")
    robot.close()


if __name__ == "__main__":
    main()
