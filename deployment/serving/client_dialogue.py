"""One client's connection: metadata, then request and reply in turn, until either side has had enough."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import Any

from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode

from ...hub_cards.privacy import scrub
from .batching import BatchingWorker, Prediction, PredictionError
from .client_requests import BadRequestError, RequestReader
from .numpy_messages import MalformedMessageError, decode, encode
from .server_limits import ServerLimits, TokenBucket
from .server_metrics import ServerMetrics
from .session_model import SessionModel

logger = logging.getLogger(__name__)

MAX_ERROR = 500  # characters of an error frame


class RequestTimeoutError(TimeoutError):
    """The model did not answer in time."""


@dataclass(frozen=True)
class Service:
    """What all connections of a server share."""

    model: SessionModel
    worker: BatchingWorker
    reader: RequestReader
    limits: ServerLimits
    metrics: ServerMetrics
    metadata: bytes
    seed: int


class ClientDialogue:
    """Talks to one client; its session is in here and ends with the connection."""

    def __init__(self, connection: ServerConnection, service: Service) -> None:
        self._connection, self._service = connection, service
        self._session = service.model.policy.new_session(service.seed)
        self._bucket = TokenBucket(service.limits.rate_limit)
        self._busy = False
        self._leaving: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def run(self) -> None:
        """Until the client leaves, does something wrong, or `leave` is called."""
        gone = asyncio.ensure_future(self._connection.wait_closed())
        try:
            await self._connection.send(self._service.metadata)
            while not self._leaving.done():
                frame = await self._connection.recv()
                self._busy = True
                if not await self._serve(frame, gone):
                    return
                self._busy = False
            await self._say_goodbye()
        except ConnectionClosed as closed:
            if closed.sent is not None and closed.sent.code == CloseCode.MESSAGE_TOO_BIG:
                self._service.metrics.errors.labels("too_large").inc()
        finally:
            gone.cancel()

    async def leave(self) -> None:
        """Ends the dialogue: at once, or after the reply that is being made."""
        self._leaving.set_result(None)
        if not self._busy:
            await self._say_goodbye()

    async def _say_goodbye(self) -> None:
        await self._connection.close(CloseCode.GOING_AWAY, "the server is shutting down")

    async def _serve(self, frame: Any, gone: asyncio.Future[None]) -> bool:
        """Answers one frame, unless we leave while it waits for its turn; whether the dialogue goes on."""
        metrics, began = self._service.metrics, time.perf_counter()
        if delay := self._bucket.take():
            metrics.throttled.inc()
            await asyncio.wait([gone, self._leaving], timeout=delay, return_when=asyncio.FIRST_COMPLETED)
            if self._leaving.done():
                return True
        try:
            prediction = await self._predict(frame, gone)
        except Exception as error:
            await self._refuse(error)
            return False
        if prediction is None:
            metrics.errors.labels("disconnected").inc()
            return False
        timing = {"infer_ms": 1e3 * prediction.model_time, "queue_ms": 1e3 * prediction.queue_time}
        await self._connection.send(encode({"actions": prediction.actions, "server_timing": timing}))
        metrics.requests.inc()
        metrics.request_time.observe(time.perf_counter() - began)
        metrics.queue_time.observe(prediction.queue_time)
        metrics.model_time.observe(prediction.model_time)
        metrics.batch_size.observe(prediction.batch_size)
        return True

    async def _predict(self, frame: Any, gone: asyncio.Future[None]) -> Prediction | None:
        """What the frame asks for; None when the client went away meanwhile."""
        if isinstance(frame, str):
            raise MalformedMessageError("a text frame: send one binary msgpack frame a request")
        request = self._service.reader.read(decode(frame))
        if request.reset:
            seed = self._service.seed if request.seed is None else request.seed
            self._session = self._service.model.policy.new_session(seed)
        if request.executed is not None:
            self._service.model.remember(self._session, request.executed)
        answer = self._service.worker.ask(self._session, request)
        timeout = self._service.limits.request_timeout
        either: list[asyncio.Future[Any]] = [answer, gone]
        await asyncio.wait(either, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if answer.done():
            return answer.result()
        answer.cancel()
        if gone.done():
            return None
        raise RequestTimeoutError(f"no answer after {timeout:g} s: ask less often, or raise the server's time-out")

    async def _refuse(self, error: Exception) -> None:
        """One text frame that says what is wrong, then 1011, as openpi's server does; nothing of this machine in it."""
        kinds = {MalformedMessageError: "malformed", BadRequestError: "bad_request", RequestTimeoutError: "timeout"}
        kind = kinds.get(type(error), "model")
        self._service.metrics.errors.labels(kind).inc()
        if kind == "model":
            cause = error.__cause__ if isinstance(error, PredictionError) else error
            logger.error("a prediction failed", exc_info=cause)
        else:
            logger.info("%s: %s", kind, error)
        await self._connection.send(scrub(str(error))[:MAX_ERROR])
        await self._connection.close(CloseCode.INTERNAL_ERROR, f"{kind}: see the frame before")


__all__ = ["ClientDialogue", "Service"]
