"""What a server counts, as Prometheus reads it."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
CONTENT_TYPE = CONTENT_TYPE_LATEST


class ServerMetrics:
    """The metrics of one server, apart from those of others in the same process."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        own: dict[str, Any] = {"namespace": "priorvla", "registry": self._registry}
        self.requests = Counter("requests", "Requests that were answered with actions.", **own)
        self.errors = Counter("errors", "Requests and connections that ended in an error.", ["kind"], **own)
        self.throttled = Counter("throttled_requests", "Requests that waited for the rate limit.", **own)
        self.clients = Gauge("clients", "Connections that are open.", **own)
        self.request_time = Histogram(
            "request_seconds", "From a request to its answer, without the network.", buckets=SECONDS, **own
        )
        self.queue_time = Histogram("queue_seconds", "That requests waited for the model.", buckets=SECONDS, **own)
        self.model_time = Histogram(
            "model_seconds", "That the model took for the batch of an answered request.", buckets=SECONDS, **own
        )
        self.batch_size = Histogram(
            "batch_size", "Requests in the batch of an answered one.", buckets=(1, 2, 4, 8, 16, 32, 64), **own
        )

    def text(self) -> bytes:
        """All of them in Prometheus' text format."""
        return generate_latest(self._registry)


__all__ = ["CONTENT_TYPE", "ServerMetrics"]
