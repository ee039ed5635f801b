"""A policy in a Gymnasium environment that knows nothing of priorvla: a small wrapper says what is what.

    python examples/any_gymnasium_environment.py runs/pusht-policy --trials 20

Here it is gym_pusht's own PushT. For yours change the three marked lines: what is seen, what is done, what success is.
"""

import argparse
from functools import partial

import gymnasium
import numpy as np

from priorvla import PriorVLAPolicy, evaluate_policy


class Mapped(gymnasium.Wrapper):
    """Their observations, actions and infos as a policy knows them, in the names and units that it was trained with."""

    def reset(self, **options):
        observation, info = self.env.reset(**options)
        return self.seen(observation), info

    def step(self, action):
        bounds = self.action_space
        command = np.clip(action, bounds.low, bounds.high).astype(bounds.dtype)  # 1. a policy's action as theirs
        observation, reward, terminated, truncated, info = self.env.step(command)
        return self.seen(observation), reward, terminated, truncated, {**info, "success": info["is_success"]}  # 2.

    def seen(self, observation):
        return {"state": observation["agent_pos"], "images": {"top": observation["pixels"]}}  # 3. cameras by their name


def make(task, max_episode_steps, image_size):
    """Pictures have the size of those that the policy was trained on; a task here is no more than its instruction."""
    size = {"observation_width": image_size, "observation_height": image_size}
    environment = gymnasium.make(
        "gym_pusht:gym_pusht/PushT-v0", obs_type="pixels_agent_pos", max_episode_steps=max_episode_steps, **size
    )
    return Mapped(environment)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("policy", help="folder or Hub id of a policy with PushT's state, action and camera `top`")
    parser.add_argument("--task", default="Push the grey T onto the green T.", help="what the policy is told")
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--max-episode-steps", type=int, default=300)
    parser.add_argument("--image-size", type=int, default=112, help="side of a picture, pixels")
    parser.add_argument("--backbone", default="auto", help="folder of the backbone; auto: what the checkpoint names")
    options = parser.parse_args()
    policy = PriorVLAPolicy.from_pretrained(options.policy, backbone=options.backbone)
    environment = partial(make, max_episode_steps=options.max_episode_steps, image_size=options.image_size)
    result = evaluate_policy(policy, [options.task], environment=environment, trials=options.trials)
    print("{} of {} episodes succeeded".format(*result.count()))


if __name__ == "__main__":
    main()
