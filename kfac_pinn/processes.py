"""Several processes with points of their own: the few things that they say to each other.

`torch.distributed` does the talking. Everything that is decided (a step is accepted, a damping
falls, a solve stops) follows from numbers that are the same in all processes, so that all of them
take the same branch.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeAlias, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["ALONE", "Alone", "Group", "Processes"]

T = TypeVar("T")


class Alone:
    """One process: sums are what they are, and nobody is asked."""

    rank, count = 0, 1

    def together(self) -> AbstractContextManager[None]:
        """Errors are errors."""
        return nullcontext()

    def alike(self, value: str, message: str) -> None:
        """It is."""

    def same(self, parameters: Iterable[Tensor]) -> None:
        """They are."""

    def sum(self, *tensors: Tensor) -> list[Tensor]:
        """The tensors."""
        return list(tensors)

    def gather(self, rows: Tensor, sizes: Sequence[int] | None = None) -> Tensor:
        """The rows."""
        return rows

    def of_rank(self, tensors: Sequence[Tensor], rank: int) -> list[Tensor]:
        """The tensors."""
        return list(tensors)

    def totals(self, counts: Sequence[int]) -> list[int]:
        """The counts."""
        return list(counts)

    def first(self, make: Callable[[], T]) -> T:
        """What it makes."""
        return make()

    def most(self, number: float) -> float:
        """The number."""
        return number

    def said(self, text: str) -> str:
        """The text."""
        return text

    def share(self, points: Tensor) -> Tensor:
        """The points."""
        return points


class Processes:
    """The processes of a group, each with some of the points: data parallelism.

        torch.distributed.init_process_group("gloo")            # started by torchrun
        optimizer = KFACPINN(model.parameters(), processes=Processes())

    Every process evaluates its own points in the closure, and all take the step that one process
    would take on all points: the loss of a term is the mean over the points of all processes,

        L_k = sum_q N_kq / N_k L_kq,      N_k = sum_q N_kq,      q = 0, ..., W - 1,

    with N_kq points and the mean loss L_kq in process q. Numbers of points may differ. A term that
    all return alike, a prior say, counts once, its mean being what it is in each.

    Args:
        group: of `torch.distributed`; None: all processes.

    Attributes:
        rank, count: q and W.
        sent: bytes that this process has sent so far, by the formulas of ring algorithms.

    Raises:
        RuntimeError: where `torch.distributed` is not initialised.
        ValueError: in a process that is not in the group.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        if not (dist.is_available() and dist.is_initialized()):
            raise RuntimeError(
                "there are no processes yet: call torch.distributed.init_process_group('gloo') "
                "first, in a program started by torchrun"
            )
        self.group, self.rank = group, dist.get_rank(group)
        self.count, self.sent = dist.get_world_size(group), 0
        self._known: BaseException | None = None  # the error that all processes raise
        if self.rank < 0:
            raise ValueError("this process is not in the group; construct Processes in its members")

    def __deepcopy__(self, memo: Any) -> Processes:
        """Copies of an optimizer belong to the same processes."""
        return self

    def __reduce__(self) -> Any:
        """A pickle belongs to all processes of the program that reads it.

        Raises:
            TypeError: for a part of them, which another program does not have.
        """
        if self.group is not None:
            raise TypeError("a group of processes cannot be pickled: save the state_dict instead")
        return Processes, ()

    @contextmanager
    def together(self) -> Iterator[None]:
        """A part of the program that may fail in one process: then it fails in all.

        Everyone learns at the end of the part, or at its first exchange, whether somebody failed.
        Reductions of DistributedDataParallel are suspended: its own would be a second one.

        Raises:
            The error of the first process that failed, in all of them, with its rank.
        """
        try:
            with unsynchronised():
                yield
        except Exception as error:
            if not self._is_known(error):
                self._exchange(1, "")
                raise self._common(error) from error
            raise
        self.confirm()

    def confirm(self) -> None:
        """Nobody has failed so far.

        Raises:
            The error of the first process that failed.
        """
        self.alike("", "")

    def alike(self, value: str, message: str) -> None:
        """A fact is the same in all processes.

        Raises:
            RuntimeError: with the message and the two ranks that differ, in all processes.
            The error of the first process that failed.
        """
        table = self._exchange(0, value)
        if table[:, 0].any():
            raise self._common(None)
        if differ := [q for q in range(self.count) if table[q, 1] != table[0, 1]]:
            raise self._marked(RuntimeError(f"ranks 0 and {differ[0]} differ: {message}"))

    def same(self, parameters: Iterable[Tensor]) -> None:
        """Parameters are the same in all processes.

        Raises:
            RuntimeError: where they are not, in all processes.
        """
        parts = [torch.view_as_real(p) if p.is_complex() else p for p in parameters]
        numbers = [(float(p.double().sum()), float(p.double().norm())) for p in parts]
        self.alike(str(numbers), APART)

    def sum(self, *tensors: Tensor) -> list[Tensor]:
        """The sums over the processes, in one exchange."""
        if not tensors:
            return []
        flat = torch.cat([t.reshape(-1) for t in tensors])
        self._carry(lambda: dist.all_reduce(flat, group=self.group))
        self.sent += 2 * flat.nbytes * (self.count - 1) // self.count
        parts = flat.split([t.numel() for t in tensors])
        return [part.view(t.shape) for part, t in zip(parts, tensors, strict=True)]

    def gather(self, rows: Tensor, sizes: Sequence[int] | None = None) -> Tensor:
        """The rows (n_q, ...) of all processes, one after the other.

        Args:
            sizes: n_q, if they are known.
        """
        if sizes is None:
            own = torch.tensor([len(rows)], device=rows.device)
            sizes = self._all(own).flatten().tolist()
        padded = rows.new_zeros(max(sizes), *rows.shape[1:])
        padded[: len(rows)] = rows
        table = self._all(padded)
        return torch.cat([part[:size] for part, size in zip(table, sizes, strict=True)])

    def of_rank(self, tensors: Sequence[Tensor], rank: int) -> list[Tensor]:
        """What one process holds where all hold tensors like these, of other shapes."""
        shapes: list[Any] = [[t.shape for t in tensors]]
        self._carry(lambda: dist.broadcast_object_list(shapes, group=self.group, group_src=rank))
        sizes = [shape.numel() for shape in shapes[0]]
        flat = torch.cat([t.reshape(-1) for t in tensors])
        if rank != self.rank:
            flat = flat.new_empty(sum(sizes))
        self._carry(lambda: dist.broadcast(flat, group=self.group, group_src=rank))
        self.sent += flat.nbytes * (self.count - 1) // self.count
        return [part.view(s) for part, s in zip(flat.split(sizes), shapes[0], strict=True)]

    def totals(self, counts: Sequence[int]) -> list[int]:
        """Sums of a few whole numbers, how many being the same in all processes.

        Raises:
            RuntimeError: where it is not.
        """
        self.alike(str(len(counts)), "their closures return different numbers of terms")
        return self._all(torch.tensor(counts, device=self.device)).sum(0).tolist()

    def first(self, make: Callable[[], T]) -> T:
        """What process 0 makes, in all of them; the others make nothing.

        Raises:
            The error of process 0, in all of them.
        """
        with self.together():
            made: list[Any] = [make() if self.rank == 0 else None]
        self._carry(lambda: dist.broadcast_object_list(made, group=self.group, group_src=0))
        return made[0]

    def most(self, number: float) -> float:
        """The largest of a number in all processes."""
        own = torch.tensor([number], dtype=torch.float64, device=self.device)
        return float(self._all(own).max())

    def said(self, text: str) -> str:
        """What the first process says that says anything; empty if none does."""
        flags = self._all(torch.tensor([bool(text)], device=self.device)).flatten()
        if not flags.any():
            return ""
        told, rank = [text], int(flags.nonzero()[0])
        self._carry(lambda: dist.broadcast_object_list(told, group=self.group, group_src=rank))
        return told[0]

    def share(self, points: Tensor) -> Tensor:
        """Of points (N, ...) that all have, this one has rows N q / W to N (q + 1) / W."""
        start, end = (len(points) * q // self.count for q in (self.rank, self.rank + 1))
        return points[start:end]

    @property
    def device(self) -> torch.device:
        """Where small messages must be: NCCL knows the GPU only."""
        nccl = dist.get_backend(self.group) == "nccl"
        return torch.device("cuda" if nccl else "cpu")

    def _all(self, tensor: Tensor) -> Tensor:
        """Tensors of one shape, stacked (W, ...)."""
        parts = [torch.empty_like(tensor) for _ in range(self.count)]
        self._carry(lambda: dist.all_gather(parts, tensor.contiguous(), group=self.group))
        self.sent += tensor.nbytes * (self.count - 1)
        return torch.stack(parts)

    def _exchange(self, failed: int, value: str) -> Tensor:
        """Whether each process has failed, and a checksum of a fact, (W, 2)."""
        return self._all(torch.tensor([failed, zlib.crc32(value.encode())], device=self.device))

    def _common(self, error: Exception | None) -> Exception:
        """The error of the first process that failed, told in all of them."""
        told = None if error is None else (portable(type(error)), str(error))
        found: list[Any] = [None] * self.count
        self._carry(lambda: dist.all_gather_object(found, told, group=self.group))
        rank, (kind, text) = next((q, told) for q, told in enumerate(found) if told is not None)
        return self._marked(rebuilt(kind, f"rank {rank}: {text}"))

    def _carry(self, exchange: Callable[[], Any]) -> None:
        """Run a collective; where it breaks, say who is gone."""
        try:
            exchange()
        except RuntimeError as error:
            gone = ", ".join(map(str, self._gone())) or "unknown"
            message = f"lost the connection to rank {gone} of {self.count} ({error})"
            raise self._marked(ConnectionError(message)) from error

    def _gone(self) -> list[int]:
        """The ranks that nothing can be sent to."""
        return [q for q in range(self.count) if q != self.rank and not self._reaches(q)]

    def _reaches(self, rank: int) -> bool:
        """Whether a message can be posted; nobody will read it."""
        try:
            dist.isend(torch.zeros(1, device=self.device), group=self.group, group_dst=rank, tag=1)
        except RuntimeError:
            return False
        return True

    def _marked(self, error: Exception) -> Exception:
        """Remember an error as one that all processes raise."""
        self._known = error
        return error

    def _is_known(self, error: BaseException | None) -> bool:
        """Whether all processes raise it already, or one that it follows from."""
        while error is not None:
            if error is self._known:
                return True
            error = error.__cause__
        return False


Group: TypeAlias = Alone | Processes
ALONE = Alone()

APART = (
    "their parameters have different values. Seed all ranks alike before the model is built "
    "(torch.manual_seed(0)) or broadcast its parameters, and draw points only by a generator of "
    "the rank's own; on machines that round differently, broadcast them every few steps"
)


def portable(kind: type[Exception]) -> type[Exception]:
    """A kind of error that other processes know too."""
    return kind if "<locals>" not in kind.__qualname__ else RuntimeError


def rebuilt(kind: type[Exception], message: str) -> Exception:
    """An error of that kind with another message."""
    try:
        return kind(message)
    except TypeError:  # it takes other arguments
        return RuntimeError(f"{message} ({kind.__name__})")


@contextmanager
def unsynchronised() -> Iterator[None]:
    """Modules wrapped in DistributedDataParallel that are called here wait for no backward()."""
    found = []

    def suspend(module: Any, arguments: Any) -> None:
        ddp = isinstance(module, torch.nn.parallel.DistributedDataParallel)
        if ddp and module.require_backward_grad_sync:
            module.require_backward_grad_sync = False
            found.append(module)

    handle = torch.nn.modules.module.register_module_forward_pre_hook(suspend)
    try:
        yield
    finally:
        handle.remove()
        for module in found:
            module.require_backward_grad_sync = True
