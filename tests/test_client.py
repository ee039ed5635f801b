"""The robot's side of the wire: small, patient when the server is away, and the same actions as the policy itself."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest

if not all(map(find_spec, ("msgpack", "prometheus_client", "websockets"))):
    pytest.skip("needs the extra 'serve'", allow_module_level=True)
from websockets.exceptions import ConnectionClosed
from websockets.server import ServerProtocol
from websockets.sync.server import ServerConnection

from priorvla.configuration.embodiment import Embodiment
from priorvla.deployment.action_limits import ActionLimits
from priorvla.deployment.client import ChunkBroker, PolicyClient, PolicyServerError
from priorvla.deployment.policy import PriorVLAPolicy
from priorvla.deployment.serving.background import serve_in_background
from priorvla.deployment.serving.numpy_messages import encode
from priorvla.deployment.serving.policy_server import PolicyServer
from priorvla.deployment.serving.server_limits import ServerLimits

BIT_EQUAL = ServerLimits(max_batch=1, rate_limit=1e6)


@pytest.fixture(scope="module")
def policy(save_policy, tiny_backbone, tmp_path_factory) -> PriorVLAPolicy:
    """Remembers four steps, executes two of a chunk's six."""
    random = np.random.default_rng(0)
    body = Embodiment("arm", ["x", "y", "z", "grip"], ["a", "b", "c"], 10.0, cameras=["top"])
    body = body.with_statistics(random.normal(size=(50, 3)), random.normal(size=(50, 4)))
    folder = save_policy(tmp_path_factory.mktemp("policy"), [body], use_history=True, history_size=4)
    return PriorVLAPolicy.from_pretrained(folder, backbone=tiny_backbone, execute_steps=2)


def episode(seed: int, steps: int) -> list[dict[str, Any]]:
    random = np.random.default_rng(seed)
    return [
        {
            "state": random.normal(size=3).astype(np.float32),
            "images": {"top": random.integers(0, 256, (28, 28, 3), dtype=np.uint8)},
            "prompt": "open the drawer",
        }
        for _ in range(steps)
    ]


def locally(policy: PriorVLAPolicy, observations: list[dict[str, Any]], seed: int) -> np.ndarray:
    """What the policy does by itself."""
    policy.reset(seed)
    return np.stack([policy.select_action({**seen, "instruction": seen["prompt"]}) for seen in observations])


ROBOT = """
import sys

class FewPackages:
    def find_spec(self, name, path=None, target=None):
        top = name.split(".")[0]
        if top not in {"priorvla", "msgpack", "numpy", "websockets", "wrapt", *sys.stdlib_module_names}:
            raise ModuleNotFoundError(f"No module named {top!r}", name=top)

sys.meta_path.insert(0, FewPackages())
from priorvla.deployment.client import PolicyClient
try:
    PolicyClient(port=1, connect_timeout=0)
except ConnectionError:
    print("asked")
"""


def test_the_client_needs_no_more_packages_than_its_documentation_says():
    done = subprocess.run([sys.executable, "-c", ROBOT], cwd="/", capture_output=True, text=True)
    assert done.stdout.strip() == "asked", done.stderr


def test_a_broker_over_the_network_does_what_the_policy_does_by_itself_to_the_bit(policy):
    first, second = episode(0, 7), episode(1, 5)
    wanted = locally(policy, first, seed=5), locally(policy, second, seed=6)
    with serve_in_background(PolicyServer(policy, limits=BIT_EQUAL)) as port, PolicyClient(port=port) as client:
        assert client.metadata["history_size"] == 4
        broker = ChunkBroker(client)
        for observations, seed, actions in zip((first, second), (5, 6), wanted, strict=True):
            broker.reset(seed)
            np.testing.assert_array_equal([broker.select_action(seen) for seen in observations], actions)


def test_the_past_that_a_broker_tells_of_matters(policy):
    observations = episode(2, 6)
    wanted = locally(policy, observations, seed=0)
    with serve_in_background(PolicyServer(policy, limits=BIT_EQUAL)) as port, PolicyClient(port=port) as client:
        silent = [client.infer(seen)["actions"][:2] for seen in observations[::2]]
    np.testing.assert_array_equal(silent[0], wanted[:2])
    assert not np.allclose(silent[1], wanted[2:4], atol=1e-4)


RATES = {"max_rate": [1.0, None, None, None], "start": ["b", None, None, None]}
LIMITS = ActionLimits(low=-0.5, high=[0.5, 0.5, None, 0.5], **RATES)


@pytest.fixture
def limited(policy) -> PriorVLAPolicy:
    return PriorVLAPolicy(policy.model, policy.processor, execute_steps=2, limits=LIMITS)


def test_a_broker_keeps_its_robot_within_the_limits_that_the_server_tells_of(limited):
    first, second = episode(0, 7), episode(1, 5)
    wanted = locally(limited, first, seed=5), locally(limited, second, seed=6)
    with serve_in_background(PolicyServer(limited, limits=BIT_EQUAL)) as port, PolicyClient(port=port) as client:
        told = {"low": [-0.5] * 4, "high": [0.5, 0.5, None, 0.5], **RATES}
        assert client.metadata["action_limits"] == told
        broker = ChunkBroker(client)
        for observations, seed, actions in zip((first, second), (5, 6), wanted, strict=True):
            broker.reset(seed)
            np.testing.assert_array_equal([broker.select_action(seen) for seen in observations], actions)
        np.testing.assert_array_equal(broker.hold(), actions[-1])
    assert np.abs(np.diff(wanted[0][:, 0])).max() == pytest.approx(0.1, abs=1e-6)  # at 10 Hz, from step to step


def test_the_server_itself_limits_nothing_for_it_does_not_know_what_is_executed(policy, limited):
    (seen,) = episode(0, 1)
    chunks = []
    for served in (policy, limited):
        with serve_in_background(PolicyServer(served, limits=BIT_EQUAL)) as port, PolicyClient(port=port) as client:
            chunks.append(client.infer(seen)["actions"])
    np.testing.assert_array_equal(*chunks)
    assert np.abs(chunks[0][:, 0]).max() > 0.5


def test_a_brokers_own_limits_stand_instead_of_the_servers(limited):
    (seen,) = episode(0, 1)
    with serve_in_background(PolicyServer(limited, limits=BIT_EQUAL)) as port, PolicyClient(port=port) as client:
        client.reset()
        chunk = client.infer(seen)["actions"]
        client.reset()
        np.testing.assert_array_equal(ChunkBroker(client, limits=ActionLimits()).select_action(seen), chunk[0])
        client.reset()
        np.testing.assert_allclose(ChunkBroker(client, limits=ActionLimits(high=-9)).select_action(seen), -9)
        with pytest.raises(ValueError, match="high has 2 numbers, 'arm' has 4 action dims"):
            ChunkBroker(client, limits=ActionLimits(high=[1, 2]))


def test_a_robot_that_the_server_does_not_describe_can_be_neither_limited_nor_held(other_server):
    def chunk(connection: ServerConnection, request: Any) -> None:
        connection.send(encode({"actions": np.zeros((2, 3))}))

    with other_server(chunk) as (port, _), PolicyClient(port=port) as client:
        np.testing.assert_array_equal(ChunkBroker(client).select_action({"state": np.zeros(3)}), np.zeros(3))
        with pytest.raises(ValueError, match="does not say which robot"):
            ChunkBroker(client).hold()
        with pytest.raises(ValueError, match="keep your limits yourself"):
            ChunkBroker(client, limits=ActionLimits(high=1))


def test_a_broker_executes_as_many_steps_as_it_is_told(policy):
    (seen,) = episode(3, 1)
    with serve_in_background(PolicyServer(policy, limits=BIT_EQUAL)) as port, PolicyClient(port=port) as client:
        chunk = client.infer(seen)["actions"]
        client.reset()
        broker = ChunkBroker(client, execute_steps=6)
        np.testing.assert_array_equal([broker.select_action(seen) for _ in range(6)], chunk)
        for steps in (0, 7):
            with pytest.raises(ValueError, match=f"execute_steps={steps} must be between 1 and the chunk's 6"):
                ChunkBroker(client, execute_steps=steps)


def test_a_refused_observation_is_an_error_in_the_servers_words_and_the_next_is_served(policy):
    (seen,) = episode(4, 1)
    with serve_in_background(PolicyServer(policy)) as port, PolicyClient(port=port) as client:
        with pytest.raises(PolicyServerError, match="camera 'top' is missing"):
            client.infer({**seen, "images": {}})
        assert client.infer(seen)["actions"].shape == (6, 4)


def test_a_message_that_is_too_large_is_an_error_and_not_tried_again(policy):
    (seen,) = episode(4, 1)
    large = {**seen, "images": {"top": np.zeros((100, 100, 3), np.uint8)}}
    with (
        serve_in_background(PolicyServer(policy, limits=ServerLimits(max_message_mb=0.01))) as port,
        PolicyClient(port=port) as client,
    ):
        with pytest.raises(PolicyServerError, match="1009"):
            client.infer(large)
        assert client.infer(seen)["actions"].shape == (6, 4)


def test_a_server_that_comes_back_is_found_again_and_the_episode_begins_with_its_seed(policy):
    (seen,) = episode(5, 1)
    server = PolicyServer(policy, limits=BIT_EQUAL)
    with serve_in_background(server) as port:
        client = PolicyClient(port=port)
        client.reset(seed=9)
        before = client.infer(seen)["actions"]
    with serve_in_background(PolicyServer(policy, limits=BIT_EQUAL), port=port), client:
        np.testing.assert_array_equal(client.infer(seen)["actions"], before)
        assert not np.array_equal(client.infer(seen)["actions"], before)  # the reset was sent once


def test_a_client_waits_for_a_server_that_starts_later(policy):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    clients: list[PolicyClient] = []
    thread = threading.Thread(target=lambda: clients.append(PolicyClient(port=port)))
    thread.start()
    thread.join(0.3)
    assert thread.is_alive()
    with serve_in_background(PolicyServer(policy), port=port):
        thread.join(30)
        with clients[0] as client:
            assert client.infer(episode(6, 1)[0])["actions"].shape == (6, 4)


def test_nobody_there_is_an_error_after_the_time_given():
    with pytest.raises(ConnectionError, match=r"could not be reached within 0.2 s.*refused"):
        PolicyClient(port=1, connect_timeout=0.2)


def test_a_url_of_something_else_is_an_error_at_once():
    with pytest.raises(ValueError, match="host http://robot is no websocket's URL"):
        PolicyClient("http://robot")


def test_a_wrong_key_is_an_error_at_once(policy):
    with serve_in_background(PolicyServer(policy, api_key="right")) as port:
        with pytest.raises(PolicyServerError, match="answered 401: The API key is missing or wrong"):
            PolicyClient(port=port, api_key="wrong")
        with PolicyClient(f"ws://127.0.0.1:{port}", api_key="right") as client:
            assert client.metadata["embodiment"] == "arm"


def echo(connection: ServerConnection, request: Any) -> None:
    """Answers with the state as a chunk of one step."""
    connection.send(encode({"actions": request["state"][None]}))


def test_openpis_own_server_is_asked_in_its_own_keys_alone(other_server):
    chunk = np.arange(8.0).reshape(4, 2)
    with (
        other_server(lambda connection, _: connection.send(encode({"actions": chunk}))) as (port, asked),
        PolicyClient(port=port) as client,
    ):
        broker = ChunkBroker(client)
        broker.reset(seed=3)
        actions = [broker.select_action({"observation/state": np.zeros(2), "prompt": "go"}) for _ in range(5)]
    np.testing.assert_array_equal(actions, [*chunk, chunk[0]])
    assert [set(request) for request in asked] == [{"observation/state", "prompt"}] * 2


def test_a_server_that_hangs_is_a_timeout_and_one_that_hangs_up_is_asked_again(other_server):
    calls: list[int] = []

    def hang_up_twice(connection: ServerConnection, _: Any) -> None:
        calls.append(1)
        if len(calls) < 3:
            connection.socket.shutdown(socket.SHUT_RDWR)
        else:
            connection.send(encode({"actions": np.zeros((1, 2))}))

    with other_server(hang_up_twice) as (port, _), PolicyClient(port=port, timeout=30) as client:
        assert client.infer({"prompt": "go"})["actions"].shape == (1, 2)
    with (
        other_server(lambda *_: None) as (port, _),
        PolicyClient(port=port, timeout=0.2) as client,
        pytest.raises(TimeoutError, match=r"did not reply within 0.2 s"),
    ):
        client.infer({"prompt": "go"})


def test_what_was_seen_before_the_server_was_away_for_too_long_is_not_sent_any_more(other_server):
    told: list[BaseException] = []

    def ask() -> None:
        try:
            client.infer({"state": np.zeros(1)})
        except (ConnectionError, TimeoutError) as error:
            told.append(error)

    with other_server(echo) as (port, _):
        client = PolicyClient(port=port, timeout=0.5, connect_timeout=60)
    thread = threading.Thread(target=ask)
    thread.start()
    thread.join(10)
    with other_server(echo, port) as (_, asked):
        thread.join()
        client.close()
    assert not asked and isinstance(told[0], ConnectionError)


def test_a_request_that_is_interrupted_takes_its_reply_along(other_server):
    asked_once, go_on = threading.Event(), threading.Event()

    def slow(connection: ServerConnection, request: Any) -> None:
        asked_once.set()
        assert go_on.wait(30)
        with suppress(ConnectionClosed):
            echo(connection, request)

    def interrupt() -> None:
        assert asked_once.wait(30)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)

    # as Ctrl-C would, which a program in the background may never get
    before = signal.signal(signal.SIGUSR1, signal.default_int_handler)
    with other_server(slow) as (port, _), PolicyClient(port=port, timeout=30) as client:
        thread = threading.Thread(target=interrupt)
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            client.infer({"state": np.ones(1)})
        thread.join()
        go_on.set()
        for value in (2.0, 3.0, 4.0):
            np.testing.assert_array_equal(client.infer({"state": np.full(1, value)})["actions"], [[value]])
    signal.signal(signal.SIGUSR1, before)


@contextmanager
def stops_reading_after(answers: int) -> Iterator[int]:
    """The port of a server that answers so many requests on each of its connections, and then reads no more."""
    leave = threading.Event()

    def talk(connected: socket.socket) -> None:
        protocol, asked = ServerProtocol(), 0
        with connected, suppress(OSError):
            while not (events := protocol.events_received()):
                protocol.receive_data(connected.recv(65536))
            protocol.send_response(protocol.accept(events[0]))
            protocol.send_binary(encode({"robot": "theirs"}))
            connected.sendall(b"".join(protocol.data_to_send()))
            while asked < answers:
                protocol.receive_data(connected.recv(65536))
                for _ in protocol.events_received():
                    asked += 1
                    protocol.send_binary(encode({"actions": np.zeros((1, 1))}))
                connected.sendall(b"".join(protocol.data_to_send()))
            leave.wait(20)

    def accept(listening: socket.socket) -> None:
        with suppress(OSError):
            while True:
                connected, _ = listening.accept()
                threading.Thread(target=talk, args=(connected,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=accept, args=(listening,), daemon=True).start()
        try:
            yield listening.getsockname()[1]
        finally:
            leave.set()


def watches() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "priorvla-send-watch"]


@pytest.mark.parametrize(("answers", "pause"), [(0, 0.0), (3, 0.0), (3, 1.0)])
def test_a_server_that_stops_reading_is_a_timeout(answers: int, pause: float):
    small, large = {"state": np.zeros(1)}, {"image": np.zeros(50_000_000, np.uint8)}  # more than buffers hold
    for thread in watches():  # of other tests' clients, which were closed
        thread.join(5)
        assert not thread.is_alive()
    with stops_reading_after(answers) as port, PolicyClient(port=port, timeout=0.5) as client:
        for _ in range(2):  # the second time on a connection of its own
            for _ in range(answers):
                client.infer(small)
                assert len(watches()) == 1  # one for all requests
            time.sleep(pause)
            assert len(watches()) == int(bool(answers) and not pause)  # it goes when nothing is sent
            began = time.monotonic()
            with pytest.raises(TimeoutError, match=r"did not reply within 0.5 s"):
                client.infer(large)
            assert time.monotonic() - began < 5


def test_a_broker_tells_of_the_states_that_there_were_though_the_robot_fills_one_array(other_server):
    def three(connection: ServerConnection, _: Any) -> None:
        connection.send(encode({"actions": np.zeros((3, 1))}))

    state = np.zeros(1)
    metadata = {"history_size": 4, "protocol_version": 1}
    with other_server(three, metadata=metadata) as (port, asked), PolicyClient(port=port) as client:
        broker = ChunkBroker(client)
        for step in range(4):
            state[:] = step
            broker.select_action({"state": state})
    np.testing.assert_array_equal(asked[1]["executed/states"], [[0], [1], [2]])


@pytest.mark.parametrize(
    "actions", [np.full((3, 1), np.nan), np.zeros((0, 1)), np.zeros(3), np.array([["a"]]), None], ids=str
)
def test_a_broker_executes_nothing_but_a_chunk_of_finite_actions(actions, other_server):
    with (
        other_server(lambda connection, _: connection.send(encode({"actions": actions}))) as (port, _),
        PolicyClient(port=port) as client,
        pytest.raises(PolicyServerError, match=r"no chunk .* of finite actions but .* of shape"),
    ):
        ChunkBroker(client).select_action({"state": np.zeros(1)})


def test_a_server_that_hangs_up_on_every_request_is_given_up_in_the_end(other_server):
    with (
        other_server(lambda connection, _: connection.close()) as (port, asked),
        PolicyClient(port=port) as client,
        pytest.raises(ConnectionError, match="closed the connection 3 times"),
    ):
        client.infer({"prompt": "go"})
    assert len(asked) == 3


def test_metadata_is_plain_and_can_be_written_down(policy):
    with serve_in_background(PolicyServer(policy)) as port, PolicyClient(port=port) as client:
        assert json.loads(json.dumps(client.metadata)) == client.metadata
