"""Every parameter of a service, declared, documented and validated once, as in `raydkm.config`."""

from __future__ import annotations

import ipaddress
from typing import Literal

from pydantic import Field

from raydkm.config.base import Frozen


class ServeConfig(Frozen):
    """What a replica computes with, and what it refuses."""

    models: str | None = Field(
        None, description="Directory of models that POST /v1/reload may choose from, reached by all nodes."
    )
    reading: Literal["q", "p"] | None = Field(
        None, description="Assign by q (targets) or p (posterior of the discriminative model)."
    )
    encoder: str | None = Field(
        None, description="Your own encoder (package.module:build), of a model that was fitted with it."
    )
    threads: int = Field(1, ge=1, description="Processors, and threads of the products, of a replica.")
    replicas: int = Field(1, ge=1, description="Replicas.")
    max_top: int = Field(10, ge=1, description="Largest top of a request (at most the clusters of the model).")
    request_vectors: int = Field(16_384, ge=1, description="Vectors that a request may have.")
    request_megabytes: float = Field(64, gt=0, description="Size of a body, in 10^6 bytes.")
    body_timeout: float = Field(10.0, gt=0, description="Seconds in which a body must have arrived.")
    batch_vectors: int = Field(4096, ge=1, description="Vectors of waiting requests that are assigned in one batch.")
    queue_vectors: int = Field(
        65_536, ge=1, description="Vectors that may wait in a replica; a request beyond gets 503 and Retry-After."
    )
    queue_megabytes: float = Field(
        256, gt=0, description="Bodies of the requests in a replica, in 10^6 bytes that have arrived; beyond it 503."
    )
    queue_requests: int = Field(
        2048,
        ge=1,
        description="Requests that a replica computes or keeps waiting; one beyond gets 503.",
    )
    body_requests: int = Field(
        2048, ge=1, description="Bodies that may arrive at a time in a replica; one beyond ends the slowest (408)."
    )
    reload_timeout: float = Field(300.0, gt=0, description="Seconds in which a model must have been loaded.")
    notice: float = Field(
        1.0, ge=0, description="Seconds in which a service that ends takes requests, and says on /readyz that it ends."
    )
    drain: float = Field(30.0, ge=0, description="Seconds in which a service that ends may answer what it has taken.")
    access_log: bool = Field(False, description="Log each request.")

    @property
    def requests(self) -> int:
        """Requests at a time in a replica by the count of Ray Serve, which must not refuse before the replica does."""
        return 2 * (self.queue_requests + self.body_requests)


class ServeAddress(Frozen):
    """Where a service listens."""

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=1, le=65_535, description="Port to listen on.")

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"
