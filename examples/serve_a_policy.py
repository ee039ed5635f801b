"""Serve a policy, and drive a robot from another program: the model here, the robot's computer there.

    python examples/serve_a_policy.py runs/policy

Both sides run in this one process, so that you can try them at once. In earnest the first is a command,

    priorvla serve runs/policy --host 0.0.0.0 --api-key-file key.txt

and the second needs no deep learning: only numpy, msgpack and websockets. Any openpi client does as well.
"""

import argparse
from typing import Any

import numpy as np

from priorvla import PriorVLAPolicy
from priorvla.deployment.client import ChunkBroker, PolicyClient
from priorvla.deployment.serving.background import serve_in_background
from priorvla.deployment.serving.policy_server import PolicyServer


def look(metadata: dict[str, Any], instruction: str, random: np.random.Generator) -> dict[str, Any]:
    """What the robot sees and feels now. This one makes it up, by what the server says that it wants."""
    pictures = {camera: random.integers(0, 256, (224, 224, 3), dtype=np.uint8) for camera in metadata["cameras"]}
    return {"images": pictures, "state": np.zeros(metadata["state_dim"]), "prompt": instruction}


def drive(port: int, instruction: str, steps: int) -> None:
    """The robot's side: connects, and asks for one action every control step."""
    with PolicyClient("127.0.0.1", port) as client:
        print(f"{client.metadata['embodiment']}: {', '.join(client.metadata['action_names'])}")
        broker = ChunkBroker(client)  # asks once a chunk; most steps only take the next action from it
        broker.reset(seed=0)
        random = np.random.default_rng(0)
        for step in range(steps):
            action = broker.select_action(look(client.metadata, instruction, random))
            print(f"step {step}: {np.array2string(action, precision=3, suppress_small=True)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="folder or Hub id of a policy")
    parser.add_argument("--embodiment", help="the robot, where the checkpoint knows several")
    parser.add_argument("--instruction", default="open the drawer")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--backbone", default="auto", help="folder of the backbone; auto: what the checkpoint names")
    options = parser.parse_args()

    policy = PriorVLAPolicy.from_pretrained(
        options.checkpoint, backbone=options.backbone, embodiment=options.embodiment
    )
    with serve_in_background(PolicyServer(policy, name=options.checkpoint)) as port:
        drive(port, options.instruction, options.steps)


if __name__ == "__main__":
    main()
