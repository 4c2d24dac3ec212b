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
        256, gt=0, description="Bodies, in 10^6 bytes, of the requests in a replica; one beyond gets 503 unread."
    )
    queue_requests: int = Field(
        256, ge=1, description="Requests at once in a replica; as many more may wait at each proxy."
    )
    drain: float = Field(30.0, ge=0, description="Seconds in which a replica that is stopped may end its requests.")


class ServeAddress(Frozen):
    """Where a service listens."""

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=1, le=65_535, description="Port to listen on.")

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"
