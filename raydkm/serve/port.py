"""The port of a service: taken before anything is started, so that two services do not share the connections of one."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

from raydkm.errors import ConfigError
from raydkm.serve.settings import ServeAddress


@contextmanager
def reserved(address: ServeAddress) -> Iterator[None]:
    """Keep a port from other services until the block ends; proxies of Ray Serve may listen on it.

    Proxies share a port by SO_REUSEPORT with each other, and with whoever else sets it. The reservation is made without
    it, which fails where anyone listens, and sets it afterwards.

    Raises
    ------
    ConfigError
        Where the port is taken, or the host is unknown.
    """
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, place = found[0]
        kept = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigError(f"host {address.host}: not an address of this machine ({error.strerror})") from None
    with kept:
        try:
            kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port with closed connections is free
            kept.bind(place)
            kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
            kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        except OSError as error:
            raise ConfigError(f"{address.url}: this address cannot be listened on ({error.strerror})") from None
        yield
