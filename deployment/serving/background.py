"""A policy server in a thread of this process: for examples, notebooks and tests."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager

from .policy_server import PolicyServer


@contextmanager
def serve_in_background(
    server: PolicyServer, *, host: str = "127.0.0.1", port: int = 0, tls: ssl.SSLContext | None = None
) -> Iterator[int]:
    """Runs `server` while the block runs; gives its port. Raises what kept it from starting, or what ended it."""
    loop, stop = asyncio.new_event_loop(), asyncio.Event()
    started: Future[int] = Future()
    ended: Future[None] = Future()

    def work() -> None:
        try:
            loop.run_until_complete(server.run(stop, host=host, port=port, tls=tls, started=started.set_result))
            ended.set_result(None)
        except BaseException as error:
            (ended if started.done() else started).set_exception(error)

    thread = threading.Thread(target=work, name="priorvla-server", daemon=True)
    thread.start()
    try:
        yield started.result()
        loop.call_soon_threadsafe(stop.set)
        ended.result()
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()


__all__ = ["serve_in_background"]
