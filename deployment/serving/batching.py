"""Concurrent requests in one batch: what waits while the model runs is predicted together, first come, first served."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..policy import PolicySession
from .client_requests import Request
from .session_model import SessionModel


class PredictionError(RuntimeError):
    """The policy failed on an observation; its cause is the policy's own error."""


@dataclass(frozen=True)
class Prediction:
    """A chunk (H, D) in raw units; seconds that the model took and that the request waited for it; its batch's size."""

    actions: NDArray[np.float32]
    model_time: float
    queue_time: float
    batch_size: int


@dataclass(frozen=True)
class _Job:
    session: PolicySession
    request: Request
    arrived: float


class BatchingWorker:
    """The one thread in which the model runs, and the queue in front of it.

    A client has at most one request in the queue, so that first come, first served is fair: nobody is predicted twice
    before somebody who waited.

    Args:
        max_batch: requests in a batch at most.
        window: seconds that the first of a batch waits for others when the model is idle.
    """

    def __init__(self, model: SessionModel, *, max_batch: int, window: float) -> None:
        self._model, self._max_batch, self._window = model, max_batch, window
        self._waiting: dict[asyncio.Future[Prediction], _Job] = {}  # in the order of their arrival
        self._somebody_waits = asyncio.Event()

    def ask(self, session: PolicySession, request: Request) -> asyncio.Future[Prediction]:
        """The answer to come; cancelled before its turn, it costs neither time nor memory."""
        answer: asyncio.Future[Prediction] = asyncio.get_running_loop().create_future()
        self._waiting[answer] = _Job(session, request, time.perf_counter())
        answer.add_done_callback(lambda done: self._waiting.pop(done, None))
        self._somebody_waits.set()
        return answer

    async def run(self) -> None:
        """Predicts until it is cancelled; does not wait for what the model still does then."""
        thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="priorvla-model")
        try:
            while True:
                if jobs := await self._next_jobs():
                    await self._predict(jobs, thread)
        finally:
            thread.shutdown(wait=False, cancel_futures=True)

    async def _next_jobs(self) -> dict[asyncio.Future[Prediction], _Job]:
        """The first of those who wait; empty where all of them have given up."""
        if not self._waiting:
            self._somebody_waits.clear()
            await self._somebody_waits.wait()
            await asyncio.sleep(self._window)
        return {answer: self._waiting.pop(answer) for answer in list(self._waiting)[: self._max_batch]}

    async def _predict(self, jobs: dict[asyncio.Future[Prediction], _Job], thread: ThreadPoolExecutor) -> None:
        sessions, requests = [job.session for job in jobs.values()], [job.request for job in jobs.values()]
        loop, began = asyncio.get_running_loop(), time.perf_counter()
        chunks = await loop.run_in_executor(thread, self._model.predict, sessions, requests)
        model_time = time.perf_counter() - began
        for (answer, job), chunk in zip(jobs.items(), chunks, strict=True):
            if answer.done():
                continue
            if isinstance(chunk, Exception):
                error = PredictionError(f"the policy failed: {type(chunk).__name__}: {chunk}")
                error.__cause__ = chunk
                answer.set_exception(error)
            else:
                answer.set_result(Prediction(chunk, model_time, began - job.arrived, len(jobs)))


__all__ = ["BatchingWorker", "Prediction", "PredictionError"]
