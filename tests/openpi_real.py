"""Our server driven by openpi's own client: `make test-openpi` runs this file.

The client lives in an environment of its own (it wants numpy below 2), whose Python is the only argument; its side is
`openpi_robot.py`. A tiny policy is served by `priorvla serve`, and what openpi's client receives must be, to the bit,
what ours does. Pytest does not collect it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "benchmarks"))

from serving import save_tiny_policy, serving  # noqa: E402

from priorvla.deployment.client import ChunkBroker, PolicyClient  # noqa: E402

KEY = "a-key"


def main(python: str) -> None:
    os.environ["PRIORVLA_API_KEY"] = KEY
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "received.npz"
        with serving(save_tiny_policy(Path(place)), max_batch=1, execute_steps=2) as (_, port):
            command = [python, str(HERE / "openpi_robot.py"), str(port), KEY, str(file)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=300)
            if done.returncode:
                sys.exit(f"openpi's client failed:\n{done.stderr}")
            told = json.loads(done.stdout)
            with np.load(file) as received:
                theirs = dict(received)
            ours = ask(port, theirs["pictures"], theirs["states"])
    checks = {
        "metadata are read": told["metadata"]["action_dim"] == 7 and told["metadata"]["cameras"] == ["front", "wrist"],
        "chunks equal our client's to the bit": np.array_equal(theirs["flat"], ours["chunks"]),
        "pictures (3, h, w) by camera's name are the same": np.array_equal(theirs["nested"], ours["chunks"]),
        "its ActionChunkBroker executes what ours does": np.array_equal(theirs["single"], ours["single"]),
        "infer_ms is there": all(value > 0 for value in told["infer_ms"]),
        "an error arrives in words": "observation/state is missing" in told["said"],
        "a wrong key is not let in": not told["let_in"],
    }
    for name, passed in checks.items():
        print(f"{'passed' if passed else 'FAILED'}: {name}")
    failed = sum(not passed for passed in checks.values())
    print(f"{len(checks) - failed} passed, {failed} failed")
    sys.exit(bool(failed))


def ask(port: int, pictures: np.ndarray, states: np.ndarray) -> dict[str, np.ndarray]:
    """What our own client gets for the same observations."""

    def observation(step: int) -> dict:
        images = dict(zip(("front", "wrist"), pictures[step], strict=True))
        return {"images": images, "state": states[step], "prompt": "open the drawer"}

    with PolicyClient(port=port, api_key=KEY) as client:
        chunks = np.stack([client.infer(observation(step))["actions"] for step in range(len(states))])
    with PolicyClient(port=port, api_key=KEY) as client:
        broker = ChunkBroker(client)
        single = np.stack([broker.select_action(observation(step // 2 * 2)) for step in range(len(states))])
    return {"chunks": chunks, "single": single}


if __name__ == "__main__":
    main(sys.argv[1])
