"""The service on Ray Serve: its one deployment, `raydkm serve`, and the builder that `serve.yaml` names."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import ray
import torch
from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayError
from ray.serve._private import replica
from ray.serve.config import BackpressureConfig
from ray.serve.exceptions import RayServeException
from ray.serve.schema import LoggingConfig

from raydkm.config import build as checked
from raydkm.errors import ConfigError
from raydkm.model import load
from raydkm.serve.app import create_app
from raydkm.serve.port import reserved
from raydkm.serve.service import Service, Stage
from raydkm.serve.settings import ServeAddress, ServeConfig
from raydkm.serve.tokens import TOKEN_VARIABLES, Tokens
from raydkm.serve.versions import CURRENT

NAME = "raydkm"

logger = logging.getLogger("raydkm")

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
ON_THE_WAY = 0.5  # seconds for answers between a replica and a client
ANSWER = 10.0  # seconds that a replica may take to enter a stage


@serve.ingress()
class Assign:
    """One replica."""

    def __init__(self, config: ServeConfig, tokens: Tokens, hosts: tuple[str, ...] | None):
        logging.getLogger("raydkm").setLevel(logging.INFO)
        _listen_on_node_address()
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

    async def enter(self, stage: Stage) -> int:
        """Called by `stop` in each replica; return the number of requests that are present."""
        self._service.stage = stage
        return self._service.present

    def check_health(self) -> None:
        """Called by Serve, after `reconfigure` if there is a `user_config`; it tells of the error."""
        if not self._service.has_model:
            raise ConfigError("no model: name it in user_config (or in args)")


def _listen_on_node_address() -> None:
    """Let Serve's own server in this replica, for calls between deployments, not listen on all addresses."""
    host, add_port = ray.util.get_node_ip_address(), replica.add_port_to_grpc_server
    host = f"[{host}]" if ":" in host else host
    replica.add_port_to_grpc_server = lambda server, address: add_port(server, address.replace("[::]", host))


def application(
    model: str | None, config: ServeConfig, tokens: Tokens, hosts: tuple[str, ...] | None = None
) -> serve.Application:
    """The deployment of a model, which `user_config` may name instead, with bounded queues."""
    deployment = serve.deployment(
        name="Assign",
        num_replicas=config.replicas,
        user_config=None if model is None else {"model": model},
        ray_actor_options={"num_cpus": config.threads},
        max_ongoing_requests=config.requests,
        max_queued_requests=config.requests,
        backpressure_config=BackpressureConfig(retry_after_s=1),
        logging_config=LoggingConfig(enable_access_log=config.access_log),
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
    with reserved(address):
        wanted = _checked(model, config, address, insecure)
        _join(config.models)
        _run(wanted, config, address)


def stop(config: ServeConfig) -> None:
    """End the service: not ready first, then refusing (503) while replicas answer what they have, then gone."""
    try:
        _drain(config)
    finally:
        serve.shutdown()


def _drain(config: ServeConfig) -> None:
    try:
        _enter("unready")
        time.sleep(config.notice)
        end = time.monotonic() + config.drain
        while _enter("closed") and time.monotonic() < end:
            time.sleep(0.1)
        time.sleep(ON_THE_WAY)
    except (RayServeException, RayError, TimeoutError) as error:  # it has not started, or replicas are lost
        logger.info("the service ends at once: %s", str(error).splitlines()[0])


def _enter(stage: Stage) -> int:
    """Let all replicas enter a stage; return the number of requests that are present in them."""
    return sum(serve.get_app_handle(NAME).broadcast("enter", stage).results(timeout_s=ANSWER))


def serve_until_signalled(model: str, config: ServeConfig, address: ServeAddress, *, insecure: bool = False) -> None:
    """`start` on a port that is reserved, and `stop` at SIGINT, SIGTERM or SIGHUP, also while it starts."""
    wanted = _checked(model, config, address, insecure)
    for name in TOKEN_VARIABLES:  # replicas compare digests; no process that is started needs the tokens
        os.environ.pop(name, None)
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's workers let all other processes go first
    _join(config.models)

    def end(*_: object) -> None:
        raise _Signalled

    for number in SIGNALS:  # after Ray has set handlers of its own
        signal.signal(number, end)
    try:
        _run(wanted, config, address)
        logger.info("serving %s at %s", model, address.url)
        threading.Event().wait()
    except _Signalled:
        logger.info("ending the requests that are there")
    finally:
        try:
            _drain(config)  # until another signal
        finally:
            for number in SIGNALS:
                signal.signal(number, signal.SIG_IGN)
            serve.shutdown()


class _Signalled(SystemExit):
    """A signal to end has come."""


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


def _run(wanted: serve.Application, config: ServeConfig, address: ServeAddress) -> None:
    serve.start(
        http_options={"host": address.host, "port": address.port},
        logging_config=LoggingConfig(enable_access_log=config.access_log),
    )
    serve.run(wanted, name=NAME)
