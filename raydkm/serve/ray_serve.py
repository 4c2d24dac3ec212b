"""The service on Ray Serve: its one deployment, `raydkm serve`, and the builder that `serve.yaml` names."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import torch
from fastapi import FastAPI
from ray import serve
from ray.serve.config import BackpressureConfig

from raydkm.config import build as checked
from raydkm.errors import ConfigError
from raydkm.model import load
from raydkm.serve.app import create_app
from raydkm.serve.service import Service
from raydkm.serve.settings import ServeAddress, ServeConfig
from raydkm.serve.tokens import Tokens
from raydkm.serve.versions import CURRENT

NAME = "raydkm"

#: Seconds beside those of the drain that the end of a replica may take.
GRACE = 30.0


@serve.ingress()
class Assign:
    """One replica."""

    def __init__(self, config: ServeConfig, tokens: Tokens, hosts: tuple[str, ...] | None):
        logging.getLogger("raydkm").setLevel(logging.INFO)
        torch.set_num_threads(config.threads)
        self._service = Service(config, serve.get_replica_context().replica_id.unique_id)
        self._tokens, self._hosts = tokens, hosts

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Serve, in the replica."""
        return create_app(self._service, self._tokens, self._hosts)

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Called by Serve with `user_config` when the replica starts, and whenever it has changed."""
        if set(user_config) != {"model"}:
            raise ConfigError(f"user_config {user_config}: expected the one key model, the path of a model")
        await self._service.configure(user_config["model"])

    def check_health(self) -> None:
        """Called by Serve, after `reconfigure` if there is a `user_config`; it tells of the error."""
        if not self._service.has_model:
            raise ConfigError("no model: name it in user_config (or in args)")


def application(
    model: str | None, config: ServeConfig, tokens: Tokens, hosts: tuple[str, ...] | None = None
) -> serve.Application:
    """The deployment of a model, which `user_config` may name instead, with bounded queues."""
    deployment = serve.deployment(
        name="Assign",
        num_replicas=config.replicas,
        user_config=None if model is None else {"model": model},
        ray_actor_options={"num_cpus": config.threads},
        max_ongoing_requests=config.queue_requests,
        max_queued_requests=config.queue_requests,
        backpressure_config=BackpressureConfig(retry_after_s=1),
        graceful_shutdown_wait_loop_s=0.2,
        graceful_shutdown_timeout_s=config.drain,
        health_check_period_s=5,
    )(Assign)
    return deployment.bind(config, tokens, hosts)


def build(arguments: dict[str, Any]) -> serve.Application:
    """What `import_path` of `serve.yaml` names: `insecure` and the fields of `ServeConfig` are its `args`.

    So is `model`, unless a `user_config` names it, which can be changed while replicas answer. The builder cannot know
    where the proxies listen, so it refuses to go without tokens unless `insecure` is true.
    """
    arguments = dict(arguments)
    model, insecure = arguments.pop("model", None), arguments.pop("insecure", False)
    tokens = Tokens.from_environment(os.environ)
    if not tokens and insecure is not True:
        raise ConfigError("no tokens: set RAYDKM_TOKENS for the application, or insecure: true in args")
    return application(model, checked(ServeConfig, arguments), tokens)


def start(model: str, config: ServeConfig, address: ServeAddress, *, insecure: bool = False) -> None:
    """Serve a model; return when the replicas answer.

    Raises
    ------
    ModelError
        If there is no such model, or it is damaged.
    ConfigError
        Beyond loopback without tokens, unless `insecure`; for a model that is not to be read so, or no directory
        `models`; on a cluster where Serve runs already.
    """
    wanted = _checked(model, config, address, insecure)
    _join(config.models)
    _run(wanted, address)


def stop(drain: float) -> None:
    """Take no more requests, let the replicas end those that they have, within `drain` seconds, and stop Serve."""
    try:
        serve.delete(NAME, _blocking=False)
        end = time.monotonic() + drain + GRACE
        while NAME in serve.status().applications and time.monotonic() < end:
            time.sleep(0.1)
    finally:
        serve.shutdown()


def serve_until_signalled(model: str, config: ServeConfig, address: ServeAddress, *, insecure: bool = False) -> None:
    """`start`, and `stop` at SIGINT or SIGTERM, also where it comes before all is started."""
    wanted = _checked(model, config, address, insecure)
    _join(config.models)

    def end(*_: object) -> None:
        raise _Signalled

    for number in (signal.SIGINT, signal.SIGTERM):  # after Ray has set handlers of its own
        signal.signal(number, end)
    try:
        _run(wanted, address)
        logging.getLogger("raydkm").info("serving %s at http://%s:%d", model, address.host, address.port)
        threading.Event().wait()
    except _Signalled:
        logging.getLogger("raydkm").info("ending the requests that are there")
    finally:
        stop(config.drain)


class _Signalled(SystemExit):
    """SIGINT or SIGTERM has come."""


def _checked(model: str, config: ServeConfig, address: ServeAddress, insecure: bool) -> serve.Application:
    """The application, if it can be served there; nothing is started or changed."""
    tokens = Tokens.from_environment(os.environ)
    if not tokens and not address.is_loopback and not insecure:
        raise ConfigError(
            f"host {address.host} is reached by other machines: set RAYDKM_TOKENS, or allow all of them with --insecure"
        )
    load(model).read_as(config.reading)
    if config.models is not None:
        if not os.path.isdir(config.models):
            raise ConfigError(f"models: {config.models} is no directory")
        config = config.model_copy(update={"models": os.path.abspath(config.models)})
    hosts = None if tokens or insecure else ("localhost", "127.0.0.1", "[::1]", address.host)
    return application(os.path.abspath(model), config, tokens, hosts)


def _join(models: str | None) -> None:
    """Connect to a cluster where no Serve runs, and forget what an earlier service was told to reload."""
    from raydkm.engine.ray_train import connect  # it imports Ray Data and Train, whose Arrow types unpickle

    connect()
    status = serve.status()
    if status.proxies or status.applications:
        raise ConfigError(
            "Serve runs on this Ray cluster already, with its own address and applications: deploy to it by serve.yaml"
        )
    if models is not None:
        try:
            Path(models, CURRENT).unlink(missing_ok=True)
        except OSError as error:
            raise ConfigError(f"models: {CURRENT} of an earlier service cannot be removed: {error}") from None


def _run(wanted: serve.Application, address: ServeAddress) -> None:
    serve.start(http_options={"host": address.host, "port": address.port})
    serve.run(wanted, name=NAME)
