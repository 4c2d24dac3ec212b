"""Several processes that add up through gloo, without Ray: for tests of what workers do together."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.multiprocessing

from raydkm.engine.comm import ProcessGroup
from tests import perturbed

perturbed.install()  # in each process that imports this module

#: ``task(comm, argument)`` in every process; what it returns, or raises, is its answer.
Task = Callable[[ProcessGroup, Any], Any]


def answers_of(
    world: int, task: Task, argument: Any = None, *, timeout: float = 60, silent: int | None = None
) -> dict[int, Any]:
    """Run a task in `world` processes; return the answers by rank, of all but a `silent` one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spawn = torch.multiprocessing.get_context("spawn")
    answers, done = spawn.Queue(), spawn.Event()
    arguments = [(rank, world, port, timeout, task, argument, answers, done) for rank in range(world)]
    processes = [spawn.Process(target=_process, args=each) for each in arguments]
    for process in processes:
        process.start()
    try:
        return dict(answers.get(timeout=240) for _ in range(world - (silent is not None)))
    finally:
        done.set()
        for process in processes:
            process.kill()
            process.join()


def _process(
    rank: int, world: int, port: int, timeout: float, task: Task, argument: Any, answers: Any, done: Any
) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(world))
    torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=2 * timeout + 1))  # as on Ray
    comm = ProcessGroup(timeout)
    comm.names = comm.all_gather(f"worker {rank} (node n{rank})")
    answer: Any
    try:
        answer = task(comm, argument)
    except Exception as error:  # noqa: BLE001 - for the test to look at
        answer = error
    answers.put((rank, answer))
    done.wait(30)  # the others hear of a timeout, not of this process's end
