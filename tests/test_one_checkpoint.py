"""A Gymnasium loop, an openpi client, our client and LeRobot drive the same checkpoint."""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

if not all(map(find_spec, ("gymnasium", "msgpack", "prometheus_client", "websockets"))):
    pytest.skip("needs Gymnasium and the extra 'serve'", allow_module_level=True)
import gymnasium
import msgpack
from websockets.sync.client import connect

from priorvla.deployment.client import ChunkBroker, PolicyClient
from priorvla.deployment.evaluation import evaluate_policy
from priorvla.deployment.policy import PriorVLAPolicy
from priorvla.deployment.serving.background import serve_in_background
from priorvla.deployment.serving.policy_server import PolicyServer

TASK = "open the drawer"


class Arm(gymnasium.Env):
    """A robot of Gymnasium's: its state follows its commands, and so does its picture."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}

    def __init__(self, task: str, commands: list[np.ndarray]) -> None:
        self.instruction, self.commands = task, commands

    def reset(self, **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        self.state, self.steps = np.zeros(3, dtype=np.float32), 0
        return self.seen(), {}

    def seen(self) -> dict[str, Any]:
        picture = np.random.default_rng(abs(int(1e4 * self.state.sum()))).integers(0, 256, (28, 28, 3), dtype=np.uint8)
        return {"state": self.state.copy(), "images": {"front": picture}}

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        self.commands.append(np.array(action))
        self.state, self.steps = self.state + np.float32(0.1) * action[:3], self.steps + 1
        return self.seen(), 0.0, False, self.steps == 8, {"success": False}


def drive_as_openpi_does(port: int, robot: Arm) -> None:
    """Written from the protocol alone, with openpi's keys: a chunk is asked for, begun, and asked for again."""

    def plain(array: np.ndarray) -> dict[bytes, Any]:
        return {
            b"__ndarray__": True,
            b"data": array.tobytes(),
            b"dtype": array.dtype.str,
            b"shape": array.shape,
        }

    seen, over = robot.reset()[0], False
    with connect(f"ws://127.0.0.1:{port}", compression=None, max_size=None, proxy=None) as connection:
        metadata = msgpack.unpackb(connection.recv(30))
        while not over:
            observation = {
                "observation/image": seen["images"]["front"],
                "observation/state": seen["state"],
                "prompt": robot.instruction,
            }
            connection.send(msgpack.packb(observation, default=plain))
            told = msgpack.unpackb(connection.recv(30))["actions"]
            chunk = np.frombuffer(told[b"data"], told[b"dtype"]).reshape(told[b"shape"])
            for action in chunk[: metadata["execute_steps"]]:
                if not over:
                    seen, _, _, over, _ = robot.step(action)


def lerobots_policy(stand_in: Any, plugin: Any, checkpoint: Path, backbone: Path) -> Any:
    """As LeRobot makes it for a robot of such features."""
    kind, types = stand_in.PolicyFeature, stand_in.FeatureType
    config = plugin.PriorVLAConfig(
        checkpoint=str(checkpoint),
        backbone=str(backbone),
        embodiment="small",
        input_features={
            "observation.state": kind(types.STATE, (3,)),
            "observation.images.front": kind(types.VISUAL, (3, 28, 28)),
        },
        output_features={"action": kind(types.ACTION, (4,))},
    )
    return stand_in.policy_class(config)(config=config, dataset_stats={}, dataset_meta=None)


@pytest.mark.parametrize("history", [{}, {"use_history": True, "history_size": 4}], ids=["without", "with a past"])
def test_one_checkpoint_drives_a_gymnasium_loop_clients_over_the_network_and_a_robot_of_lerobots_alike(
    lerobot, save_policy, bodies, tiny_backbone, tmp_path, history
):
    checkpoint = save_policy(tmp_path, bodies, fusion="cross", **history)
    ours = PriorVLAPolicy.from_pretrained(checkpoint, backbone=tiny_backbone, embodiment="small")
    gym, network, openpis, lerobots = [], [], [], []
    evaluate_policy(ours, [TASK], environment=partial(Arm, commands=gym), trials=1)

    robot = Arm(TASK, network)
    seen, over = robot.reset()[0], False
    with serve_in_background(PolicyServer(ours)) as port, PolicyClient(port=port) as client:
        broker = ChunkBroker(client)
        broker.reset(seed=0)
        while not over:
            seen, _, _, over, _ = robot.step(broker.select_action({**seen, "prompt": robot.instruction}))
        drive_as_openpi_does(port, Arm(TASK, openpis))

    robot, policy = Arm(TASK, lerobots), lerobots_policy(lerobot.stand_in, lerobot.plugin, checkpoint, tiny_backbone)
    seen, over = robot.reset()[0], False
    while not over:
        picture = torch.from_numpy(seen["images"]["front"]).permute(2, 0, 1)[None] / 255
        given = {"observation.state": torch.from_numpy(seen["state"])[None], "observation.images.front": picture}
        action = policy.select_action({**given, "task": [robot.instruction]})
        seen, _, _, over, _ = robot.step(action[0].numpy())

    assert len(gym) == 8
    np.testing.assert_array_equal(gym, network)
    np.testing.assert_array_equal(gym, lerobots)
    if history:  # openpi's protocol has no word for a past: the first chunk alone is the same
        gym, openpis = gym[: ours.execute_steps], openpis[: ours.execute_steps]
    np.testing.assert_array_equal(gym, openpis)
