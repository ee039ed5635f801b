"""Asks a policy server for actions. For a robot's computer: numpy, msgpack and websockets, no deep learning.

    client = PolicyClient("192.168.1.5", api_key=key)
    broker = ChunkBroker(client)
    action = broker.select_action({"images": {"front": picture}, "state": joints, "prompt": "open the drawer"})

The server may be `priorvla serve` or any other that speaks openpi's protocol.
"""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from .action_limits import ActionGuard, ActionLimits, require_single_commands
from .serving.server_description import PolicyServerError, limits_of, require_metadata, require_the_same, robot_of

try:
    from websockets.exceptions import ConnectionClosed, InvalidStatus, InvalidURI, WebSocketException
    from websockets.sync.client import ClientConnection, connect

    from .serving.numpy_messages import decode, encode
except ImportError:  # said when a client is made
    decode = None  # type: ignore[assignment]

FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0  # seconds between attempts to connect, doubling
WATCH = "priorvla-send-watch"  # a thread's name
ATTEMPTS = 3  # to have one request answered, each on a connection of its own, all of them within its time
MAX_REPLY = 64_000_000  # bytes
LATER = (429, 502, 503)  # HTTP statuses of a server that may take us later
LEAVING = (1000, 1001, 1012, 1013)  # close codes of a server that has nothing against the request


class PolicyClient:
    """One connection to a policy server, which is one session there. Not for several threads at a time.

    Connects at once, and again whenever the connection is lost, with growing pauses. The server's session is then a new
    one: its noise begins again with the last seed, its past is empty.

    Args:
        host: name or address; or a whole URL, ws://… or wss://…, with its port.
        port: not looked at where host is a URL.
        api_key: sent as `Authorization: Api-Key KEY`.
        tls: True, or a context that trusts the server's certificate, for wss.
        timeout: seconds that `infer` may take, with a lost connection that is made again: actions for what was seen
            longer ago are none to execute.
        connect_timeout: seconds that the first connection may take.

    Raises:
        PolicyServerError: the server does not let us in (a wrong API key, for example), or speaks another version of
            the protocol, or describes itself in a way that makes no sense.
        ConnectionError: nobody answered within `connect_timeout`.
        ValueError: host is a URL of something else.
        ImportError: when msgpack or websockets is not installed.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 8000,
        *,
        api_key: str | None = None,
        tls: ssl.SSLContext | bool = False,
        timeout: float = 15.0,
        connect_timeout: float = 30.0,
    ) -> None:
        if decode is None:
            raise ImportError("a policy client needs msgpack and websockets: run pip install 'priorvla[serve]'")
        name = f"[{host}]" if ":" in host else host  # IPv6
        self._url = host if "://" in host else f"{'wss' if tls else 'ws'}://{name}:{port}"
        self._tls = tls if isinstance(tls, ssl.SSLContext) else None  # wss without a context trusts the system's
        self._headers = None if api_key is None else {"Authorization": f"Api-Key {api_key}"}
        self._timeout = timeout
        self._reset: dict[str, Any] = {}  # what begins an episode; sent once, and again to every new session
        self._reset_is_due = False
        self._connection: ClientConnection | None = None
        self._metadata: dict[str, Any] = {}
        self._watch = _SendWatch()
        self._connected(connect_timeout)

    @property
    def metadata(self) -> dict[str, Any]:
        """What the server said of itself when it was connected to last."""
        return self._metadata

    def infer(self, observation: Mapping[str, Any]) -> dict[str, Any]:
        """Sends an observation in openpi's keys; the reply, with `actions` (H, D) and `server_timing` in ms.

        Raises:
            PolicyServerError: the server refused the observation.
            TimeoutError: no reply in time. The next call connects anew.
            ConnectionError: the connection was lost and could not be made again in time. Look again, and ask with that.
        """
        deadline = time.monotonic() + self._timeout
        for _ in range(ATTEMPTS):
            connection = self._connected(deadline - time.monotonic())
            try:
                with self._watch.until(deadline, connection.socket):
                    connection.send(encode({**observation, **(self._reset if self._reset_is_due else {})}))
                reply = connection.recv(max(0.0, deadline - time.monotonic()))
            except ConnectionClosed as closed:
                self._connection = None
                if closed.rcvd is not None and closed.rcvd.code not in LEAVING:
                    raise PolicyServerError(f"{self._url} closed the connection: {closed.rcvd}") from None
                if time.monotonic() >= deadline:
                    raise self._too_late() from None
                continue
            except TimeoutError:
                self._abandon()
                raise self._too_late() from None
            except BaseException:  # Ctrl-C too: a reply that nobody has awaited would be the next request's
                self._abandon()
                raise
            if isinstance(reply, str):
                self.close()
                raise PolicyServerError(f"{self._url} refused the request: {reply}")
            self._reset_is_due = False
            answer: dict[str, Any] = decode(reply)
            return answer
        raise ConnectionError(f"{self._url} closed the connection {ATTEMPTS} times without a reply")

    def reset(self, seed: int | None = None) -> None:
        """Begins a new episode with the next request: no past, and the noise of `seed` (None: of the server's)."""
        self._reset = {"reset": True} if seed is None else {"reset": True, "seed": seed}
        self._reset_is_due = "protocol_version" in self._metadata  # openpi's own server has no episodes

    def close(self) -> None:
        """Ends the connection; the next request makes a new one."""
        self._watch.stop()
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _abandon(self) -> None:
        """Ends the connection without a goodbye, for which a server that does not read would let us wait."""
        if self._connection is not None:
            _hang_up(self._connection.socket)
            self.close()

    def _too_late(self) -> TimeoutError:
        return TimeoutError(f"{self._url} did not reply within {self._timeout:g} s")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _connected(self, seconds: float) -> ClientConnection:
        """The connection, made within `seconds` if there is none."""
        if self._connection is not None:
            return self._connection
        deadline, pause = time.monotonic() + seconds, FIRST_PAUSE
        while True:
            try:
                self._connection = self._connect_once(deadline)
                return self._connection
            except InvalidURI as error:
                raise ValueError(f"host {self._url} is no websocket's URL: give ws://name:port, or a name") from error
            except ssl.SSLCertVerificationError as error:
                raise PolicyServerError(f"{self._url} has a certificate that is not trusted: {error}") from None
            except (OSError, EOFError, WebSocketException) as error:
                if isinstance(error, InvalidStatus) and error.response.status_code not in LATER:
                    told = (error.response.body or b"").decode(errors="replace").strip()
                    raise PolicyServerError(f"{self._url} answered {error.response.status_code}: {told}") from None
                if time.monotonic() + pause > deadline:
                    told = f"{self._url} could not be reached within {seconds:.3g} s"
                    raise ConnectionError(f"{told}: {error}") from error
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def _connect_once(self, deadline: float) -> ClientConnection:
        connection = connect(
            self._url,
            ssl=self._tls,
            additional_headers=self._headers,
            compression=None,
            max_size=MAX_REPLY,
            open_timeout=max(0.1, deadline - time.monotonic()),
            close_timeout=1.0,
            proxy=None,  # a robot's network is its own
        ).__enter__()  # newer versions want it entered; to leave it is to close it
        try:
            metadata = connection.recv(max(0.1, deadline - time.monotonic()))
            if isinstance(metadata, str):
                raise PolicyServerError(f"{self._url} refused the connection: {metadata}")
            self._metadata = require_metadata(decode(metadata))
        except BaseException:
            connection.close()
            raise
        self._reset_is_due = bool(self._reset) and "protocol_version" in self._metadata
        return connection


class _SendWatch:
    """Hangs up at the deadline, which ends a `send` to a server that has stopped reading.

    One thread sleeps from one deadline to the next and goes when it wakes while nothing is sent, or at `stop`: a timer
    for every request would cost a robot's control loop 0.2 ms. Deadlines must not come earlier than those before.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sending: tuple[float, socket.socket] | None = None
        self._thread: threading.Thread | None = None
        self._stopped = threading.Event()

    @contextmanager
    def until(self, deadline: float, connected: socket.socket) -> Iterator[None]:
        with self._lock:
            self._sending = (deadline, connected)
            if self._thread is None or not self._thread.is_alive():  # which it is not after a fork
                self._stopped = threading.Event()
                told = (deadline, self._stopped)
                self._thread = threading.Thread(target=self._watch, args=told, name=WATCH, daemon=True)
                self._thread.start()
        try:
            yield
        finally:
            with self._lock:
                self._sending = None

    def stop(self) -> None:
        with self._lock:
            self._stopped.set()
            self._thread = None

    def _watch(self, deadline: float, stopped: threading.Event) -> None:
        while not stopped.wait(max(0.0, deadline - time.monotonic())):
            with self._lock:
                if stopped.is_set():
                    return
                if self._sending is None or self._sending[0] <= time.monotonic():
                    if self._sending is not None:
                        _hang_up(self._sending[1])
                    self._thread = None
                    return
                deadline = self._sending[0]


def _hang_up(connected: socket.socket) -> None:
    with suppress(OSError):  # is closed already
        socket.socket.shutdown(connected, socket.SHUT_RDWR)  # not TLS' own, which goes on without encryption


class ChunkBroker:
    """One action a control step from a server that predicts chunks: executes the first steps of one, then asks again.

    Tells a server whose model looks back (`history_size` in its metadata) what was executed in between. Keeps the
    commands within limits: a server cannot, for it does not know which of its actions are executed, and when.

    Drives the robot that the server described when the broker was made, under the limits of then. Another robot, or
    other limits, behind the same address are an error.

    Args:
        execute_steps: of a chunk; None: as many as the server recommends, or else all.
        limits: of what the robot may be told; None: those that the server tells of, if any. `ActionLimits()` has none.

    Raises:
        ValueError: when execute_steps is not between 1 and the chunk's length, limits do not fit the robot, or the
            server, which is not ours, does not say which robot that is, or the robot's actions were recorded relative
            to the state at a chunk's start.
        ImportError: when jerk is limited without ruckig.
    """

    def __init__(
        self, client: PolicyClient, execute_steps: int | None = None, limits: ActionLimits | None = None
    ) -> None:
        self._told = told = client.metadata
        longest = told.get("chunk_size")
        if execute_steps is not None and (execute_steps < 1 or (longest is not None and execute_steps > longest)):
            raise ValueError(f"execute_steps={execute_steps} must be between 1 and the chunk's {longest or ''} steps")
        self._body = robot_of(told)
        if self._body is None and limits is not None:
            raise ValueError("this server does not say which robot it drives: keep your limits yourself")
        if self._body is not None:
            require_single_commands(self._body)
        self._client, self._execute_steps = client, execute_steps
        self._limits = limits_of(told, self._body) if limits is None and self._body is not None else limits
        self._guard = self._new_guard()
        self._queue: deque[NDArray[Any]] = deque()
        self._executed: list[tuple[Any, NDArray[Any]]] = []

    def select_action(self, observation: Mapping[str, Any]) -> NDArray[Any]:
        """The next action (D,); sends the observation when the chunk is used up.

        Errors as `PolicyClient.infer`, after which `hold` still answers; PolicyServerError also where the reply is no
        chunk of finite actions of this robot, or the server has become another. ValueError where an episode's first
        state does not say where the robot is and limits need to know.
        """
        if not self._queue:
            reply = self._client.infer({**observation, **self._past()})
            require_the_same(self._told, self._client.metadata)
            self._executed.clear()
            self._queue.extend(self._first_steps(reply))
        state = observation.get("observation/state", observation.get("state"))
        action = self._queue[0] if self._guard is None else self._guard.apply(self._queue[0], state)
        self._queue.popleft()
        if self._client.metadata.get("history_size"):
            self._executed.append((np.array(state), action))  # a copy: robots fill one array again and again
        return action

    def hold(self) -> NDArray[Any]:
        """The command (D,) that keeps the robot where it is, for when `select_action` has failed or there is a pause.

        What is left of the chunk is thrown away: the next action is of a new one, from what is seen then. Raises
        ValueError before an episode's first action, or where the server does not say which robot it drives.
        """
        self._queue.clear()
        if self._guard is None:
            raise ValueError("this server does not say which robot it drives, so that nobody knows how to hold it")
        return self._guard.hold()

    def reset(self, seed: int | None = None) -> None:
        """Forgets the episode, here and on the server; call before every new one."""
        self._queue.clear()
        self._executed.clear()
        self._guard = self._new_guard()
        self._client.reset(seed)

    def _new_guard(self) -> ActionGuard | None:
        """For one episode; None where the server does not say which robot it drives."""
        return None if self._body is None else ActionGuard(self._limits, self._body)

    def _first_steps(self, reply: Mapping[str, Any]) -> NDArray[Any]:
        """Those of a reply's actions that are executed. Raises PolicyServerError where they cannot be."""
        chunk = np.asarray(reply.get("actions"))
        fits = chunk.ndim == 2 and len(chunk) and (self._body is None or chunk.shape[1] == self._body.action_dim)
        if not fits or chunk.dtype.kind not in "iuf" or not np.isfinite(chunk).all():
            wide = "D" if self._body is None else self._body.action_dim
            told = f"{chunk.dtype} of shape {chunk.shape}"
            raise PolicyServerError(
                f"the server sent no chunk (H, {wide}) of finite actions but {told}: execute nothing of it"
            )
        steps = self._execute_steps or self._client.metadata.get("execute_steps")
        return chunk[:steps]

    def _past(self) -> dict[str, NDArray[Any]]:
        if not self._executed:
            return {}
        states, actions = (np.stack(values) for values in zip(*self._executed, strict=True))
        return {"executed/states": states, "executed/actions": actions}


__all__ = ["ChunkBroker", "PolicyClient", "PolicyServerError"]
