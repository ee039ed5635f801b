"""A policy as the server uses it: whole chunks for many sessions in one batch, none of which notices another."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..policy import PolicySession, PriorVLAPolicy
from .client_requests import Request

Steps = tuple[NDArray[np.float32], NDArray[np.float32]]  # states (n, S) and actions (n, D) of steps that were executed


class SessionModel:
    """Chunks of `policy` for sessions that its clients own.

    Alone or beside others, a session draws the same noise. Rows of a batch equal those alone up to the rounding of
    larger matrices (1e-5 of a normalised action); in batches of one they are equal to the bit.
    """

    def __init__(self, policy: PriorVLAPolicy) -> None:
        self.policy = policy

    def predict(
        self, sessions: Sequence[PolicySession], requests: Sequence[Request]
    ) -> list[NDArray[np.float32] | Exception]:
        """A chunk (H, D) in raw units for each session. Where a batch fails, each gets what it gives alone."""
        noise = [session.generator.get_state() for session in sessions]
        try:
            observations, prefixes = ([getattr(own, key) for own in requests] for key in ("observation", "prefix"))
            return list(self.policy.predict(sessions, observations, prefixes))
        except Exception as error:
            if len(sessions) == 1:
                return [error]
        for session, state in zip(sessions, noise, strict=True):
            session.generator.set_state(state)
        return [self.predict([session], [own])[0] for session, own in zip(sessions, requests, strict=True)]

    def remember(self, session: PolicySession, steps: Steps) -> None:
        """Adds steps to a session's past; a model without history forgets them."""
        longest = self.policy.model.config.history_size
        for state, action in zip(*(values[-longest:] for values in steps), strict=True):
            self.policy.remember(session, {"state": state}, action)

    def warm_up(self, batch_size: int) -> None:
        """Predicts once alone and once in a batch, so that no client waits for it and a lack of memory shows now."""
        for size in sorted({1, batch_size}):
            self.policy.warm_up(size)


__all__ = ["SessionModel", "Steps"]
