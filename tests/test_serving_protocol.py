"""openpi's websocket protocol, spoken by a client that knows nothing but the protocol: msgpack written by hand."""

from __future__ import annotations

import struct
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest

if not all(map(find_spec, ("msgpack", "prometheus_client", "websockets"))):
    pytest.skip("needs the extra 'serve'", allow_module_level=True)
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from priorvla.configuration.embodiment import Embodiment
from priorvla.deployment.policy import PriorVLAPolicy
from priorvla.deployment.serving.background import serve_in_background
from priorvla.deployment.serving.batching import BatchingWorker
from priorvla.deployment.serving.policy_server import PolicyServer
from priorvla.deployment.serving.server_limits import ServerLimits
from priorvla.deployment.serving.session_model import SessionModel

# --- the protocol by hand ---------------------------------------------------------------------------------------------


def pack(value: Any) -> bytes:
    """msgpack of what observations hold, in its longest forms."""
    if isinstance(value, bool):
        return b"\xc3" if value else b"\xc2"
    if isinstance(value, int):
        return b"\xd3" + struct.pack(">q", value)
    if isinstance(value, str):
        return b"\xdb" + struct.pack(">I", len(value.encode())) + value.encode()
    if isinstance(value, bytes):
        return b"\xc6" + struct.pack(">I", len(value)) + value
    if isinstance(value, tuple | list):
        return b"\xdd" + struct.pack(">I", len(value)) + b"".join(map(pack, value))
    if isinstance(value, np.ndarray):
        parts = {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}
        return pack(parts)
    assert isinstance(value, dict)
    return b"\xdf" + struct.pack(">I", len(value)) + b"".join(pack(key) + pack(value[key]) for key in value)


def unpack(frame: bytes) -> Any:
    value, rest = _unpack(frame)
    assert not rest
    return value


def _unpack(data: bytes) -> tuple[Any, bytes]:
    first, rest = data[0], data[1:]
    if first < 0x80:
        return first, rest
    if first >= 0xE0:
        return first - 256, rest
    fixed = {0xC0: None, 0xC2: False, 0xC3: True}
    if first in fixed:
        return fixed[first], rest
    numbers = {0xCA: ">f", 0xCB: ">d", 0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q"}
    numbers |= {0xD0: ">b", 0xD1: ">h", 0xD2: ">i", 0xD3: ">q"}
    if first in numbers:
        size = struct.calcsize(numbers[first])
        return struct.unpack(numbers[first], rest[:size])[0], rest[size:]
    lengths = {0xC4: ">B", 0xC5: ">H", 0xC6: ">I", 0xD9: ">B", 0xDA: ">H", 0xDB: ">I"}
    lengths |= {0xDC: ">H", 0xDD: ">I", 0xDE: ">H", 0xDF: ">I"}
    if first in lengths:
        size = struct.calcsize(lengths[first])
        length, rest = struct.unpack(lengths[first], rest[:size])[0], rest[size:]
    else:
        length = first & (0x1F if 0xA0 <= first < 0xC0 else 0x0F)
    if first in (0xC4, 0xC5, 0xC6):
        return rest[:length], rest[length:]
    if 0xA0 <= first < 0xC0 or first in (0xD9, 0xDA, 0xDB):
        return rest[:length].decode(), rest[length:]
    items = []
    is_map = first < 0x90 or first in (0xDE, 0xDF)
    for _ in range(2 * length if is_map else length):
        item, rest = _unpack(rest)
        items.append(item)
    return (dict(zip(items[::2], items[1::2], strict=True)) if is_map else items), rest


def array_of(parts: dict[bytes, Any]) -> np.ndarray:
    assert parts[b"__ndarray__"] is True and set(parts) == {b"__ndarray__", b"data", b"dtype", b"shape"}
    return np.frombuffer(parts[b"data"], dtype=parts[b"dtype"]).reshape(parts[b"shape"])


def ask(connection: ClientConnection, observation: dict) -> np.ndarray:
    connection.send(pack(observation))
    reply = unpack(connection.recv(30))
    assert set(reply) == {"actions", "server_timing"}
    assert set(reply["server_timing"]) == {"infer_ms", "queue_ms"} and min(reply["server_timing"].values()) >= 0
    return array_of(reply["actions"])


# --- a policy and its server ------------------------------------------------------------------------------------------

INSTRUCTIONS = ["open the drawer", "press the red button now", "close the door"]


@pytest.fixture(scope="module")
def checkpoint(save_policy, tmp_path_factory):
    random = np.random.default_rng(0)
    body = Embodiment("arm", ["x", "y", "z", "grip"], ["a", "b", "c"], 10.0, gripper_dims=[3], cameras=["top", "wrist"])
    body = body.with_statistics(random.normal(size=(50, 3)), random.normal(size=(50, 4)))
    return save_policy(tmp_path_factory.mktemp("policy"), [body], num_cameras=2)


@pytest.fixture
def policy(checkpoint, tiny_backbone) -> PriorVLAPolicy:
    return PriorVLAPolicy.from_pretrained(checkpoint, backbone=tiny_backbone, execute_steps=4)


@pytest.fixture
def serve(policy):
    """`(**limits)`: a context in which the policy is served; gives a function that connects."""

    @contextmanager
    def start(**limits: Any) -> Iterator[Any]:
        server = PolicyServer(policy, name="me/arm", limits=ServerLimits(**{"max_batch": 1, **limits}), seed=3)
        with serve_in_background(server) as port, ExitStack() as connections:

            def enter() -> ClientConnection:
                connection = connections.enter_context(
                    connect(f"ws://127.0.0.1:{port}", compression=None, max_size=None, proxy=None)
                )
                connection.metadata = unpack(connection.recv(30))
                return connection

            enter.port = port
            yield enter

    return start


def seen(seed: int, count: int = 1) -> list[dict]:
    """Observations in openpi's keys."""
    random = np.random.default_rng(seed)
    return [
        {
            "observation/image": random.integers(0, 256, (28, 30, 3), dtype=np.uint8),
            "observation/wrist_image": random.integers(0, 256, (20, 20, 3), dtype=np.uint8),
            "observation/state": random.normal(size=3),
            "prompt": INSTRUCTIONS[seed % 3],
        }
        for _ in range(count)
    ]


def expected(policy: PriorVLAPolicy, observations: list[dict], seed: int) -> list[np.ndarray]:
    """What the policy answers to these in one session of its own, without a server."""
    policy.reset(seed)
    return [
        policy.predict_chunk(
            {
                "state": observation["observation/state"].astype(np.float32),
                "images": {"top": observation["observation/image"], "wrist": observation["observation/wrist_image"]},
                "instruction": observation["prompt"],
            }
        )
        for observation in observations
    ]


def batch_size(inputs: tuple) -> int:
    """Of what `model.fusion`, which runs once a prediction, is called with."""
    return len(inputs[2])


class HeldModel:
    """A model that waits in its first prediction for the others' requests; notes the sizes of its batches."""

    def __init__(self, policy: PriorVLAPolicy) -> None:
        self.batches: list[int] = []
        self._is_free = threading.Event()
        policy.model.fusion.register_forward_pre_hook(self._wait)

    def _wait(self, _: Any, inputs: tuple) -> None:
        self.batches.append(batch_size(inputs))
        assert self._is_free.wait(30)

    def ask_together(self, enter: Any, observations: list[dict]) -> list[np.ndarray]:
        """Replies to each observation on a connection of its own: all but the first wait while that is predicted."""
        connections = [enter() for _ in observations]
        for connection, observation in zip(connections, observations, strict=True):
            connection.send(pack(observation))
            for _ in range(3000):
                if self.batches:
                    break
                threading.Event().wait(0.01)
        for connection in connections:
            assert connection.ping().wait(10)  # so that the frame before it has been read
        assert f"priorvla_clients {len(connections)}.0" in get(enter.port, "/metrics")[2]
        self._is_free.set()
        return [array_of(unpack(connection.recv(30))["actions"]) for connection in connections]


def get(port: int, path: str) -> tuple[int, str, str]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
        return answer.status, answer.headers["Content-Type"], answer.read().decode()


def test_the_server_speaks_first_and_says_what_it_drives(serve):
    with serve() as enter:
        metadata = enter().metadata
    assert metadata.pop("server").startswith("priorvla ")
    assert metadata == {
        "protocol_version": 1,
        "model": "me/arm",
        "embodiment": "arm",
        "chunk_size": 6,
        "execute_steps": 4,
        "control_rate": 10.0,
        "action_dim": 4,
        "action_names": ["x", "y", "z", "grip"],
        "action_kinds": ["absolute"] * 4,
        "action_limits": {},
        "gripper_dims": [3],
        "state_dim": 3,
        "state_names": ["a", "b", "c"],
        "units": "as in the training data",
        "cameras": ["top", "wrist"],
        "positional_cameras": {"observation/image": "top", "observation/wrist_image": "wrist"},
        "language": True,
        "history_size": 0,
        "seed": 3,
    }


def test_a_reply_is_the_policys_own_chunk_in_raw_units_to_the_bit(serve, policy):
    observations = seen(0, 3)
    with serve() as enter:
        connection = enter()
        chunks = [ask(connection, observation) for observation in observations]
    assert chunks[0].shape == (6, 4) and chunks[0].dtype == np.float32
    np.testing.assert_array_equal(chunks, expected(policy, observations, seed=3))


def test_a_chunk_begins_with_what_will_be_executed_anyway(serve, policy):
    (observation,), prefix = seen(0), np.array([[0.5, -0.5, 0.25, 1.0], [0.1, 0.2, 0.3, 0.4]], dtype=np.float32)
    asked = [observation, {**observation, "prefix/actions": prefix}, observation]
    with serve(max_batch=2) as enter:
        model = HeldModel(policy)
        _, continued, without = model.ask_together(enter, asked)
    assert model.batches == [1, 2]
    np.testing.assert_array_equal(continued[:2], prefix)
    np.testing.assert_allclose(without, expected(policy, [observation], seed=3)[0], atol=1e-5)
    assert not np.allclose(continued[2:], without[2:], atol=1e-3)


def test_alohas_nested_pictures_of_other_layout_are_the_same_observation(serve):
    (plain,) = seen(1)
    pictures = {"top": plain["observation/image"], "wrist": plain["observation/wrist_image"]}
    aloha = {
        "images": {camera: picture.transpose(2, 0, 1).copy() for camera, picture in pictures.items()},
        "state": plain["observation/state"],
        "prompt": plain["prompt"],
    }
    with serve() as enter:
        np.testing.assert_array_equal(ask(enter(), plain), ask(enter(), aloha))


def test_several_clients_at_once_are_each_as_if_alone_to_the_bit(serve, policy):
    episodes = {client: seen(client, 5) for client in range(6)}
    answers: dict[int, list[np.ndarray]] = {client: [] for client in episodes}
    with serve() as enter:

        def live(client: int, connection: ClientConnection) -> None:
            for step, observation in enumerate(episodes[client]):
                start = {"reset": True, "seed": client} if step == 0 else {}
                answers[client].append(ask(connection, {**observation, **start}))

        threads = [threading.Thread(target=live, args=(client, enter())) for client in episodes]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for client, observations in episodes.items():
        np.testing.assert_array_equal(answers[client], expected(policy, observations, seed=client))
    assert not np.allclose(answers[0], answers[3], atol=0.01)  # of the same words


def test_what_waits_for_the_model_is_predicted_in_one_batch_and_as_if_alone(serve, policy):
    observations = [seen(client)[0] for client in range(5)]
    wanted = [expected(policy, [observation], seed=3)[0] for observation in observations]
    with serve(max_batch=3) as enter:
        model = HeldModel(policy)
        answers = model.ask_together(enter, observations)
        numbers = get(enter.port, "/metrics")[2]
    assert model.batches == [1, 3, 1]
    np.testing.assert_allclose(answers, wanted, atol=1e-5)
    assert 'priorvla_batch_size_bucket{le="2.0"} 2.0' in numbers
    assert 'priorvla_batch_size_bucket{le="4.0"} 5.0' in numbers


def test_nobody_is_served_twice_before_somebody_who_waited(serve, monkeypatch):
    asked: list[int] = []  # sessions, in the order in which they came to the queue
    predicted: list[int] = []
    ask_worker, predict = BatchingWorker.ask, SessionModel.predict

    def note_request(worker: BatchingWorker, session: Any, request: Any) -> Any:
        assert asked.count(id(session)) == predicted.count(id(session))  # it has no other request in the queue
        asked.append(id(session))
        return ask_worker(worker, session, request)

    def note_prediction(model: SessionModel, sessions: Any, requests: Any) -> Any:
        predicted.extend(map(id, sessions))
        return predict(model, sessions, requests)

    monkeypatch.setattr(BatchingWorker, "ask", note_request)
    monkeypatch.setattr(SessionModel, "predict", note_prediction)
    with serve(max_batch=2, rate_limit=1e6) as enter:
        connections = [enter() for _ in range(4)]
        for observation in [observation for _ in range(6) for observation in seen(0)]:  # without waiting for replies
            for connection in connections:
                connection.send(pack(observation))
        for connection in connections:
            for _ in range(6):
                assert array_of(unpack(connection.recv(30))["actions"]).shape == (6, 4)
    assert predicted == asked and len(asked) == 24


def test_a_reset_begins_the_noise_anew_and_another_seed_is_another_noise(serve):
    (first,) = seen(2)
    with serve() as enter:
        one, two = enter(), enter()
        began = ask(one, first)
        assert not np.array_equal(ask(one, first), began)  # the next noise
        np.testing.assert_array_equal(ask(one, {**first, "reset": True}), began)
        np.testing.assert_array_equal(ask(one, {**first, "reset": True, "seed": 3}), began)
        assert not np.array_equal(ask(one, {**first, "reset": True, "seed": 4}), began)
        np.testing.assert_array_equal(ask(two, first), began)  # nothing of this was the other's


def test_an_error_is_one_text_frame_and_then_1011(serve):
    (observation,) = seen(0)
    del observation["observation/wrist_image"]
    with serve() as enter:
        connection, other = enter(), enter()
        connection.send(pack(observation))
        told = connection.recv(10)
        assert isinstance(told, str) and "camera 'wrist' is missing" in told and "Traceback" not in told
        with pytest.raises(ConnectionClosed) as closed:
            connection.recv(10)
        assert closed.value.rcvd.code == 1011
        assert ask(other, seen(0)[0]).shape == (6, 4)
        assert 'priorvla_errors_total{kind="bad_request"} 1.0' in get(enter.port, "/metrics")[2]


def test_a_policys_own_failure_reaches_its_client_alone_and_tells_no_paths(serve, policy):
    class BrokenError(Exception):
        pass

    def fail(_: Any, inputs: tuple) -> None:
        if batch_size(inputs) > 1 or broken.is_set():
            raise BrokenError("at /home/someone/secret/weights.bin")

    broken, (observation,) = threading.Event(), seen(0)
    with serve() as enter:
        policy.model.fusion.register_forward_pre_hook(fail)
        one, two = enter(), enter()
        broken.set()
        one.send(pack(observation))
        told = one.recv(10)
        assert told == "the policy failed: BrokenError: at weights.bin"
        broken.clear()
        np.testing.assert_array_equal(ask(two, observation), expected(policy, [observation], seed=3)[0])


def test_where_a_batch_fails_each_gets_what_it_gives_alone(serve, policy):
    def fail(_: Any, inputs: tuple) -> None:
        if batch_size(inputs) > 1:
            raise RuntimeError("out of memory")

    observations = [seen(client)[0] for client in range(4)]
    wanted = [expected(policy, [observation], seed=3)[0] for observation in observations]
    with serve(max_batch=4) as enter:
        model = HeldModel(policy)
        policy.model.fusion.register_forward_pre_hook(fail)
        answers = model.ask_together(enter, observations)
    assert model.batches == [1, 3, 1, 1, 1]
    np.testing.assert_array_equal(answers, wanted)


def test_health_and_metrics_are_plain_pages(serve):
    with serve() as enter:
        assert get(enter.port, "/healthz")[::2] == (200, "OK\n")
        assert "Server" not in enter().response.headers
        ask(enter(), seen(0)[0])
        status, kind, text = get(enter.port, "/metrics")
    assert status == 200 and kind.startswith("text/plain; version=")
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert lines["priorvla_requests_total"] == "1.0" and lines["priorvla_clients"] == "2.0"
    for name in ("request", "model", "queue"):
        assert lines[f"priorvla_{name}_seconds_count"] == lines[f'priorvla_{name}_seconds_bucket{{le="+Inf"}}'] == "1.0"
