"""A policy server of somebody else's, for tests of what a client makes of it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from websockets.sync.server import ServerConnection, serve

from priorvla.deployment.serving.numpy_messages import decode, encode


@contextmanager
def other_server(answer: Any, port: int = 0, metadata: Any = None) -> Iterator[tuple[int, list]]:
    """A server of somebody else's, which calls `answer(connection, request)`; its port and what it was asked."""
    asked: list[Any] = []

    def talk(connection: ServerConnection) -> None:
        connection.send(encode(metadata or {"robot": "theirs"}))
        for frame in connection:
            asked.append(decode(frame))
            answer(connection, asked[-1])

    with serve(talk, "127.0.0.1", port, compression=None) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.socket.getsockname()[1], asked
        finally:
            server.shutdown()
            thread.join()
