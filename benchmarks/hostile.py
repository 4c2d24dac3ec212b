"""Hostile requests against a service: status, milliseconds, longest wait of an innocent client beside it, and memory.

    python benchmarks/hostile.py [part of a name]

The service is a `raydkm serve` of its own with one replica of one thread. The innocent client sends one vector after
another on connections of its own, during each hostile request and half a second longer. Memory is the most that the
replica had during the request. A 5xx other than 503 is a fault of the service.
"""

from __future__ import annotations

import http.client
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pyarrow as pa

DIM, TOKEN, ADMIN = 256, "a-token-of-the-benchmark", "an-admin-token-of-the-benchmark"
JSON, ARROW, NPY = "application/json", "application/vnd.apache.arrow.stream", "application/x-npy"
GOOD = json.dumps([0.5] * DIM)


class Target:
    """The service under attack."""

    def __init__(self, port: int):
        self.port = port

    def send(self, body: object, kind: str = JSON, path: str = "/v1/assign", token: str = TOKEN, **headers: str) -> str:
        """Status of one request; an iterable body is sent in chunks."""
        sent = {"Content-Type": kind, "Authorization": f"Bearer {token}"}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            with suppress(BrokenPipeError, ConnectionResetError):  # refused unread; the answer may be there
                connection.request("POST", path, body, sent)  # type: ignore[arg-type]
            return str(connection.getresponse().status)
        except (OSError, http.client.HTTPException):
            return "closed"
        finally:
            connection.close()

    def connect(self, *parts: bytes) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=60)
        for part in parts:
            connection.sendall(part)
        return connection

    def head(self, *lines: str) -> bytes:
        always = ("POST /v1/assign HTTP/1.1", "Host: x", f"Authorization: Bearer {TOKEN}", f"Content-Type: {JSON}")
        return "\r\n".join([*always, *lines, "", ""]).encode()


def status_of(connection: socket.socket) -> str:
    try:
        return connection.recv(100).split(b" ")[1].decode()
    except (OSError, IndexError):
        return "closed"
    finally:
        connection.close()


def many(element: str, count: int) -> str:
    return ",".join([element] * count)


def vectors(text: str) -> bytes:
    return f'{{"vectors":[{text}]}}'.encode()


def stream(schema: pa.Schema, batches: list[pa.RecordBatch], **options: object) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def rows(count: int, **options: object) -> bytes:
    values = np.random.default_rng(0).random((count, DIM), np.float32)
    column = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), DIM)
    batch = pa.record_batch([column], ["x"])
    return stream(batch.schema, [batch], **options)


def nested(depth: int) -> pa.DataType:
    return pa.float32() if depth == 0 else pa.list_(nested(depth - 1))


def npy(header: str, version: int = 1) -> bytes:
    return b"\x93NUMPY" + bytes([version, 0]) + len(header).to_bytes(2 * version, "little") + header.encode()


def slow(target: Target, connections: int, *lines: str) -> str:
    """Bodies of which one byte comes; the status of the last."""
    opened = [target.connect(target.head(*lines)) for _ in range(connections)]
    answers = [status_of(each) for each in opened]
    return "/".join(sorted(set(answers)))


def idle(target: Target, connections: int) -> str:
    """Connections that send nothing, for two seconds."""
    opened = [target.connect() for _ in range(connections)]
    time.sleep(2)
    for each in opened:
        each.close()
    return "-"


def leaves(target: Target, body: bytes, part: float) -> str:
    connection = target.connect(target.head(f"Content-Length: {len(body)}"), body[: int(part * len(body))])
    connection.close()
    time.sleep(1)
    return "-"


def at_once(target: Target, count: int, body: bytes) -> str:
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(target.send(body))) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return "/".join(sorted(set(found)))


def cases(models: Path) -> Iterator[tuple[str, Callable[[Target], str]]]:
    """A name, and what sends the request, which is made before, and returns the status."""

    def body(content: object, kind: str = JSON, **others: str) -> Callable[[Target], str]:
        return lambda target: target.send(content, kind, **others)

    yield "none, for two seconds", lambda _: time.sleep(2) or "-"
    column = pa.list_(pa.float32(), DIM)
    empty = pa.record_batch([pa.array([], column)], ["x"])
    yield "4 M empty strings for numbers", body(vectors(f"[{many(chr(34) * 2, 4_000_000)}]"))
    quoted = many("[" + many('"0.5"', DIM) + "]", 7812)
    yield "2 M quoted numbers", body(vectors(quoted))
    four = vectors(quoted)
    yield "four of these at once", lambda target: at_once(target, 4, four)
    yield "2 M nulls", body(vectors(many(f"[{many('null', DIM)}]", 7812)))
    yield "1 M unknown keys", body(("{" + ",".join(f'"k{i}":1' for i in range(1_000_000)) + "}").encode())
    yield (
        "vectors, then 1 M keys",
        body((f'{{"vectors":[{GOOD}],' + ",".join(f'"k{i}":1' for i in range(1_000_000)) + "}").encode()),
    )
    yield "a number of 12 M digits", body(vectors(f"[{'9' * 12_000_000}]"))
    yield "12 M digits behind the point", body(vectors(f"[0.{'9' * 12_000_000}]"))
    yield "60 MB of spaces", body(vectors(" " * 60_000_000))
    yield "a string of 60 MB", body(b'{"vectors":"' + b"\\u0041" * 10_000_000 + b'"}')
    yield "objects 1 M deep", body(b'{"vectors":' + b'{"a":' * 1_000_000 + b"1" + b"}" * 1_000_000 + b"}")
    yield "lists 1 M deep", body(b"[" * 1_000_000)
    yield "1 M objects for numbers", body(vectors(f"[{many('{}', 1_000_000)}]"))
    yield "good vectors, then 2 M strings", body(vectors(f"{many(GOOD, 5000)},{many(chr(34) * 2, 2_000_000)}"))
    yield "one vector of 4 M numbers", body(vectors(f"[{many('1', 4_000_000)}]"))
    yield "16,384 empty vectors", body(vectors(many("[]", 16_384)))
    yield "60 MB that are no text", body(os.urandom(60_000_000))
    yield "64 MB of good JSON", body(vectors(many(json.dumps([0.123456789] * DIM), 15_000)), Accept=ARROW)
    yield "16,384 vectors, top 10 as JSON", body(rows(16_384), ARROW, path="/v1/assign?top=10")
    yield (
        "a body of 10^12 bytes announced",
        lambda target: status_of(target.connect(target.head("Content-Length: 1000000000000"))),
    )
    yield "65 MB in chunks", body([b" " * 1_000_000] * 65)
    yield "200,000 chunks of a byte", body([b" "] * 200_000)
    yield "an idle body", lambda target: slow(target, 1, "Content-Length: 1000")
    yield "256 idle bodies", lambda target: slow(target, 256, "Content-Length: 1000")
    yield "64 idle bodies in chunks", lambda target: slow(target, 64, "Transfer-Encoding: chunked")
    yield "1,000 idle connections", lambda target: idle(target, 1000)
    whole = vectors(many(GOOD, 16_384))
    yield "a client that leaves in a body", lambda target: leaves(target, whole, 0.9)
    yield "a client that leaves after it", lambda target: leaves(target, whole, 1)
    yield "gzip", body(zlib.compress(vectors(GOOD), wbits=31), Content_Encoding="gzip")
    yield "a bomb of gzip", body(zlib.compress(bytes(500_000_000), wbits=31), Content_Encoding="gzip")
    yield "Arrow of 200,000 empty batches", body(stream(empty.schema, [empty] * 200_000), ARROW)
    yield (
        "Arrow of 400,000 columns",
        body(stream(pa.schema([(f"f{i}", pa.null()) for i in range(400_000)]), []), ARROW),
    )
    yield "Arrow of lists 60 deep", body(stream(pa.schema([("x", nested(60))]), []), ARROW)
    yield (
        "Arrow with 1 M entries of metadata",
        body(stream(pa.schema([("x", column)], metadata={f"k{i}": "v" for i in range(1_000_000)}), []), ARROW),
    )
    yield "Arrow cut off", body(rows(16_000)[:-1000], ARROW)
    yield "Arrow with zstd", body(rows(16_000, compression="zstd"), ARROW)
    yield (
        ".npy that announces 32 TB",
        body(npy("{'descr': '<f8', 'fortran_order': False, 'shape': (10**12, 4)}"), NPY),
    )
    yield ".npy with a header of 60 MB", body(npy("(" * 60_000_000, version=2), NPY)
    yield "a pickle", body(pickle.dumps([print] * 1000), NPY)
    yield "an image for vectors", body(b"\x89PNG" + bytes(1_000_000), "image/png")
    yield "60 MB of another type", body(bytes(60_000_000), "text/csv")
    yield "60 MB without a token", body(bytes(60_000_000), token="nobody-has-this-token")
    yield "top of 400 digits", body(rows(1), ARROW, path=f"/v1/assign?top={'9' * 400}")
    yield "a header of 1 MB", body(vectors(GOOD), X_Long="x" * 1_000_000)
    yield (
        "a reload of ../../etc",
        body(json.dumps({"model": "../../etc"}).encode(), path="/v1/reload", token=ADMIN),
    )
    os.mkfifo(models / "pipe" / "model.json")
    yield (
        "a reload that does not read",
        body(json.dumps({"model": "pipe"}).encode(), path="/v1/reload", token=ADMIN),
    )


class Innocent:
    """A process that sends one vector after another."""

    def __init__(self, port: int):
        command = [sys.executable, __file__, "--innocent", str(port)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def told(self) -> tuple[float, int]:
        """The longest wait, in seconds, and how many were refused, since this was asked the last time."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        longest, refused = self._process.stdout.readline().split()
        return float(longest), int(refused)

    def end(self) -> None:
        self._process.communicate()


def ask_innocently(port: int) -> None:
    target, body, found, end = Target(port), vectors(GOOD), [0.0, 0], threading.Event()

    def run() -> None:
        while not end.is_set():
            began = time.perf_counter()
            found[1] += target.send(body) != "200"
            found[0] = max(found[0], time.perf_counter() - began)
            time.sleep(0.01)

    thread = threading.Thread(target=run)
    thread.start()
    for _ in sys.stdin:
        print(*found, flush=True)
        found[:] = [0.0, 0]
    end.set()
    thread.join()


def replica() -> Path:
    """The replica's directory in /proc."""
    for each in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (each / "cmdline").read_bytes().startswith(b"ray::ServeReplica:raydkm"):
                return each
    raise SystemExit("there is no replica")


@contextmanager
def service(models: Path) -> Iterator[Target]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "raydkm", "serve", str(models / "m"), "--models", str(models)]
    command += ["--port", str(port), "--reload-timeout", "5"]
    environment = {**os.environ, "RAYDKM_TOKENS": TOKEN, "RAYDKM_ADMIN_TOKENS": ADMIN}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        if not any("serving " in line for line in process.stderr):
            raise SystemExit("the service did not start")
        threading.Thread(target=process.stderr.read, daemon=True).start()
        try:
            yield Target(port)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(120)


def main() -> None:
    if "--innocent" in sys.argv:
        return ask_innocently(int(sys.argv[-1]))
    import raydkm

    with tempfile.TemporaryDirectory() as place:
        models = Path(place)
        (models / "pipe").mkdir()
        x = np.random.default_rng(0).standard_normal((500, DIM)).astype(np.float32)
        raydkm.fit(x, clusters=64, objective="kmeans", max_steps=1, out=models / "m")
        with service(models) as target:
            measure(target, models)
    return None


def measure(target: Target, models: Path) -> None:
    process, innocent = replica(), Innocent(target.port)
    for _ in range(20):
        assert target.send(vectors(GOOD)) == "200"
    faults: list[str] = []
    waits: dict[str, float] = {}
    print("| request | status | ms | longest wait beside it, ms | refused | memory, MB |")
    print("|---|---|---|---|---|---|")
    wanted = " ".join(sys.argv[1:])
    for name, attack in cases(models):
        if wanted not in name:
            continue
        (process / "clear_refs").write_text("5")  # the most memory is that from now on
        innocent.told()
        began = time.perf_counter()
        status = attack(target)
        took = time.perf_counter() - began
        time.sleep(0.5)
        waits[name], refused = innocent.told()
        lines = (process / "status").read_text().splitlines()
        memory = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1000
        faults += [name for each in status.split("/") if each.startswith("5") and each != "503"]
        columns = (name, status, f"{took * 1e3:,.0f}", f"{waits[name] * 1e3:,.0f}", refused, f"{memory:,.0f}")
        print(f"| {' | '.join(map(str, columns))} |", flush=True)
    innocent.end()
    worst = max(waits, key=lambda name: waits[name])
    print(f"{len(waits)} requests; longest wait {waits[worst]:.2f} s ({worst}); faults: {', '.join(faults) or 'none'}")


if __name__ == "__main__":
    main()
