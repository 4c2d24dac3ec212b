"""Three processes: they add up, refuse alike, and name the one that does not come."""

from __future__ import annotations

import os
import signal
import socket
import time
from typing import Any

import pytest
import torch
import torch.multiprocessing

from raydkm.engine.comm import ProcessGroup, Solo, gathered
from raydkm.errors import InputError, WorkerLostError

WORLD = 3


def in_three_processes(what: str, killed: int | None = None) -> dict[int, Any]:
    """Run ``worker`` in three processes; return what each answered (nothing, where it was killed)."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spawn = torch.multiprocessing.get_context("spawn")
    answers = spawn.Queue()
    processes = [spawn.Process(target=worker, args=(rank, port, what, answers)) for rank in range(WORLD)]
    for process in processes:
        process.start()
    found = dict(answers.get(timeout=60) for _ in range(WORLD - (killed is not None)))
    for process in processes:
        process.kill()
        process.join()
    return found


def worker(rank: int, port: int, what: str, answers: Any) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(WORLD))
    torch.distributed.init_process_group("gloo")
    comm = ProcessGroup(timeout=2)
    comm.names = comm.all_gather(f"worker {rank} (node n{rank})")
    answer: Any
    began = time.monotonic()
    try:
        if what == "sum":
            buffer = torch.tensor([2**60 + rank, -rank])
            comm.all_reduce(buffer)
            answer = buffer.tolist()
        elif what == "refuse":
            answer = gathered(comm, lambda: refuse(rank))
        else:
            absent, how = what.split()
            if rank == int(absent):
                os.kill(os.getpid(), getattr(signal, how))
            comm.wait()
            answer = None
    except (InputError, WorkerLostError) as error:
        answer = (type(error).__name__, str(error), time.monotonic() - began)
    answers.put((rank, answer))
    time.sleep(20)  # the others hear of a timeout, not of this process's end


def refuse(rank: int) -> int:
    if rank == 1:
        raise InputError("row 7 is bad")
    return rank


def test_sums_are_exact_integers() -> None:
    assert in_three_processes("sum") == {rank: [3 * 2**60 + 3, -3] for rank in range(WORLD)}


def test_what_one_refuses_all_raise() -> None:
    answers = in_three_processes("refuse")
    assert [answers[rank][:2] for rank in range(WORLD)] == [("InputError", "row 7 is bad")] * WORLD


@pytest.mark.parametrize("how", ["SIGSTOP", "SIGKILL"])
def test_a_worker_that_does_not_come_is_named_by_the_first(how: str) -> None:
    answers = in_three_processes(f"1 {how}", killed=1)
    kind, told, seconds = answers[0]
    assert kind == "WorkerLostError"
    assert told.startswith("worker 1 (node n1) died, or did not answer for 2 s")
    assert seconds < 10


def test_a_first_worker_that_hangs_is_named_by_the_others() -> None:
    answers = in_three_processes("0 SIGSTOP", killed=0)
    assert answers[2][:2] == ("WorkerLostError", "worker 0 (node n0) did not answer for 8 s")


def test_one_process_needs_nobody() -> None:
    comm = Solo()
    comm.wait()
    buffer = torch.tensor([5])
    comm.all_reduce(buffer)
    assert (buffer.tolist(), gathered(comm, lambda: 3)) == ([5], [3])
    with pytest.raises(InputError, match="row 7"):
        gathered(comm, lambda: refuse(1))
