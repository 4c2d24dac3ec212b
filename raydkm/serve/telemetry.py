"""What Prometheus is told. Each replica has counters of its own, which the label `replica` tells apart."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SIZES = [4**power for power in range(9)]
_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)


class Telemetry:
    """The metrics of one replica."""

    def __init__(self, replica: str):
        self._registry = CollectorRegistry()
        self._replica = replica
        to = self._registry

        def named(*more: str) -> list[str]:
            return ["replica", *more]

        self._requests = Counter(
            "raydkm_requests", "Requests by route and status.", named("route", "status"), registry=to
        )
        self._seconds = Histogram(
            "raydkm_request_seconds",
            "Time from a request to its reply.",
            named("route"),
            buckets=_SECONDS,
            registry=to,
        )
        self._batches = Histogram("raydkm_batch_vectors", "Vectors of a batch.", named(), buckets=_SIZES, registry=to)
        self._joined = Histogram("raydkm_batch_requests", "Requests of a batch.", named(), buckets=_SIZES, registry=to)
        self._waiting = Gauge("raydkm_waiting_vectors", "Vectors that wait.", named(), registry=to)
        self._reloads = Counter("raydkm_reloads", "Changes of the model, by outcome.", named("outcome"), registry=to)
        self._model = Gauge("raydkm_model", "1 of the model that answers.", named("name", "model"), registry=to)

    def request(self, route: str, status: int, seconds: float) -> None:
        self._requests.labels(self._replica, route, status).inc()
        self._seconds.labels(self._replica, route).observe(seconds)

    def batch(self, vectors: int, requests: int) -> None:
        self._batches.labels(self._replica).observe(vectors)
        self._joined.labels(self._replica).observe(requests)

    def reload(self, outcome: str) -> None:
        self._reloads.labels(self._replica, outcome).inc()

    def text(self, waiting: int, name: str, model: str) -> bytes:
        """The exposition format."""
        self._waiting.labels(self._replica).set(waiting)
        self._model.clear()
        self._model.labels(self._replica, name, model).set(1)
        return generate_latest(self._registry)
