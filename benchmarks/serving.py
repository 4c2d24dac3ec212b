"""The service under load from another process, on loopback: latencies, vectors a second, a reload, a killed replica.

    python benchmarks/serving.py [--clusters 4096 --dim 384 --seconds 5 --connections 16]

Vectors a second are compared with FAISS in this process, a flat index with as many threads. The load takes processors
too, so on a small machine the service has less than all of them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

DISTINCT = 8  # bodies that requests take turns with
ARROW = "application/vnd.apache.arrow.stream"


def rows_of(size: int, dim: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((DISTINCT, size, dim)).astype(np.float32)


def arrow_body(rows: np.ndarray) -> bytes:
    column = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[1])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, pa.schema([("x", column.type)])) as writer:
        writer.write(pa.record_batch([column], ["x"]))
    return sink.getvalue().to_pybytes()


async def load(
    url: str, kind: str, size: int, dim: int, connections: int, seconds: float, expected: dict, token: str = ""
) -> dict:
    """Requests, one after another on each connection; answers of Arrow are compared with what their model says."""
    import aiohttp

    rows = rows_of(size, dim)
    if kind == "arrow":
        bodies, headers = [arrow_body(part) for part in rows], {"Content-Type": ARROW, "Accept": ARROW}
    else:
        bodies = [json.dumps({"vectors": part.tolist()}).encode() for part in rows]
        headers = {"Content-Type": "application/json"}
    headers["Authorization"] = f"Bearer {token}"
    known = {checksum: np.load(path) for checksum, path in expected.items()}
    times: list[float] = []
    counts = {"failed": 0, "wrong": 0}
    models: dict[str, int] = {}
    end = time.perf_counter() + seconds

    def check(content: bytes, which: int) -> None:
        if kind == "arrow":
            table = pa.ipc.open_stream(content).read_all()
            model, clusters = table.schema.metadata[b"raydkm.model"].decode(), table["cluster"].to_numpy()
        else:
            reply = json.loads(content)
            model, clusters = reply["model"], reply["cluster"]
        models[model] = models.get(model, 0) + 1
        if known and not np.array_equal(clusters, known[model][which]):
            counts["wrong"] += 1

    async def one(session: aiohttp.ClientSession, number: int) -> None:
        while time.perf_counter() < end:
            which = number % DISTINCT
            number += 1
            began = time.perf_counter()
            try:
                async with session.post(f"{url}/v1/assign", data=bodies[which], headers=headers) as response:
                    content = await response.read()
                if response.status != 200:
                    counts["failed"] += 1
                    continue
            except aiohttp.ClientError:
                counts["failed"] += 1
                continue
            times.append(time.perf_counter() - began)
            check(content, which)

    began = time.perf_counter()
    connector = aiohttp.TCPConnector(limit=connections)
    async with aiohttp.ClientSession(connector=connector) as session:
        await asyncio.gather(*(one(session, number) for number in range(connections)))
    took = time.perf_counter() - began
    p50, p99 = np.percentile(times, [50, 99]) * 1e3
    return {"answers": len(times), "rate": len(times) * size / took, "p50": p50, "p99": p99, **counts, "models": models}


def in_another_process(*arguments: Any) -> subprocess.Popen:
    command = [sys.executable, __file__, "--load", json.dumps(arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def result_of(process: subprocess.Popen) -> dict:
    output, _ = process.communicate(timeout=300)
    return json.loads(output.splitlines()[-1])


def faiss_rate(model: Any, threads: int) -> float:
    """Vectors a second of a flat index, in batches of 4096."""
    import faiss

    index = faiss.IndexFlatL2(model.dim)
    index.add(model.prototypes.numpy())
    faiss.omp_set_num_threads(threads)
    rows = rows_of(4096 // DISTINCT, model.dim).reshape(4096, -1)
    index.search(rows, 1)
    times = []
    for _ in range(9):
        began = time.perf_counter()
        index.search(rows, 1)
        times.append(time.perf_counter() - began)
    return 4096 / float(np.median(times))


@contextmanager
def service(model: Path, port: int, **options: Any) -> Iterator[str]:
    from raydkm.serve import ray_serve
    from raydkm.serve.settings import ServeAddress, ServeConfig

    config = ServeConfig(models=str(model.parent), **options)
    ray_serve.start(str(model), config, ServeAddress(port=port))
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        ray_serve.stop(config)


def kill_a_replica() -> None:
    import ray

    replicas = [a for a in ray.util.list_named_actors(all_namespaces=True) if a["name"].startswith("SERVE_REPLICA")]
    ray.kill(ray.get_actor(replicas[0]["name"], namespace=replicas[0]["namespace"]))


def measure(arguments: argparse.Namespace, place: Path) -> None:
    import ray

    import raydkm
    from raydkm.serve.client import Client
    from raydkm.serve.settings import ServeConfig
    from raydkm.serve.versions import Version

    dim, threads, expected = arguments.dim, len(os.sched_getaffinity(0)), {}
    for seed, name in enumerate(("first", "second")):
        x = np.random.default_rng(seed).standard_normal((2 * arguments.clusters, dim)).astype(np.float32)
        raydkm.fit(
            x, clusters=arguments.clusters, objective="kmeans", init="random", max_steps=1, n_init=1, out=place / name
        )
        version = Version.loaded(str(place / name), ServeConfig())
        found = np.stack([version.assign(rows, None).clusters[:, 0] for rows in rows_of(32, dim)])
        np.save(place / f"{name}.npy", found)
        expected[version.checksum] = str(place / f"{name}.npy")
    ray.init("local", num_cpus=threads, object_store_memory=200_000_000, logging_level="ERROR", log_to_driver=False)
    in_process = faiss_rate(version.model, threads)
    print(
        f"K = {arguments.clusters}, {dim} dimensions; FAISS in process: {in_process:,.0f} vectors/s, {threads} threads"
    )
    print(
        "| vectors a request | body | p50, ms | p99, ms | requests/s | vectors/s | of FAISS | failed |\n"
        + "|---" * 8
        + "|"
    )
    with service(place / "first", arguments.port, threads=threads) as url:
        for size in (1, 32, 1024):
            for kind in ("json", "arrow"):
                for seconds in (1, arguments.seconds):  # the first warms up
                    load_of = in_another_process(url, kind, size, dim, arguments.connections, seconds, {})
                    found = result_of(load_of)
                print(
                    f"| {size:,} | {kind} | {found['p50']:.1f} | {found['p99']:.1f} | {found['rate'] / size:,.0f} "
                    f"| {found['rate']:,.0f} | {found['rate'] / in_process:.2f} | {found['failed']} |",
                    flush=True,
                )
    print(f"FAISS in process, again: {faiss_rate(version.model, threads):,.0f} vectors/s")
    os.environ["RAYDKM_ADMIN_TOKENS"] = token = "a-token-of-the-benchmark"
    with service(place / "first", arguments.port, threads=1, replicas=threads) as url:
        for what in ("reloads", "killed replica"):
            process = in_another_process(url, "arrow", 32, dim, 8, 8, expected, token)
            time.sleep(2.5)
            if what == "reloads":
                with Client(url, token=token) as admin:
                    for name in ("second", "first", "second"):
                        admin.reload(name)
                        time.sleep(1.2)
            else:
                kill_a_replica()
            found = result_of(process)
            of_models = ", ".join(str(count) for count in found["models"].values())
            print(
                f"{what}: {found['answers']} answers ({of_models} of each model), {found['wrong']} wrong, "
                f"{found['failed']} failed, p99 {found['p99']:.0f} ms",
                flush=True,
            )
    ray.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clusters", type=int, default=4096)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--port", type=int, default=8123)
    parser.add_argument("--load", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.load:
        print(json.dumps(asyncio.run(load(*json.loads(arguments.load)))))
        return
    with tempfile.TemporaryDirectory() as place:
        measure(arguments, Path(place))


if __name__ == "__main__":
    main()
