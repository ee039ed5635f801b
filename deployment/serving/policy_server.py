"""A policy on the network: openpi's websocket protocol, one session a connection, one model for all of them."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable

from websockets.asyncio.server import ServerConnection, serve

from ...hub_cards.privacy import scrub
from ..policy import PriorVLAPolicy
from .batching import BatchingWorker
from .client_dialogue import ClientDialogue, Service
from .client_requests import RequestReader
from .handshake import Handshake
from .metadata import server_metadata
from .numpy_messages import encode
from .server_limits import ServerLimits
from .server_metrics import ServerMetrics
from .session_model import SessionModel

CLOSE_TIMEOUT = 2.0  # seconds that a closing handshake may take
MAX_WAITING_FRAMES = 2  # of a client that does not wait for its replies; then its socket is no longer read

# Every failed handshake is an error with a traceback there; what clients do wrong is counted and logged by us.
_protocol_logger = logging.getLogger(f"{__name__}.websockets")
_protocol_logger.setLevel(logging.CRITICAL)


class PolicyServer:
    """Serves `policy` to any number of clients, each with a session of its own.

    Args:
        policy: its own session, `select_action` and `reset` stay unused.
        name: of the model, for clients to read; of an absolute path the last component alone.
        limits: see `ServerLimits`.
        api_key: that clients must send; None: whoever reaches the port is served.
        seed: of a connection's noise until the client resets with another. The same seed and observations give the same
            actions.
    """

    def __init__(
        self,
        policy: PriorVLAPolicy,
        *,
        name: str = "",
        limits: ServerLimits | None = None,
        api_key: str | None = None,
        seed: int = 0,
    ) -> None:
        self.limits = limits or ServerLimits()
        self.metrics = ServerMetrics()
        self._model = SessionModel(policy)
        config = policy.model.config
        self._reader = RequestReader(policy.embodiment, config.expert.chunk_size, config.language)
        self._metadata = encode(server_metadata(policy, self._reader, scrub(name), seed))
        self._api_key, self._seed = api_key, seed

    async def run(
        self,
        stop: asyncio.Event,
        *,
        host: str = "127.0.0.1",
        port: int = 8000,
        tls: ssl.SSLContext | None = None,
        started: Callable[[int], None] = lambda port: None,
    ) -> None:
        """Warms the model up, listens until `stop` is set, finishes what is being predicted, closes with 1001.

        port: 0 takes a free one. started: called with the port as soon as clients may come. Raises OSError when the
        port cannot be had.
        """
        await asyncio.to_thread(self._model.warm_up, self.limits.max_batch)
        worker = BatchingWorker(self._model, max_batch=self.limits.max_batch, window=self.limits.batch_window_ms / 1e3)
        service = Service(self._model, worker, self._reader, self.limits, self.metrics, self._metadata, self._seed)
        clients: set[ClientDialogue] = set()

        async def talk(connection: ServerConnection) -> None:
            client = ClientDialogue(connection, service)
            clients.add(client)
            with self.metrics.clients.track_inprogress():
                try:
                    await client.run()
                finally:
                    clients.remove(client)

        admit = Handshake(self.metrics, self._api_key, is_full=lambda: len(clients) >= self.limits.max_clients)
        predicting = asyncio.create_task(worker.run())
        try:
            server = await serve(
                talk,
                host,
                port,
                ssl=tls,
                process_request=admit,
                server_header=None,
                compression=None,
                max_size=self.limits.max_message_bytes,
                max_queue=MAX_WAITING_FRAMES,
                close_timeout=CLOSE_TIMEOUT,
                logger=_protocol_logger,
            )
            started(next(iter(server.sockets)).getsockname()[1])
            stopping = asyncio.create_task(stop.wait())
            await asyncio.wait([stopping, predicting], return_when=asyncio.FIRST_COMPLETED)
            server.close(close_connections=False)
            await asyncio.gather(*(client.leave() for client in list(clients)), return_exceptions=True)
            await server.wait_closed()
            if predicting.done():
                predicting.result()
        finally:
            predicting.cancel()
            await asyncio.gather(predicting, return_exceptions=True)


__all__ = ["PolicyServer"]
