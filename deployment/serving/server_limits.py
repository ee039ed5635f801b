"""What a server takes from its clients, and how often."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass


@dataclass(frozen=True)
class ServerLimits:
    """Bounds of a policy server.

    Args:
        max_clients: connections at a time; more are refused with 503.
        max_batch: requests that are predicted together at most. 1: a client's actions do not depend on the others' by
            a single bit (see `SessionModel`).
        batch_window_ms: how long an idle model waits for further requests before it starts. 0: not at all.
        max_message_mb: of a request, in 10^6 bytes; a longer one closes the connection with 1009.
        rate_limit: requests a second and connection; who asks more often waits. A second's worth may come at once.
        request_timeout: seconds from a request to its answer; after that an error and 1011.

    Raises:
        ValueError: naming the field, its value and its range.
    """

    max_clients: int = 32
    max_batch: int = 8
    batch_window_ms: float = 0.0
    max_message_mb: float = 16.0
    rate_limit: float = 100.0
    request_timeout: float = 10.0

    def __post_init__(self) -> None:
        for name, least in (("max_clients", 1), ("max_batch", 1), ("batch_window_ms", 0)):
            if not least <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {least}")
        for name in ("max_message_mb", "rate_limit", "request_timeout"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)} must be more than 0")

    @property
    def max_message_bytes(self) -> int:
        return int(self.max_message_mb * 1e6)


class TokenBucket:
    """Admits `rate` a second; at most a second's worth, and at least one, can be saved up."""

    def __init__(self, rate: float) -> None:
        self._rate, self._capacity = rate, max(1.0, rate)
        self._tokens, self._filled = self._capacity, time.monotonic()

    def take(self) -> float:
        """Takes a token and says how many seconds to wait for it first; 0 if it was there."""
        now = time.monotonic()
        self._tokens = min(self._capacity, self._tokens + (now - self._filled) * self._rate) - 1
        self._filled = now
        return max(0.0, -self._tokens / self._rate)


__all__ = ["ServerLimits", "TokenBucket"]
