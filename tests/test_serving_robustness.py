"""Whatever a client does, the server answers the next one: malformed frames, lost connections, limits, keys, TLS."""

from __future__ import annotations

import asyncio
import shutil
import socket
import ssl
import struct
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest

if not all(map(find_spec, ("msgpack", "prometheus_client", "websockets"))):
    pytest.skip("needs the extra 'serve'", allow_module_level=True)
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from priorvla.configuration.embodiment import Embodiment
from priorvla.deployment.policy import PriorVLAPolicy
from priorvla.deployment.serving.background import serve_in_background
from priorvla.deployment.serving.numpy_messages import decode, encode
from priorvla.deployment.serving.policy_server import PolicyServer
from priorvla.deployment.serving.server_limits import ServerLimits, TokenBucket

OBSERVATION = {
    "observation/image": np.arange(28 * 28 * 3, dtype=np.uint8).reshape(28, 28, 3),
    "observation/state": np.array([0.1, -0.2, 0.3]),
    "prompt": "open the drawer",
}


@pytest.fixture(scope="module")
def policy(save_policy, tiny_backbone, tmp_path_factory) -> PriorVLAPolicy:
    random = np.random.default_rng(0)
    body = Embodiment("arm", ["x", "y", "z", "grip"], ["a", "b", "c"], 10.0, cameras=["top"])
    body = body.with_statistics(random.normal(size=(50, 3)), random.normal(size=(50, 4)))
    folder = save_policy(tmp_path_factory.mktemp("policy"), [body])
    return PriorVLAPolicy.from_pretrained(folder, backbone=tiny_backbone)


class Served:
    """A running server, and a client who shows that it still answers."""

    def __init__(self, server: PolicyServer, port: int) -> None:
        self.server, self.port = server, port
        self._witness = self.enter()
        self._expected = self.actions(self._witness, reset=True)

    def enter(self, **arguments: Any) -> ClientConnection:
        connection = connect(f"ws://127.0.0.1:{self.port}", compression=None, proxy=None, **arguments).__enter__()
        assert decode(connection.recv(10))["embodiment"] == "arm"
        return connection

    def actions(self, connection: ClientConnection, **orders: Any) -> np.ndarray:
        connection.send(encode({**OBSERVATION, **orders}))
        return decode(connection.recv(30))["actions"]

    def require_unharmed(self) -> None:
        """An old client and a new one get what was right before, to the bit."""
        np.testing.assert_array_equal(self.actions(self._witness, reset=True), self._expected)
        with self.enter() as connection:
            np.testing.assert_array_equal(self.actions(connection), self._expected)

    def page(self, path: str, **headers: str) -> str:
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", headers=headers)
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.read().decode()

    def count(self, metric: str) -> float:
        lines = [line for line in self.page("/metrics").splitlines() if line.startswith(f"priorvla_{metric} ")]
        return float(lines[0].split()[1]) if lines else 0.0

    def until(self, metric: str, value: float) -> None:
        """Waits until a metric has a value."""
        for _ in range(1000):
            if self.count(metric) == value:
                return
            threading.Event().wait(0.01)
        raise AssertionError(f"{metric} is {self.count(metric)}, not {value}")


@pytest.fixture
def serve(policy):
    @contextmanager
    def start(**arguments: Any) -> Iterator[Served]:
        limits = {"max_batch": 1, "rate_limit": 1e6, **arguments.pop("limits", {})}
        server = PolicyServer(policy, limits=ServerLimits(**limits), **arguments)
        with serve_in_background(server) as port:
            yield Served(server, port)

    return start


@pytest.fixture
def busy_model(policy):
    """While the event is not set, predictions wait; `began` and `ended` count those that have begun to and ended."""
    free = threading.Event()
    free.set()
    free.began = free.ended = 0

    def wait(*_: Any) -> None:
        free.began += 1
        is_free = free.wait(30)
        free.ended += 1
        assert is_free

    handle = policy.model.fusion.register_forward_pre_hook(wait)
    yield free
    free.set()
    handle.remove()


def refused(connection: ClientConnection, code: int = 1011) -> str:
    """The one text frame, after which the connection is closed with `code`."""
    told = connection.recv(10)
    assert isinstance(told, str) and 10 < len(told) <= 500 and "Traceback" not in told
    with pytest.raises(ConnectionClosed) as closed:
        connection.recv(10)
    assert closed.value.rcvd is not None and closed.value.rcvd.code == code
    return told


def frames() -> dict[str, bytes]:
    """Frames of which none is a request."""
    good, random = encode(OBSERVATION), np.random.default_rng(0)
    array = b"\x84\xc4\x0b__ndarray__\xc3\xc4\x04data\xc4\x00\xc4\x05dtype\xa3%b\xc4\x05shape%b"
    huge = b"\x92" + 2 * (b"\xcf" + struct.pack(">Q", 2**32))
    made = {
        "empty": b"",
        "half": good[: len(good) // 2],
        "all but a byte": good[:-1],
        "a byte more": good + b"\x00",
        "nested": b"\x91" * 50_000,
        "a huge shape": array % (b"|u1", huge),
        "an object array": array % (b"|O8", b"\x91\x00"),
        "a number": b"\x05",
        "a state of words": encode({**OBSERVATION, "observation/state": ["a", "b", "c"]}),
        "a float image": encode({**OBSERVATION, "observation/image": np.zeros((28, 28, 3), np.float32)}),
        "a huge picture of nothing": encode({**OBSERVATION, "observation/image": np.zeros((0, 10**6, 3), np.uint8)}),
        "a prompt in bytes": encode({**OBSERVATION, "prompt": b"\xff"}),
        "a state that is not finite": encode({**OBSERVATION, "observation/state": np.array([0, np.inf, 0])}),
        "another robot's state": encode({**OBSERVATION, "state": 0, "observation/state": np.zeros(7)}),
    }
    return made | {f"random {index}": random.bytes(50 + 40 * index) for index in range(8)}


def test_a_malformed_frame_is_told_of_and_closes_its_own_connection_alone(serve):
    with serve() as served:
        for name, frame in frames().items():
            with served.enter() as connection:
                connection.send(frame)
                assert refused(connection), name
        with served.enter() as connection:
            connection.send("a text frame")
            assert "binary" in refused(connection)
        served.require_unharmed()
        kinds = served.count('errors_total{kind="malformed"}'), served.count('errors_total{kind="bad_request"}')
        assert sum(kinds) == len(frames()) + 1 and min(kinds) > 3
        assert served.count('errors_total{kind="model"}') == 0


def handshake(port: int) -> socket.socket:
    """A websocket that has been opened by hand, so that what follows need not be websocket."""
    raw = socket.create_connection(("127.0.0.1", port), timeout=10)
    lines = ["GET / HTTP/1.1", "Host: x", "Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13"]
    raw.sendall("\r\n".join([*lines, "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==", "", ""]).encode())
    assert raw.recv(4096).startswith(b"HTTP/1.1 101")
    return raw


def test_bytes_that_are_no_websocket_harm_nobody(serve):
    random = np.random.default_rng(1)
    with serve() as served:
        for start in (b"", b"GET / HTTP/1.1\r\n", b"GET /healthz HTTP/9\r\n\r\n", b"\x16\x03\x01\x02\x00\x01"):
            with socket.create_connection(("127.0.0.1", served.port), timeout=10) as raw:
                raw.sendall(start + random.bytes(200))
        for frame in (b"\x82\x05hello", b"\xff\xff" + random.bytes(100), b"\x89\xff" + b"\xff" * 8, b"\x00" * 64):
            with handshake(served.port) as raw:
                raw.sendall(frame)
        served.until("clients", 1)
        served.require_unharmed()


def test_clients_who_vanish_in_the_middle_of_anything_harm_nobody(serve, busy_model):
    request = encode(OBSERVATION)
    head = b"\x82\xff" + struct.pack(">Q", len(request)) + b"\x00" * 4  # masked with zeros
    with serve() as served:
        for sent in (b"", head[:5], head + request[:1000], head + request):
            for reset in (False, True):
                raw = handshake(served.port)
                raw.sendall(sent)
                if reset:  # no closing of any kind
                    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                raw.close()
        served.until("clients", 1)
        busy_model.clear()
        before = busy_model.began
        waiting = [served.enter() for _ in range(3)]
        for connection in waiting:
            connection.send(request)
        for connection in waiting:
            connection.socket.shutdown(socket.SHUT_RDWR)
        served.until("clients", 1)
        busy_model.set()
        served.require_unharmed()
        assert busy_model.began - before <= 3  # the two who still waited cost the model nothing


def test_a_request_that_takes_too_long_is_an_error_and_the_next_is_served(serve, busy_model):
    with serve() as served:
        busy_model.clear()
        set_timeout(served, 0.2)
        with served.enter() as one, served.enter() as two:
            one.send(encode(OBSERVATION))
            two.send(encode(OBSERVATION))
            assert "no answer after 0.2 s" in refused(one)
            assert "no answer after 0.2 s" in refused(two)
        busy_model.set()
        served.until('errors_total{kind="timeout"}', 2)
        set_timeout(served, 30)
        served.require_unharmed()


def set_timeout(served: Served, seconds: float) -> None:
    """Of a server that runs: what a busy machine has to answer in time is asked with another."""
    object.__setattr__(served.server.limits, "request_timeout", seconds)


def test_a_server_that_stops_does_not_wait_for_a_prediction_that_nobody_waits_for(serve, busy_model):
    with serve() as served, served.enter() as connection:
        busy_model.clear()
        before = busy_model.ended
        set_timeout(served, 0.2)
        connection.send(encode(OBSERVATION))
        assert "no answer" in refused(connection)
        set_timeout(served, 30)
    assert busy_model.ended == before


def test_a_server_that_stops_does_not_wait_for_a_client_who_has_asked_too_often(serve):
    with serve(limits={"rate_limit": 0.05}) as served:
        connection = served.enter()
        served.actions(connection)
        connection.send(encode(OBSERVATION))
        served.until("throttled_requests_total", 1)
    with pytest.raises(ConnectionClosed) as closed:
        connection.recv(10)
    assert closed.value.rcvd.code == 1001


def test_a_message_beyond_the_limit_closes_its_connection(serve):
    with serve(limits={"max_message_mb": 0.01}) as served:
        with served.enter() as connection:
            connection.send(encode({**OBSERVATION, "observation/image": np.zeros((100, 100, 3), np.uint8)}))
            with pytest.raises(ConnectionClosed) as closed:
                connection.recv(10)
            assert closed.value.rcvd.code == 1009
        served.until('errors_total{kind="too_large"}', 1)
        served.require_unharmed()


def test_who_asks_too_often_waits_and_is_answered(serve):
    with serve(limits={"rate_limit": 0.5}) as served:
        served.require_unharmed()
        assert served.count("throttled_requests_total") == 1  # the old client's second; the new one has its own


def test_a_bucket_admits_its_rate_and_saves_up_a_second(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    bucket = TokenBucket(4)
    assert [bucket.take() for _ in range(6)] == [0, 0, 0, 0, 0.25, 0.5]
    now[0] += 0.75
    assert bucket.take() == 0
    now[0] += 1000
    assert [bucket.take() for _ in range(5)] == [0, 0, 0, 0, 0.25]
    slow = TokenBucket(0.5)
    assert [slow.take(), slow.take()] == [0, 2]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_clients", 0),
        ("max_batch", 0),
        ("batch_window_ms", -1),
        ("max_message_mb", 0),
        ("rate_limit", float("nan")),
        ("request_timeout", float("inf")),
    ],
)
def test_limits_are_positive(field, value):
    with pytest.raises(ValueError, match=f"{field}={value} must be"):
        ServerLimits(**{field: value})


def test_more_clients_than_the_server_takes_are_told_to_come_later(serve):
    with serve(limits={"max_clients": 2}) as served:
        with served.enter():
            with pytest.raises(InvalidStatus) as full:
                served.enter()
            assert full.value.response.status_code == 503
            assert served.page("/healthz") == "OK\n"
        served.until("clients", 1)
        served.require_unharmed()


def test_a_web_page_of_another_place_cannot_connect(serve):
    with serve() as served:
        with pytest.raises(InvalidStatus) as foreign:
            served.enter(origin="https://example.com")
        assert foreign.value.response.status_code == 403
        with served.enter(origin=f"http://127.0.0.1:{served.port}") as connection:
            served.actions(connection)


@pytest.mark.parametrize(("name", "is_let_in"), [("evil.example", False), ("localhost", True), ("127.0.0.1", True)])
def test_a_web_page_whose_name_means_this_machine_cannot_connect(serve, name, is_let_in):
    with serve() as served, socket.create_connection(("127.0.0.1", served.port)) as raw:
        place = f"{name}:{served.port}"
        if is_let_in:
            with connect(f"ws://{place}", sock=raw, origin=f"http://{place}", proxy=None) as connection:
                assert decode(connection.recv(10))["embodiment"] == "arm"
        else:
            with pytest.raises(InvalidStatus) as foreign:
                connect(f"ws://{place}", sock=raw, origin=f"http://{place}", proxy=None).__enter__()
            assert foreign.value.response.status_code == 403


def test_only_who_has_the_key_comes_in(policy):
    key = "a-key-of-ours"
    with serve_in_background(PolicyServer(policy, api_key=key)) as port:
        url = f"127.0.0.1:{port}"
        for header in ({}, {"Authorization": "Api-Key wrong"}, {"Authorization": key}, {"Authorization": "Api-Key ü"}):
            with pytest.raises(InvalidStatus) as refusal:
                connect(f"ws://{url}", additional_headers=header, proxy=None).__enter__()
            assert refusal.value.response.status_code == 401
        twice = [("Authorization", f"Api-Key {key}"), ("Authorization", "Api-Key other")]
        with pytest.raises(InvalidStatus):
            connect(f"ws://{url}", additional_headers=twice, proxy=None).__enter__()
        with connect(f"ws://{url}", additional_headers={"Authorization": f"Api-Key {key}"}, proxy=None) as connection:
            assert decode(connection.recv(10))["embodiment"] == "arm"
        with urllib.request.urlopen(f"http://{url}/healthz", timeout=10) as answer:
            assert answer.read() == b"OK\n"
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(f"http://{url}/metrics", timeout=10)
        allowed = urllib.request.Request(f"http://{url}/metrics", headers={"Authorization": f"Api-Key {key}"})
        with urllib.request.urlopen(allowed, timeout=10) as answer:
            assert b'priorvla_errors_total{kind="unauthorised"} 6.0' in answer.read()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make a certificate")
def test_tls_with_a_certificate_of_ones_own(policy, tmp_path):
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.load_cert_chain(certificate, key)
    with serve_in_background(PolicyServer(policy), tls=server_side) as port:
        trusting = ssl.create_default_context(cafile=certificate)
        with connect(f"wss://127.0.0.1:{port}", ssl=trusting, compression=None, proxy=None) as connection:
            connection.recv(10)
            connection.send(encode(OBSERVATION))
            assert decode(connection.recv(10))["actions"].shape == (6, 4)
        with urllib.request.urlopen(f"https://127.0.0.1:{port}/healthz", context=trusting, timeout=10) as answer:
            assert answer.read() == b"OK\n"
        with pytest.raises(ssl.SSLCertVerificationError):
            connect(f"wss://127.0.0.1:{port}", proxy=None).__enter__()


def test_a_server_that_stops_finishes_what_it_predicts_and_says_goodbye(policy, busy_model):
    with serve_in_background(PolicyServer(policy)) as port:
        idle, asking = (connect(f"ws://127.0.0.1:{port}", proxy=None).__enter__() for _ in range(2))
        for connection in (idle, asking):
            connection.recv(10)
        busy_model.clear()
        began = busy_model.began
        asking.send(encode(OBSERVATION))
        while busy_model.began == began:
            threading.Event().wait(0.01)
        threading.Timer(0.3, busy_model.set).start()  # while the block below ends
    assert decode(asking.recv(1))["actions"].shape == (6, 4)
    for connection in (idle, asking):
        with pytest.raises(ConnectionClosed) as closed:
            connection.recv(1)
        assert closed.value.rcvd.code == 1001
    with pytest.raises(ConnectionRefusedError):
        connect(f"ws://127.0.0.1:{port}", proxy=None).__enter__()


def test_a_port_that_is_taken_is_an_error_at_the_start(policy):
    with (
        serve_in_background(PolicyServer(policy)) as port,
        pytest.raises(OSError, match=str(port)),
        serve_in_background(PolicyServer(policy), port=port),
    ):
        pytest.fail("it started")


def test_a_model_that_cannot_predict_never_listens(policy):
    def fail(*_: Any) -> None:
        raise RuntimeError("no memory")

    handle = policy.model.fusion.register_forward_pre_hook(fail)
    started: list[int] = []
    try:
        with pytest.raises(RuntimeError, match="no memory"):
            asyncio.run(PolicyServer(policy).run(asyncio.Event(), port=0, started=started.append))
    finally:
        handle.remove()
    assert not started
