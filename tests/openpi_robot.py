"""A robot with openpi's own client: `tests/openpi_real.py` runs this file with the Python of that client's environment.

Arguments: port, API key, and the file to write what came back into. Nothing of priorvla is imported here.
"""

import json
import sys

import numpy as np
from openpi_client.action_chunk_broker import ActionChunkBroker
from openpi_client.websocket_client_policy import WebsocketClientPolicy


def main(port: int, key: str, file: str) -> None:
    random = np.random.default_rng(0)
    pictures = random.integers(0, 256, (4, 2, 64, 64, 3), dtype=np.uint8)
    states = random.normal(size=(4, 7))

    def connect() -> WebsocketClientPolicy:
        return WebsocketClientPolicy("127.0.0.1", port, api_key=key)

    def flat(step: int) -> dict:
        first, second = pictures[step]
        own = {"observation/image": first, "observation/wrist_image": second, "observation/state": states[step]}
        return {**own, "prompt": "open the drawer"}

    def nested(step: int) -> dict:  # as openpi's ALOHA: pictures (3, h, w)
        images = {name: pictures[step, index].transpose(2, 0, 1) for index, name in enumerate(("front", "wrist"))}
        return {"state": states[step], "images": images, "prompt": "open the drawer"}

    first = connect()
    chunks = [first.infer(flat(step)) for step in range(4)]
    second = connect()
    same = [second.infer(nested(step))["actions"] for step in range(4)]
    broker = ActionChunkBroker(connect(), action_horizon=2)
    single = [broker.infer(flat(step // 2 * 2))["actions"] for step in range(4)]
    refused = connect()
    try:
        refused.infer({"prompt": "open the drawer"})
        said = ""
    except RuntimeError as error:
        said = str(error)
    try:
        WebsocketClientPolicy("127.0.0.1", port, api_key="wrong")
        let_in = True
    except Exception:
        let_in = False
    np.savez(
        file,
        pictures=pictures,
        states=states,
        flat=np.stack([chunk["actions"] for chunk in chunks]),
        nested=np.stack(same),
        single=np.stack(single),
    )
    timing = [chunk["server_timing"]["infer_ms"] for chunk in chunks]
    print(json.dumps({"metadata": first.get_server_metadata(), "infer_ms": timing, "said": said, "let_in": let_in}))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3])
