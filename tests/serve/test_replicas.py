"""What happens to replicas while they answer: a kill, another configuration, another service that would start."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import raydkm
from raydkm.errors import ConfigError
from raydkm.serve.client import Client
from raydkm.serve.settings import ServeAddress, ServeConfig
from tests.serve.conftest import DIM, TOKEN, Running

ROWS = np.random.default_rng(5).standard_normal((64, DIM)).astype(np.float32)


def answers_while(url: str, expected: dict[str, Any], change: Callable[[threading.Event], None]) -> list[str]:
    """The models of the answers of two clients during a change, each compared with what its model says."""
    enough, end = threading.Event(), threading.Event()

    def ask() -> list[str]:
        models: list[str] = []
        with Client(url, token=TOKEN, retries=20) as client:
            while not end.is_set():
                found = client.assign(ROWS)
                assert np.array_equal(found.clusters, expected[str(client.model)])
                models.append(str(client.model))
                if len(models) > 20:
                    enough.set()
        return models

    with ThreadPoolExecutor(2) as pool:
        running = [pool.submit(ask) for _ in range(2)]
        try:
            assert enough.wait(60)
            change(end)
        finally:
            end.set()
        return [model for task in running for model in task.result(timeout=60)]


def expected_of(service: Running) -> dict[str, Any]:
    models = [raydkm.load(service.models / name) for name in ("first", "second")]
    return {model.checksum(): model.assign(ROWS).clusters for model in models}


def replicas() -> dict[str, Any]:
    """Actors of the replicas that are alive, by name."""
    import ray

    found = [
        each for each in ray.util.list_named_actors(all_namespaces=True) if "SERVE_REPLICA::raydkm#" in each["name"]
    ]
    return {each["name"]: ray.get_actor(each["name"], namespace=each["namespace"]) for each in found}


def test_a_killed_replica_gives_no_wrong_answer_and_is_replaced(service: Running) -> None:
    import ray
    from ray import serve

    before = replicas()
    assert len(before) == 2

    def kill(_: threading.Event) -> None:
        ray.kill(next(iter(before.values())))
        with Client(service.url, token=TOKEN, retries=20) as client:
            while (
                len(replicas().keys() - before.keys()) < 1 or serve.status().applications["raydkm"].status != "RUNNING"
            ):
                client.assign(ROWS)

    assert len(answers_while(service.url, expected_of(service), kill)) > 20


def test_another_service_is_not_started_on_the_cluster_of_this_one(service: Running) -> None:
    from raydkm.serve import ray_serve

    told = service.models / ".serving.json"
    before = told.read_bytes() if told.exists() else None
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = ServeAddress(port=free.getsockname()[1])
    with pytest.raises(ConfigError, match="Serve runs on this Ray cluster already"):
        ray_serve.start(str(service.models / "second"), ServeConfig(models=str(service.models)), address)
    assert (told.read_bytes() if told.exists() else None) == before
    assert service.client().assign(ROWS).clusters.shape == (64, 1)


def test_a_changed_user_config_reaches_the_replicas_while_they_answer(service: Running) -> None:
    from ray.serve.context import _get_global_client
    from ray.serve.schema import ServeDeploySchema

    def deploy(name: str) -> None:
        user_config = {"model": str(service.models / name)}
        application = {
            "name": "other",
            "route_prefix": "/other",
            "import_path": "raydkm.serve.ray_serve:build",
            "args": {"insecure": True},
            "deployments": [{"name": "Assign", "user_config": user_config}],
        }
        _get_global_client().deploy_apps(ServeDeploySchema(applications=[application]), _blocking=True)

    expected, url = expected_of(service), f"{service.url}/other"
    first, second = expected
    deploy("first")

    def change(_: threading.Event) -> None:
        deploy("second")
        with Client(url, token=TOKEN) as client:
            while client.model != second:
                client.assign(ROWS)

    models = answers_while(url, expected, change)
    assert models[0] == first
    assert set(models) <= {first, second}
    _get_global_client().delete_apps(["other"])
