"""A robot without a body, by LeRobot's contract, for `lerobot-rollout` in lerobot_real.py: two joints and a camera.

What it was told is written to the file of `PRETENDED_ROBOT_LOG`, a line a command.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from lerobot.robots import Robot, RobotConfig

JOINTS = ("x.pos", "y.pos")


@RobotConfig.register_subclass("pretended_robot")
@dataclass(kw_only=True)
class PretendedRobotConfig(RobotConfig):
    pass


class PretendedRobot(Robot):
    """It is at once where it is told to be."""

    config_class = PretendedRobotConfig
    name = "pretended_robot"
    is_connected = is_calibrated = True
    action_features = dict.fromkeys(JOINTS, float)
    observation_features = {**action_features, "image": (28, 28, 3)}

    def __init__(self, config: PretendedRobotConfig) -> None:
        super().__init__(config)
        self.config, self.place = config, dict.fromkeys(JOINTS, 256.0)

    def connect(self, calibrate: bool = True) -> None: ...

    def calibrate(self) -> None: ...

    def configure(self) -> None: ...

    def disconnect(self) -> None: ...

    def get_observation(self) -> dict[str, Any]:
        return {**self.place, "image": np.zeros((28, 28, 3), np.uint8)}

    def send_action(self, action: dict[str, Any]) -> dict[str, Any]:
        self.place = dict(action)
        with Path(os.environ["PRETENDED_ROBOT_LOG"]).open("a", encoding="utf-8") as log:
            log.write(f"{action}\n")
        return action
