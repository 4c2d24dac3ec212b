"""What Ray listens on: a cluster of this process alone on loopback, and process groups on the address of their node."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import ray
import ray.train.torch.config
from ray._private import ray_constants
from ray._private.worker import get_dashboard_url
from ray._raylet import AuthenticationMode, get_authentication_mode  # type: ignore[attr-defined]
from ray.train.torch.config import TorchConfig, _TorchBackend
from torch.distributed import TCPStore

logger = logging.getLogger("raydkm")

_AUTHENTICATION = "RAY_AUTH_MODE"
_LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"  # 0: nodes have the address 127.0.0.1, as on those systems


def start_local_cluster() -> None:
    """Start a Ray cluster that only this machine reaches, and connect to it."""
    _keep_token_private()
    authentication = logging.getLogger("ray._private.authentication.authentication_token_setup")
    before = authentication.level
    authentication.setLevel(logging.ERROR)  # it advises to do without a token
    try:
        with _nodes_on_loopback(), _hangup_ignored():
            ray.init("local", logging_level=logging.WARNING, include_dashboard=False)
    finally:
        authentication.setLevel(before)
    address = ray.util.get_node_ip_address()
    if address != "127.0.0.1":
        logger.warning("the Ray cluster of this process listens on %s: keep its ports from other machines", address)


def warn_of_open_cluster(address: str) -> None:
    """Warn where the cluster that was joined takes commands of everyone who reaches its ports."""
    if get_authentication_mode() != AuthenticationMode.TOKEN:
        told = (
            "the Ray cluster at %s asks for no token: who reaches its ports runs code on it (docs/deploy.md, Security)"
        )
        logger.warning(told, address)


@contextmanager
def _nodes_on_loopback() -> Iterator[None]:
    """Let Ray give a new node the address 127.0.0.1, here and in the processes that it starts."""
    before, in_environment = ray_constants.ENABLE_RAY_CLUSTER, os.environ.get(_LOOPBACK)
    ray_constants.ENABLE_RAY_CLUSTER = False
    os.environ[_LOOPBACK] = "0"
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before
        if in_environment is None:
            del os.environ[_LOOPBACK]
        else:
            os.environ[_LOOPBACK] = in_environment


@contextmanager
def _hangup_ignored() -> Iterator[None]:
    """Let the processes that are started live on when their terminal is closed: this one ends them in order."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may say how signals are handled
        return
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)


def _keep_token_private() -> None:
    """Make the token of Ray's clusters that only this user reads; Ray's own is read by all users of the machine."""
    given = {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys()
    if given or os.environ.get(_AUTHENTICATION, "token") != "token":
        return
    path = Path.home() / ".ray" / "auth_token"
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
    except FileExistsError:
        if path.stat().st_mode & 0o077:
            try:
                path.chmod(0o600)
            except OSError as error:
                logger.warning("%s is read by other users of this machine (%s): set its mode to 600", path, error)
    except OSError:  # nowhere to keep it: a token of this process and those that it starts
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def has_dashboard() -> bool:
    """Tell whether the connected cluster has a dashboard, which answers questions about its actors."""
    return bool(get_dashboard_url())


class TorchOnNodeAddress(TorchConfig):
    """Process groups whose store listens on the address of its node alone; torch's own listens on all addresses."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        return _BackendOnNodeAddress


class _BackendOnNodeAddress(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        with mock.patch.object(ray.train.torch.config, "get_address_and_port", _address_of_store):
            super().on_start(worker_group, backend_config)


def _address_of_store() -> tuple[str, int]:
    """Start the store in the worker of rank 0; torch finds it there by its port, instead of starting one."""
    address = ray.util.get_node_ip_address()
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listening = socket.create_server((address, 0), family=family)
    port = listening.getsockname()[1]
    options: dict[str, Any] = {"is_master": True, "wait_for_workers": False, "multi_tenant": True}
    _stores.append(TCPStore(address, port, **options, master_listen_fd=listening.detach()))
    return address, port


_stores: list[TCPStore] = []  # as long as the worker lives
