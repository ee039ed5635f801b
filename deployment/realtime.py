"""Real-time chunking: the next chunk is computed while the last one is executed, and goes on where that will be."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from transformers.utils import logging

from .action_limits import require_single_commands
from .command_counts import CommandCounts
from .policy import Observation, PolicySession, PriorVLAPolicy

logger = logging.get_logger(__name__)

REMEMBERED_DELAYS = 10
MOST_FAILURES = 3  # predictions in a row
PACE_STEPS, MOST_PACE = 20, 1.5  # steps over which the pace of `act` is measured, and multiples of the control rate


@dataclass
class RealTimeStatistics:
    """What happened since the last reset.

    Args:
        steps: calls of `act`. predictions: chunks that were adopted. delays: control steps that each of them took.
        late: chunks that took longer than was planned for, so that the robot went on otherwise than they begin.
        held: steps without an action, in which the robot was held, by calls of `hold` too. stale: observations that
            were not used, too old or not finite, and chunks that came too late. failures: predictions that raised.
    """

    steps: int = 0
    predictions: int = 0
    delays: list[int] = field(default_factory=list)
    late: int = 0
    held: int = 0
    stale: int = 0
    failures: int = 0


@dataclass(frozen=True)
class _Plan:
    """A chunk, and how many actions of the episode were executed before its first."""

    chunk: NDArray[np.float32]
    start: int

    def ahead(self, executed: int, count: int) -> NDArray[np.float32]:
        """The next `count` actions, or as many as there are, after `executed` of the episode."""
        return self.chunk[executed - self.start : executed - self.start + count]


@dataclass(frozen=True)
class _Request:
    chunk: Future[NDArray[np.float32]]
    step: int
    start: int  # of the chunk, as of a plan
    prefix: int
    taken: float | None  # when the observation was, on the clock


class RealTimePolicy:
    """Drives one robot without a pause: `act`, once every control step, answers at once.

    Limits on speed count commands at the body's control rate, so that `act` has to be called at that; it warns once
    when it is called more than 1.5 times as often.

    After `execute_steps` steps of a chunk the next is begun in another thread, from what is seen then. A prediction
    takes some steps, in which the robot goes on with the old chunk; these known actions, as the limits let them
    through, are the new chunk's clean prefix, so that it starts where the robot will be (training-time real-time
    chunking; our models are trained with prefixes of up to `config.max_prefix_length`). How many they are is measured:
    the second longest of the last ten delays, so that one hiccup does not count.

    When nothing is left to execute, because predictions are too slow, fail, or have nothing to see, the robot is held
    (`ActionGuard.hold`). A chunk that comes then is taken up where the last one ended; where age is looked at, one that
    comes too late for that is thrown away. After three failures in a row the error is raised, and
    TimeoutError when the robot has been held for too long.

    Args:
        policy: without `ensemble`. Its limits are kept across chunks.
        execute_steps: of a chunk, before the next is begun; default the policy's.
        delay: control steps that a prediction is expected to take, until one was measured.
        max_observation_age: seconds. An older observation, by its `"time"` on `clock`, is not predicted from, and a
            chunk is not taken up when its next step is later than that after the moment it was made for. Longer than a
            prediction takes, or a robot that was held never goes on. None: age is not looked at.
        max_hold: seconds that the robot is held in a row before it is an error.
        clock: seconds, as `time.monotonic`.
        executor: where predictions run; default a thread of its own. One at a time is submitted.
        seed: of the first episode.

    Raises:
        ValueError: when the policy averages chunks or was trained without prefixes, its actions were recorded relative
            to the state at a chunk's start (which the robot cannot know here), or execute_steps is outside [1, H - 1].
    """

    def __init__(
        self,
        policy: PriorVLAPolicy,
        *,
        execute_steps: int | None = None,
        delay: int = 1,
        max_observation_age: float | None = None,
        max_hold: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
        executor: Executor | None = None,
        seed: int = 0,
    ) -> None:
        self.policy = policy
        self.chunk_size: int = policy.model.config.expert.chunk_size
        self.execute_steps = policy.execute_steps if execute_steps is None else execute_steps
        _require_fit(policy)
        if not 1 <= self.execute_steps < self.chunk_size:
            raise ValueError(
                f"execute_steps={self.execute_steps} must be between 1 and {self.chunk_size - 1}: what is left of the "
                f"chunk's {self.chunk_size} steps is executed while the next is computed"
            )
        self.max_observation_age, self.max_hold, self._clock = max_observation_age, max_hold, clock
        self._owned = ThreadPoolExecutor(1, "priorvla-prediction") if executor is None else None
        self._executor: Executor = executor or self._owned  # type: ignore[assignment]  # one of them is there
        self._delays: deque[int] = deque([delay], REMEMBERED_DELAYS)
        self._running: _Request | None = None
        self._is_too_fast = False
        self.reset(seed)

    def warm_up(self) -> int:
        """Predicts before the first action, so that nothing is slow then; the control steps that a prediction takes.

        Raises ValueError when that is more than half a chunk: the next one would come when nothing is left of the last.
        """
        seconds = self._executor.submit(self.policy.warm_up, prefix_steps=1).result()
        rate = self.policy.embodiment.control_rate
        steps = max(1, math.ceil(seconds * rate))
        if 2 * steps > self.chunk_size:
            raise ValueError(
                f"a prediction takes {seconds:.2f} s, {steps} steps at {rate:g} Hz, more than half a chunk of "
                f"{self.chunk_size}: take fewer denoising steps (num_inference_steps), or a faster machine"
            )
        self._delays = deque([steps], REMEMBERED_DELAYS)
        return steps

    def reset(self, seed: int = 0) -> None:
        """Forgets the episode; call before every new one. What a prediction under way gives is thrown away."""
        self._forget_request()
        self._session = self.policy.new_session(seed)
        self._plan: _Plan | None = None
        self._called: deque[float] = deque(maxlen=PACE_STEPS + 1)
        self._executed = self._failed_in_a_row = self._held_in_a_row = 0
        self.statistics = RealTimeStatistics()

    @property
    def delay(self) -> int:
        """Control steps that a prediction is expected to take."""
        longest = sorted(self._delays, reverse=True)
        return longest[1] if len(longest) > 2 else longest[0]

    @property
    def command_counts(self) -> CommandCounts:
        """What limits have done to the episode's commands, and how many held the robot."""
        return self._session.guard.counts

    def act(self, observation: Observation) -> NDArray[np.float32]:
        """The action (D_robot,) of this control step, in raw units; only an episode's first call waits for a chunk.

        Args:
            observation: as of `PriorVLAPolicy`, and `time`, seconds on `clock`, where age is looked at.

        Raises:
            ValueError: when the first observation of an episode cannot be used, has no `time` and should, or one that
                is not the clock's.
            TimeoutError: when the robot was held for `max_hold` seconds; `hold` goes on doing so.
            What a prediction raised, when three in a row did.
        """
        self._watch_pace()
        usable = self._is_usable(observation)
        self._adopt()
        if self._plan is None:
            if not usable:
                raise ValueError("the first observation is too old or incomplete, and there is nothing to go on with")
            chunk = self._executor.submit(self.policy.predict, [self._session], [observation]).result()[0]
            self._plan = _Plan(chunk, 0)
        elif self._running is None and usable and self._is_time():
            self._begin(observation)
        action = self._command(observation)
        self.policy.remember(self._session, observation, action)
        self.statistics.steps += 1
        return action

    def hold(self) -> NDArray[np.float32]:
        """The command that keeps the robot where it is, for a caller that has lost its observations, or after an error.

        All that was planned is thrown away, a prediction under way too: the next `act` looks anew, and holds until its
        prediction is there. Raises ValueError before the first action.
        """
        command = self._session.guard.hold()
        self.statistics.held += 1
        self._forget_request()
        self._plan = _Plan(np.empty((0, len(command)), np.float32), self._executed)
        return command

    def close(self) -> None:
        """Ends the thread, after a prediction that is under way; does not wait for that."""
        if self._owned is not None:
            self._owned.shutdown(wait=False, cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    @property
    def _begin_after(self) -> int:
        """Steps of a chunk after which the next is begun: early enough that it is there in time."""
        return max(1, min(self.execute_steps, self.chunk_size - self.delay))

    def _watch_pace(self) -> None:
        """Warns, once, when `act` is called much more often than the control rate: all motion is quicker by as much."""
        self._called.append(self._clock())
        seconds, rate = self._called[-1] - self._called[0], self.policy.embodiment.control_rate
        if (
            self._is_too_fast or len(self._called) <= PACE_STEPS or seconds <= 0
        ):  # a clock that stands still tells nothing
            return
        self._is_too_fast = PACE_STEPS / seconds > MOST_PACE * rate
        if self._is_too_fast:
            logger.warning(
                "act is called %.3g times a second, and %r is controlled %g times: the robot moves faster than it was "
                "shown, and than its limits say. Call it at the control rate",
                PACE_STEPS / seconds,
                self.policy.embodiment.name,
                rate,
            )

    def _is_time(self) -> bool:
        """Whether the next chunk is to be begun."""
        assert self._plan is not None
        return not len(self._plan.chunk) or self._executed - self._plan.start >= self._begin_after

    def _forget_request(self) -> None:
        if self._running is not None:
            self._running.chunk.cancel()
        self._running = None

    def _is_usable(self, observation: Observation) -> bool:
        images = observation["images"]
        complete = all(images.get(camera) is not None for camera in self.policy.embodiment.cameras)
        usable = complete and bool(np.isfinite(np.asarray(observation["state"], dtype=np.float64)).all())
        if self.max_observation_age is not None:
            usable &= self._age(self._taken(observation)) <= self.max_observation_age
        self.statistics.stale += not usable
        return usable

    def _taken(self, observation: Observation) -> float | None:
        if self.max_observation_age is None:
            return None
        if "time" not in observation:
            raise ValueError("max_observation_age is set: observations need 'time', seconds on the policy's clock")
        return float(observation["time"])

    def _age(self, taken: float | None) -> float:
        if taken is None:
            return 0.0
        age = self._clock() - taken
        if age < -1 / self.policy.embodiment.control_rate:
            raise ValueError(
                f"the observation's time is {-age:.3g} s ahead of the policy's clock: stamp it with the same one "
                "(default time.monotonic), or pass clock="
            )
        return age

    def _begin(self, observation: Observation) -> None:
        assert self._plan is not None
        longest = self.policy.model.config.max_prefix_length
        planned = self._plan.ahead(self._executed, min(self.delay, longest))
        guard = self._session.guard.copy()
        prefix = np.stack([guard.apply(action) for action in planned]) if len(planned) else planned
        session = _snapshot(self._session)
        # copies: drivers use their buffers again
        images = {camera: np.array(image) for camera, image in observation["images"].items() if image is not None}
        seen = {**observation, "images": images, "state": np.array(observation["state"])}
        chunk = self._executor.submit(lambda: self.policy.predict([session], [seen], [prefix])[0])
        self._running = _Request(
            chunk,
            self.statistics.steps,
            self._executed,
            len(prefix),
            self._taken(observation),
        )

    def _adopt(self) -> None:
        """Goes over to the chunk that is finished, if one is."""
        request = self._running
        if request is None or not request.chunk.done():
            return
        self._running = None
        if (error := request.chunk.exception()) is not None:
            self._failed(error)
            return
        self._failed_in_a_row = 0
        delay = self.statistics.steps - request.step
        self._delays.append(max(1, delay))
        if self._is_outdated(request):
            self.statistics.stale += 1
            return
        self._plan = _Plan(request.chunk.result(), request.start)
        self.statistics.predictions += 1
        self.statistics.delays.append(delay)
        self.statistics.late += self._executed - request.start > request.prefix

    def _is_outdated(self, request: _Request) -> bool:
        """Whether the step that would be executed now was meant for a moment that is too long ago.

        The steps that were executed since the observation are no delay, because the chunk counts on them; steps in
        which the robot was held, or nobody asked, are.
        """
        if self.max_observation_age is None:
            return False
        counted = (self._executed - request.start) / self.policy.embodiment.control_rate
        return self._age(request.taken) - counted > self.max_observation_age

    def _failed(self, error: BaseException) -> None:
        self.statistics.failures += 1
        self._failed_in_a_row += 1
        if self._failed_in_a_row >= MOST_FAILURES:
            raise error
        logger.warning("a prediction failed, the old chunk goes on: %s", error)

    def _command(self, observation: Observation) -> NDArray[np.float32]:
        assert self._plan is not None
        following = self._plan.ahead(self._executed, 1)
        if len(following) == 0:
            return self._hold()
        self._held_in_a_row = 0
        self._executed += 1
        return self._session.guard.apply(following[0], observation["state"])

    def _hold(self) -> NDArray[np.float32]:
        self.statistics.held += 1
        self._held_in_a_row += 1
        if self._held_in_a_row == 1:
            logger.warning("nothing is left to execute: the robot is held until a prediction is there")
        seconds = self._held_in_a_row / self.policy.embodiment.control_rate
        if seconds > self.max_hold:
            why = "no prediction came" if self._running is not None else "no observation could be used"
            raise TimeoutError(f"the robot has been held for {seconds:.3g} s: {why}")
        return self._session.guard.hold()


def _require_fit(policy: PriorVLAPolicy) -> None:
    """Raises ValueError when chunks of `policy` cannot go on from a prefix."""
    body, config = policy.embodiment, policy.model.config
    if policy.ensemble is not None:
        raise ValueError(f"ensemble={policy.ensemble} predicts at every step and cannot be late: leave it out here")
    if config.prefix_probability == 0:
        raise ValueError("this policy was trained without clean prefixes (prefix_probability=0): train it with some")
    require_single_commands(body)


def _snapshot(session: PolicySession) -> PolicySession:
    """The past as it is now, for another thread; noise goes on from the same source."""
    return replace(session, states=deque(session.states), actions=deque(session.actions))


__all__ = ["RealTimePolicy", "RealTimeStatistics"]
