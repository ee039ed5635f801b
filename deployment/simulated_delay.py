"""Predictions that come some control steps late, on purpose: what a slow machine does to a policy, in a simulator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .command_counts import CommandCounts
from .policy import Observation, PriorVLAPolicy
from .realtime import RealTimePolicy


class DelayedExecutor(Executor):
    """Runs what is submitted at once, and delivers it `steps` calls of `tick` later.

    What is submitted before the first `tick` is there at once, because somebody waits for it.
    """

    def __init__(self, steps: int) -> None:
        self.steps, self.now = steps, 0
        self._waiting: list[tuple[int, Future[Any], Any, Exception | None]] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """As of `Executor`; an error is delivered as late as a result."""
        future: Future[Any] = Future()
        result, error = None, None
        try:
            result = fn(*args, **kwargs)
        except Exception as raised:  # whoever asks the future gets it
            error = raised
        self._waiting.append((self.now + self.steps if self.now else 0, future, result, error))
        self._deliver()
        return future

    def tick(self) -> None:
        """A control step is over."""
        self.now += 1
        self._deliver()

    def _deliver(self) -> None:
        for due, future, result, error in self._waiting:
            if due > self.now or not future.set_running_or_notify_cancel():  # somebody no longer waits for it
                continue
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)
        self._waiting = [entry for entry in self._waiting if entry[0] > self.now]


@dataclass(frozen=True)
class DelayedSession:
    """One running episode."""

    robot: RealTimePolicy
    executor: DelayedExecutor


class DelayedPolicy:
    """A policy for `evaluate_policy` whose predictions take `delay` control steps, bridged by real-time chunking.

    Args:
        policy: as of `RealTimePolicy`.
        delay: control steps, at least 1; more than half a chunk makes pauses.
    """

    def __init__(self, policy: PriorVLAPolicy, delay: int) -> None:
        if delay < 1:
            raise ValueError(f"delay={delay} must be at least 1: without one the policy itself is what you want")
        self._policy, self._delay = policy, delay
        self.embodiment = policy.embodiment

    def new_session(self, seed: int) -> DelayedSession:
        """An episode's memory; the delay is known from the beginning, as after a warm-up."""
        executor = DelayedExecutor(self._delay)
        rate = self.embodiment.control_rate
        robot = RealTimePolicy(
            self._policy, delay=self._delay, executor=executor, clock=lambda: executor.now / rate, seed=seed
        )
        return DelayedSession(robot, executor)

    def act(self, sessions: Sequence[DelayedSession], observations: Sequence[Observation]) -> NDArray[np.float32]:
        """One action (N, D_robot) for each of N sessions."""
        actions = []
        for session, observation in zip(sessions, observations, strict=True):
            actions.append(session.robot.act(observation))
            session.executor.tick()
        return np.stack(actions)

    def command_counts(self, session: DelayedSession) -> CommandCounts:
        """What limits have done to the session's commands, and how many held the robot."""
        return session.robot.command_counts


__all__ = ["DelayedExecutor", "DelayedPolicy", "DelayedSession"]
