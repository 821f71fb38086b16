"""Processes that stay: started once for each number, they run one case after another."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

PATIENCE = 60.0  # seconds


class Pool:
    """W processes of one gloo group.

    Args:
        count: W.
    """

    def __init__(self, count: int) -> None:
        context, port = mp.get_context("forkserver"), free_port()
        # Imported once, for all processes
        context.set_forkserver_preload(["tests.distributed.fits", "torch._dynamo"])
        ends = [context.Pipe() for _ in range(count)]
        self.pipes = [here for here, _ in ends]
        self.processes = [
            context.Process(target=serve, args=(rank, count, port, there), daemon=True)
            for rank, (_, there) in enumerate(ends)
        ]
        for process in self.processes:
            process.start()

    def __call__(self, case: Callable[..., Any], *arguments: Any) -> list[Any]:
        """What case(rank, W, *arguments) returns, or raises, in every process; None: it is gone."""
        for pipe in self.pipes:
            pipe.send((case, arguments))
        return [answer(pipe) for pipe in self.pipes]

    def close(self) -> None:
        """End them."""
        for process in self.processes:
            process.kill()
            process.join()


def answer(pipe: Connection) -> Any:
    """What one process has to say."""
    assert pipe.poll(PATIENCE), "a process hangs"
    try:
        return pipe.recv()
    except EOFError:
        return None


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def serve(rank: int, count: int, port: int, pipe: Connection) -> None:
    """Run cases until the pipe ends."""
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=count, timeout=timedelta(seconds=40))
    while True:
        try:
            case, arguments = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send(case(rank, count, *arguments))
        except Exception as error:
            pipe.send(RuntimeError(f"{type(error).__name__}: {error}"))
