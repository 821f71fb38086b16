"""A step takes as many threads as do not wait for each other, and leaves them as they were."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from kfac_pinn import KFACPINN
from kfac_pinn.threads import NAMES, PAUSE, Stopwatch, Threads, look, waited

FREE, BUSY = (1e-4, 1e-4), (3e-2, 1.5e-2)  # (wall, work) of a look


class Hours:
    """Clocks that stand until they are told to go on."""

    def __init__(self) -> None:
        self.wall = self.work = 0.0

    def pass_by(self, wall: float, work: float) -> None:
        self.wall, self.work = self.wall + wall, self.work + work

    def watch(self) -> Stopwatch:
        hours = self

        class Watch(Stopwatch):
            @staticmethod
            def now() -> tuple[float, float]:
                return hours.wall, hours.work

        return Watch()


class Machine:
    """Cores, some of which have other work: more threads than are free wait."""

    def __init__(self, free: int) -> None:
        self.free, self.hours, self.looks = free, Hours(), list[int]()
        self.threads = Threads(self.look, self.hours.watch)

    def look(self, threads: int) -> tuple[float, float]:
        self.looks.append(threads)
        found = BUSY if threads > self.free else FREE
        self.hours.pass_by(*found)
        return found

    def step(self, wall: float = 0.1, work: float = 0.1) -> int:
        """The threads of a step that takes so long."""
        with self.threads.lent():
            self.hours.pass_by(wall, work)
            return torch.get_num_threads()


@pytest.fixture(autouse=True)
def eight_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(8)
    yield
    assert torch.get_num_threads() == 8  # what a step was lent it gives back
    torch.set_num_threads(before)


@pytest.mark.parametrize(("free", "taken"), [(8, 8), (7, 4), (4, 4), (3, 2), (1, 1), (0, 1)])
def test_as_many_as_do_not_wait(free: int, taken: int) -> None:
    assert Machine(free).step() == taken


def test_looks_are_rare_and_take_a_small_share_of_the_time() -> None:
    machine = Machine(1)
    for _ in range(1000):
        machine.step()
    rounds = machine.looks.count(8)
    assert machine.looks == [8, 4, 2] * rounds  # one thread has nobody to wait for
    assert len(machine.looks) * BUSY[0] < 0.06 * machine.hours.wall and rounds > 30


def test_a_machine_that_becomes_free_and_busy_again() -> None:
    machine = Machine(1)
    assert machine.step() == 1
    machine.free = 8
    assert machine.step(wall=3 * PAUSE, work=3 * PAUSE) == 1
    assert machine.step() == 8
    machine.free = 2
    assert machine.step() == 8  # until the next look
    machine.hours.pass_by(2 * PAUSE, 0.0)
    assert machine.step() == 2


def test_a_step_that_waits_is_as_good_as_a_look() -> None:
    machine = Machine(8)
    assert machine.step(wall=2.0, work=1.0) == 8
    assert machine.step() == 4
    assert machine.step(wall=1.2, work=1.0) == 4  # a share that is chance
    assert machine.step() == 4
    machine.hours.pass_by(100 * PAUSE, 0.0)
    assert machine.step() == 8


def test_another_number_of_threads_is_looked_at_afresh() -> None:
    machine = Machine(4)
    assert machine.step() == 4
    torch.set_num_threads(6)
    assert machine.step() == 3
    assert torch.get_num_threads() == 6
    torch.set_num_threads(8)


@pytest.mark.parametrize("name", NAMES)
def test_what_the_environment_says_stands(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "8")
    machine = Machine(1)
    assert machine.step() == 8 and not machine.looks


def test_processes_that_step_together_keep_their_threads() -> None:
    machine = Machine(1)
    with machine.threads.lent(processes=2):
        assert torch.get_num_threads() == 8 and not machine.looks


def test_a_step_that_fails_gives_its_threads_back() -> None:
    machine = Machine(2)
    with pytest.raises(ZeroDivisionError), machine.threads.lent():
        assert torch.get_num_threads() == 2
        raise ZeroDivisionError
    assert torch.get_num_threads() == 8


def test_what_a_closure_says_stands() -> None:
    machine = Machine(2)
    with machine.threads.lent():
        torch.set_num_threads(1)
    assert torch.get_num_threads() == 1
    torch.set_num_threads(8)


def test_a_step_of_an_optimizer(monkeypatch: pytest.MonkeyPatch) -> None:
    machine, model, x = Machine(2), torch.nn.Linear(2, 1), torch.rand(20, 2)
    monkeypatch.setattr("kfac_pinn.optimizers.base.THREADS", machine.threads)
    counted = []

    def closure() -> torch.Tensor:
        counted.append(torch.get_num_threads())
        return model(x) - 1

    KFACPINN(model.parameters()).step(closure)
    assert set(counted) == {2} and machine.looks == [8, 4, 2]


def test_what_a_look_measures() -> None:
    wall, work = look(1)
    assert 0 < work <= 1.1 * wall + 0.02 and torch.get_num_threads() == 8
    assert not waited(1e-3, 0.0) and not waited(1.0, 0.7) and waited(1.0, 0.5)
