"""Answers a second against the number of clients, up to far more than the service can answer, as a table and a picture.

    python benchmarks/goodput.py [--clients 50,150,450,700,1000 --seconds 30 --out goodput.svg]

Each client sends one vector at a time on a kept connection, and after a 503 waits for as long as it is asked to. The
service is a `raydkm serve` of its own; the clients are in one more process, on the same processors. A client that waits
for an answer for longer than `--patience` seconds gives up, and its answer does not count. The last line compares
three times the load with the best.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

SERVICE = [sys.executable, "-m", "raydkm", "serve"]


async def load(url: str, clients: int, dim: int, seconds: float, patience: float) -> dict:
    """Answers of `clients` during `seconds`, of which the first quarter is not counted."""
    import aiohttp

    body = json.dumps({"vectors": np.random.default_rng(0).standard_normal((1, dim)).tolist()})
    headers = {"Content-Type": "application/json"}
    began = time.perf_counter()
    counted, end = began + seconds / 4, began + seconds
    times: list[float] = []
    failed: dict[str, int] = {}

    async def client(session: aiohttp.ClientSession) -> None:
        await asyncio.sleep(random.random() * seconds / 4)  # they do not come all at once
        while (sent := time.perf_counter()) < end:
            wait, what = 0.0, ""
            try:
                async with session.post(f"{url}/v1/assign", data=body, headers=headers) as response:
                    await response.read()
                    if response.status != 200:
                        what, wait = str(response.status), float(response.headers.get("Retry-After", 0))
            except (aiohttp.ClientError, asyncio.TimeoutError) as error:
                what = type(error).__name__
            now = time.perf_counter()
            if counted <= now <= end:
                if what:
                    failed[what] = failed.get(what, 0) + 1
                else:
                    times.append(now - sent)
            await asyncio.sleep(wait and wait * (1 + random.random()))

    limit = aiohttp.ClientTimeout(total=patience)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=limit) as session:
        await asyncio.gather(*(client(session) for _ in range(clients)))
    p50, p99 = np.percentile(times, [50, 99]) if times else (float("nan"),) * 2
    return {"rate": len(times) / (end - counted), "p50": p50, "p99": p99, "failed": failed}


def picture(found: dict[int, dict], title: str) -> str:
    """An SVG of answers a second against clients."""
    width, height, left, bottom = 640, 360, 60, 50
    most_x, most_y = max(found), 1.1 * max(each["rate"] for each in found.values())

    def x(clients: float) -> float:
        return left + clients / most_x * (width - left - 20)

    def y(rate: float) -> float:
        return height - bottom - rate / most_y * (height - bottom - 40)

    points = [(x(clients), y(each["rate"])) for clients, each in found.items()]
    line = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/><text x="{left}" y="20">{title}</text>',
        f'<polyline fill="none" stroke="#1f6feb" stroke-width="2" points="{line}"/>',
        f'<path d="M{left} 30V{y(0)}H{width - 20}" fill="none" stroke="black"/>',
        f'<text x="{width / 2}" y="{height - 12}" text-anchor="middle">clients</text>',
    ]
    for (a, b), (clients, each) in zip(points, found.items(), strict=True):
        parts.append(f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3" fill="#1f6feb"/>')
        parts.append(f'<text x="{a:.1f}" y="{y(0) + 16}" text-anchor="middle">{clients}</text>')
        parts.append(f'<text x="{a:.1f}" y="{b - 8:.1f}" text-anchor="middle">{each["rate"]:.0f}/s</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def measure(arguments: argparse.Namespace, url: str) -> None:
    print("| clients | answers/s | p50, s | p99, s | not answered |\n|---|---|---|---|---|", flush=True)
    found: dict[int, dict] = {}
    for clients in [20, *arguments.clients]:  # the first warms up
        given = json.dumps([url, clients, arguments.dim, arguments.seconds, arguments.patience])
        process = subprocess.run(
            [sys.executable, __file__, "--load", given], stdout=subprocess.PIPE, text=True, check=True
        )
        one = json.loads(process.stdout)
        if clients not in arguments.clients:
            continue
        found[clients] = one
        failed = ", ".join(f"{count} {what}" for what, count in one["failed"].items()) or "0"
        print(f"| {clients:,} | {one['rate']:.0f} | {one['p50']:.2f} | {one['p99']:.2f} | {failed} |", flush=True)
    best = max(found, key=lambda clients: found[clients]["rate"])
    beyond = {clients: each["rate"] / found[best]["rate"] for clients, each in found.items() if clients >= 3 * best}
    if beyond:
        thrice = min(beyond)
        told = f"best at {best} clients; of it {beyond[thrice]:.2f} at {thrice}"
        print(f"{told}, and at the least {min(beyond.values()):.2f} with more (goal: 0.8 at three times as many)")
    arguments.out.write_text(picture(found, f"Answers a second, K = {arguments.clusters}, {arguments.dim} dimensions"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    numbers = {
        "type": lambda text: [int(part) for part in text.split(",")],
        "default": [50, 150, 300, 450, 700, 1000],
    }
    parser.add_argument("--clients", **numbers)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--patience", type=float, default=30)
    parser.add_argument("--clusters", type=int, default=1024)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--options", default="", help="of raydkm serve, such as '--replicas 2 --queue-requests 64'")
    parser.add_argument("--out", type=Path, default=Path("goodput.svg"))
    parser.add_argument("--load", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.load:
        print(json.dumps(asyncio.run(load(*json.loads(arguments.load)))))
        return
    import raydkm

    rows = np.random.default_rng(0).standard_normal((2 * arguments.clusters, arguments.dim)).astype(np.float32)
    with tempfile.TemporaryDirectory() as place, socket.socket() as free:
        raydkm.fit(
            rows,
            clusters=arguments.clusters,
            objective="kmeans",
            init="random",
            max_steps=1,
            n_init=1,
            out=f"{place}/m",
        )
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        command = [*SERVICE, f"{place}/m", "--port", str(port), *arguments.options.split()]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as service:
            assert service.stderr is not None
            if not any("serving " in line for line in service.stderr):
                raise SystemExit("the service did not start")
            try:
                measure(arguments, f"http://127.0.0.1:{port}")
            finally:
                service.send_signal(signal.SIGTERM)
                service.stderr.read()


if __name__ == "__main__":
    main()
