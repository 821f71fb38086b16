"""Checkpoints: only good states, of the run they belong to, in files that are whole or refused."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import kfac_pinn
from kfac_pinn.pinn.domains import Box, TimeSpace
from kfac_pinn.pinn.networks import MLP
from kfac_pinn.pinn.problem import Problem, Term
from kfac_pinn.pinn.problems import burgers, heat_1d, poisson_2d
from kfac_pinn.pinn.training import Callback, Checkpoint, Fixed, Patience, Schedule, fit
from kfac_pinn.pinn.wrappers import HardConstraint
from kfac_pinn.search.line import Armijo, GridSearch

SMALL = Fixed({"interior": 12, "boundary": 8})
BOX = Box.cube(2)


def model_of(sizes: tuple[int, ...] = (2, 6, 1), activation: Any = torch.tanh) -> MLP:
    torch.manual_seed(0)
    return MLP(sizes, activation).double()


def sgd(model: nn.Module, lr: float = 1e-2) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=lr)


def problem_of(residual: Any, solution: Any = None, box: Box = BOX, name: str = "mine") -> Problem:
    return Problem(name, box, {"interior": Term(box.interior, residual, 20)}, solution)


class Interrupt(Callback):
    def __init__(self, at: int) -> None:
        self.at = at

    def on_step(self, run: Any) -> None:
        if run.step == self.at:
            raise KeyboardInterrupt


# Only good states.


def explode(model: nn.Module, step: int) -> Callback:
    """Makes the parameters huge (finite, their loss is not) after a step."""

    class Explode(Callback):
        def on_step(self, run: Any) -> None:
            if run.step == step:
                for p in model.parameters():
                    p.data.fill_(1e200)

    return Explode()


@pytest.mark.parametrize("every", [1, 2, 3, 100])
@pytest.mark.parametrize("lr", [1e300, 1e-2], ids=["nan", "huge"])
def test_a_loss_that_is_not_finite_leaves_the_last_good_state(
    tmp_path: Path, every: int, lr: float
) -> None:
    path, model = tmp_path / "run.pt", model_of()
    fit(model, poisson_2d(), sgd(model), steps=6, sampling=SMALL, callbacks=[Checkpoint(path)])
    good = path.read_bytes()
    optimizer = sgd(model)
    if lr == 1e300:  # the parameters overflow, and only the step after finds the loss
        optimizer.param_groups[0]["initial_lr"] = 1e-2
        optimizer.param_groups[0]["momentum"] = 0

    class Faster(Callback):
        def on_start(self, run: Any) -> None:
            self.run = run

        def on_step(self, run: Any) -> None:
            run.optimizer.param_groups[0]["lr"] = lr

    extra = Faster() if lr == 1e300 else explode(model, 7)
    with pytest.warns(UserWarning, match="not finite at step .* not stored"):
        history = fit(
            model,
            poisson_2d(),
            optimizer,
            steps=12,
            sampling=SMALL,
            callbacks=[Checkpoint(path, every), extra],
        )
    assert "not finite" in history.reason
    stored = torch.load(path, weights_only=True)
    assert stored["step"] < history.last["step"]
    assert all(p.isfinite().all() for p in stored["model"].values())
    if every == 100:
        assert path.read_bytes() == good
    again = model_of()
    again.load_state_dict(stored["model"])
    loss = kfac_pinn.total_loss(poisson_2d().sample(dtype=torch.float64).residuals(again)())
    assert loss.isfinite()


def test_a_run_that_fails_from_the_start_stores_nothing(tmp_path: Path) -> None:
    model = model_of()
    nn.init.constant_(model.layers[0].weight, torch.nan)
    with pytest.warns(UserWarning, match="not finite"):
        fit(
            model, poisson_2d(), sgd(model), steps=3, callbacks=[Checkpoint(tmp_path / "run.pt", 1)]
        )
    assert not list(tmp_path.iterdir())


def test_storing_changes_nothing(tmp_path: Path) -> None:
    """Dropout's random numbers and the buffers of a batch norm are the run's."""

    def train(*callbacks: Callback, every: int = 100) -> nn.Module:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1))
        problem = problem_of(lambda u, x: u(x) - x[:, :1])
        options = {"steps": 6, "every": every, "callbacks": callbacks}
        fit(model, problem, torch.optim.Adam(model.parameters()), **options)  # type: ignore[arg-type]
        return model

    whole, stored = train(), train(Checkpoint(tmp_path / "run.pt", every=1), every=2)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, stored.state_dict()[name]), name


# After all other callbacks.


@pytest.mark.parametrize("first", [True, False])
def test_the_place_in_the_list_does_not_matter(tmp_path: Path, first: bool) -> None:
    def train(steps: int, *interrupt: Callback) -> tuple[nn.Module, float]:
        model = model_of()
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        schedule = Schedule(torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5))
        checkpoint = Checkpoint(tmp_path / "run.pt", every=4)
        pair = [checkpoint, schedule] if first else [schedule, checkpoint]
        options = {"steps": steps, "sampling": SMALL, "every": 3}
        fit(model, poisson_2d(), optimizer, callbacks=[*pair, *interrupt], **options)  # type: ignore[arg-type]
        return model, optimizer.param_groups[0]["lr"]

    whole, lr = train(9)
    (tmp_path / "run.pt").unlink()
    with pytest.raises(KeyboardInterrupt):
        train(9, Interrupt(6))
    assert torch.load(tmp_path / "run.pt", weights_only=True)["step"] == 4
    resumed, again = train(9)
    assert lr == again == pytest.approx(1e-2 * 0.5**9)
    pairs = zip(whole.parameters(), resumed.parameters(), strict=True)
    assert all(torch.equal(p, q) for p, q in pairs)


def test_patience_goes_on_waiting(tmp_path: Path) -> None:
    """With a learning rate of zero nothing improves: the first row is the best of the run."""

    def train(*callbacks: Callback) -> Any:
        model = model_of()
        options = {"sampling": SMALL, "steps": 50, "every": 1}
        waiting = [Patience(10), Checkpoint(tmp_path / "run.pt", every=1), *callbacks]
        return fit(model, poisson_2d(), sgd(model, 0.0), callbacks=waiting, **options)  # type: ignore[arg-type]

    with pytest.raises(KeyboardInterrupt):
        train(Interrupt(7))
    history = train()
    assert history.reason == "no progress on held-out points for 10 steps"
    assert history.last["step"] == 11  # the row of step 1 was the first it saw


def test_a_callback_may_be_added_but_not_lost(tmp_path: Path) -> None:
    model, saved = model_of(), Checkpoint(tmp_path / "run.pt")
    optimizer = sgd(model)
    schedule = Schedule(torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5))
    problem = poisson_2d()
    fit(model, problem, optimizer, steps=2, sampling=SMALL, callbacks=[schedule, saved])
    added = [schedule, saved, Patience(100)]
    fit(model, problem, optimizer, steps=3, sampling=SMALL, callbacks=added)
    with pytest.raises(ValueError, match=r"of the kind Schedule and its state; now .*: add it"):
        fit(model, problem, optimizer, steps=4, sampling=SMALL, callbacks=[saved])


@pytest.mark.usefixtures("a_step_is_a_second")
def test_seconds_go_on(tmp_path: Path) -> None:
    def train(*callbacks: Callback) -> Any:
        model = model_of()
        saved = Checkpoint(tmp_path / "run.pt", every=1)
        options = {"sampling": SMALL, "seconds": 10.0}
        return fit(model, poisson_2d(), sgd(model), callbacks=[*callbacks, saved], **options)  # type: ignore[arg-type]

    with pytest.raises(KeyboardInterrupt):
        train(Interrupt(7))
    history = train()
    assert history.reason == "10.0 seconds are spent"
    assert (history.last["step"], history.last["seconds"]) == (10, 10.0)


# The run they belong to.


class Gaussian(nn.Module):
    def __init__(self, width: float) -> None:
        super().__init__()
        self.width = width

    def forward(self, v: Tensor) -> Tensor:
        return torch.exp(-((v / self.width) ** 2))


def wave(speed: float) -> Problem:
    return problem_of(lambda u, x: u(x) - speed)


def unsolved(problem: Problem) -> Problem:
    """Without the solution, which takes a while to evaluate."""
    return dataclasses.replace(problem, solution=None)


SQUARED, CUBED = problem_of(lambda u, x: u(x) ** 2), problem_of(lambda u, x: u(x) ** 3)
WIDE = problem_of(lambda u, x: u(x), box=Box((0.0, 0.0), (1.0, 2.0)))
NARROW = problem_of(lambda u, x: u(x), box=Box((0.0, 0.0), (1.0, 1.0)))
LONG, SHORT = (Problem("mine", TimeSpace(0.0, t, Box.cube(1)), SQUARED.terms) for t in (1.0, 2.0))


class Force:
    """A residual that is an object of the user's own, with a setting."""

    def __init__(self, strength: float) -> None:
        self.strength, self.calls = strength, []

    def __call__(self, u: Any, x: Tensor) -> Tensor:
        return u(x) - self.strength  # type: ignore[no-any-return]


def forced(strength: float) -> Problem:
    return Problem("forced", BOX, {"all": Term(BOX.interior, Force(strength), 9)})


def listed(*parts: Any) -> Problem:
    """A residual that is closed over several tensors or functions."""
    return problem_of(
        lambda u, x: u(x) - sum(part(x[:, :1]) if callable(part) else part for part in parts)
    )


# Name: what makes the two runs, and what the message names of each.
PROBLEMS = {
    "problem": (poisson_2d(), heat_1d(), [r"name: '2d Poisson' there, '1\+1d heat' here"]),
    "viscosity": (unsolved(burgers(0.01)), unsolved(burgers(0.02)), ["0.01", "0.02"]),
    "a closed-over number": (wave(1.0), wave(2.0), ["speed: 1.0 there, 2.0 here"]),
    "the code of a residual": (SQUARED, CUBED, ["residual.code"]),
    "a tensor among several": (
        listed(torch.zeros(1), torch.ones(1)),
        listed(torch.zeros(1), 2 * torch.ones(1)),
        [r"parts.1: float32 \(1,\), norm 1, .* there, float32 \(1,\), norm 2"],
    ),
    "a function among several": (
        listed(0.5, torch.sin),
        listed(0.5, torch.cos),
        [r"parts.1: sin there, cos here"],
    ),
    "a number among several": (listed(0.5, 1.0), listed(0.5, 2.0), [r"\(0.5, 1.0\) there"]),
    "an object's setting": (forced(2.0), forced(3.0), ["strength: 2.0 there, 3.0 here"]),
    "the domain": (WIDE, NARROW, [r"domain.upper: \(1.0, 2.0\) there, \(1.0, 1.0\) here"]),
    "the time": (LONG, SHORT, ["domain.end: 1.0 there, 2.0 here"]),
}
BUILT_IN = lambda model, value: HardConstraint(model, lambda x: value, lambda x: x[:, :1])  # noqa: E731
MODELS = {
    "widths": (model_of((2, 6, 1)), model_of((2, 7, 1)), [r"\(6, 2\) there, .*\(7, 2\) here"]),
    "depth": (model_of((2, 6, 1)), model_of((2, 6, 6, 1)), ["layers.2"]),
    "activation": (model_of(), model_of(activation=torch.sin), ["tanh there, sin here"]),
    "its setting": (
        model_of(activation=Gaussian(1.0)),
        model_of(activation=Gaussian(2.0)),
        ["width: 1.0 there, 2.0 here"],
    ),
    "a condition": (BUILT_IN(model_of(), 0.0), BUILT_IN(model_of(), 1.0), ["0.0 there, 1.0 here"]),
    "dtype": (model_of(), model_of().float(), ["float64", "float32"]),
}
OPTIMIZERS: dict[str, tuple[Any, Any, list[str]]] = {
    "class": (
        lambda p: kfac_pinn.KFAC(p),
        lambda p: kfac_pinn.ENGD(p),
        ["optimizer: KFAC there, ENGD here"],
    ),
    "damping": (
        lambda p: kfac_pinn.KFAC(p, damping=1e-3),
        lambda p: kfac_pinn.KFAC(p, damping=1e-2),
        ["damping: 0.001 there, 0.01 here"],
    ),
    "search": (
        lambda p: kfac_pinn.ENGD(p, search=Armijo()),
        lambda p: kfac_pinn.ENGD(p, search=GridSearch()),
        ["Armijo there, GridSearch here"],
    ),
    "torch's": (
        lambda p: torch.optim.Adam(p),
        lambda p: kfac_pinn.KFACPINN(p),
        ["optimizer: Adam there, KFACPINN here"],
    ),
    "lr": (
        lambda p: torch.optim.Adam(p, lr=1e-3),
        lambda p: torch.optim.Adam(p, lr=1e-2),
        ["lr: 0.001 there, 0.01 here"],
    ),
}


def refused(path: Path, runs: list[tuple[Any, Any, Any]], says: list[str]) -> None:
    """The first run's file is refused by the second, which is left as it was."""
    (model, problem, optimizer), (other, second, wrong) = runs
    fit(model, problem, optimizer, steps=1, callbacks=[Checkpoint(path)])
    before = [p.clone() for p in other.parameters()]
    with pytest.raises(ValueError, match="(?s)" + re.escape(str(path))) as error:
        fit(other, second, wrong, steps=2, callbacks=[Checkpoint(path)])
    for phrase in says:
        assert re.search(phrase, str(error.value)), error.value
    assert all(torch.equal(p, q) for p, q in zip(before, other.parameters(), strict=True))
    anew = [Checkpoint(path, resume=False)]
    fit(other, second, wrong, steps=1, callbacks=anew)


@pytest.mark.parametrize("name", PROBLEMS)
def test_of_another_problem(tmp_path: Path, name: str) -> None:
    first, second, says = PROBLEMS[name]
    runs = [(m, p, sgd(m)) for m, p in ((model_of(), first), (model_of(), second))]
    refused(tmp_path / "run.pt", runs, says)


@pytest.mark.parametrize("name", MODELS)
def test_of_another_model(tmp_path: Path, name: str) -> None:
    first, second, says = MODELS[name]
    refused(tmp_path / "run.pt", [(m, SQUARED, sgd(m)) for m in (first, second)], says)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_of_another_optimizer(tmp_path: Path, name: str) -> None:
    first, second, says = OPTIMIZERS[name]
    runs = [(m, SQUARED, make(m.parameters())) for make in (first, second) for m in [model_of()]]
    refused(tmp_path / "run.pt", runs, says)


def test_an_optimizer_used_again_is_the_same(tmp_path: Path) -> None:
    """Its learning rate is not what it began with; nor is what a model counts."""

    class Counting(nn.Module):
        calls = 0

        def __init__(self) -> None:
            super().__init__()
            self.inner = model_of()

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return self.inner(x)  # type: ignore[no-any-return]

    class Halve(Callback):
        def on_step(self, run: Any) -> None:
            run.optimizer.param_groups[0]["lr"] *= 0.5

    model, seen = Counting(), []

    def residual(u: Any, x: Tensor) -> Tensor:
        seen.append(len(x))
        return u(x) - 1  # type: ignore[no-any-return]

    optimizer, problem = sgd(model), problem_of(residual)
    callbacks = [Halve(), Checkpoint(tmp_path / "run.pt")]
    for steps in (2, 4):
        history = fit(model, problem, optimizer, steps=steps, callbacks=callbacks)
        assert history.last["step"] == steps
    fresh = Counting()
    history = fit(fresh, problem, sgd(fresh), steps=5, callbacks=callbacks)
    assert history.last["step"] == 5


# Files.


def stored(path: Path) -> bytes:
    model = model_of()
    fit(model, SQUARED, sgd(model), steps=1, callbacks=[Checkpoint(path)])
    return path.read_bytes()


def flipped(data: bytes, place: float) -> bytes:
    changed = bytearray(data)
    changed[int(place * (len(data) - 1))] ^= 1
    return bytes(changed)


DAMAGED = {
    "empty": lambda data: b"",
    "one byte": lambda data: data[:1],
    "half": lambda data: data[: len(data) // 2],
    "all but a byte": lambda data: data[:-1],
    "longer": lambda data: data + b"\0",
    "text": lambda data: b"step,loss\n" * 100,
} | {f"flipped at {i / 20:.0%}": lambda data, i=i: flipped(data, i / 20) for i in range(21)}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_files(tmp_path: Path, name: str) -> None:
    path = tmp_path / "run.pt"
    path.write_bytes(DAMAGED[name](stored(path)))  # type: ignore[no-untyped-call]
    model = model_of()
    with pytest.raises(RuntimeError, match=re.escape(f"{path} (") + ".*damaged"):
        fit(model, SQUARED, sgd(model), steps=2, callbacks=[Checkpoint(path)])


def test_files_of_another_kind(tmp_path: Path) -> None:
    path, model = tmp_path / "run.pt", model_of()
    torch.save(model.state_dict(), path)
    with pytest.raises(RuntimeError, match=r"run.pt .* no file of this kind"):
        fit(model, SQUARED, sgd(model), steps=2, callbacks=[Checkpoint(path)])


@pytest.mark.parametrize("when", ["writing", "replacing"])
def test_a_crash_while_writing_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    path = tmp_path / "run.pt"
    data, model = stored(path), model_of()

    def half(content: Any, file: Any, *args: Any, **kwargs: Any) -> None:
        Path(file).write_bytes(data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    def fails(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(*((torch, "save", half) if when == "writing" else (os, "replace", fails)))
        fit(model, SQUARED, sgd(model), steps=2, callbacks=[Checkpoint(path)])
    assert path.read_bytes() == data
    assert [file.name for file in tmp_path.iterdir()] == ["run.pt"]


def test_a_killed_writer_leaves_the_old_file(tmp_path: Path) -> None:
    """What it leaves aside is overwritten by the next."""
    path = tmp_path / "run.pt"
    data = stored(path)
    (tmp_path / "run.pt.partial").write_bytes(data[:100])
    model = model_of()
    history = fit(model, SQUARED, sgd(model), steps=2, callbacks=[Checkpoint(path)])
    assert history.last["step"] == 2
    assert [file.name for file in tmp_path.iterdir()] == ["run.pt"]


def test_the_file_is_never_written_in_place(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    data = stored(path)
    os.link(path, tmp_path / "old.pt")
    model = model_of()
    fit(model, SQUARED, sgd(model), steps=2, callbacks=[Checkpoint(path)])
    assert (tmp_path / "old.pt").read_bytes() == data != path.read_bytes()


def counting(problem: Problem) -> tuple[Problem, list[int]]:
    calls: list[int] = []

    def residual(u: Any, x: Tensor) -> Tensor:
        calls.append(1)
        return u(x)  # type: ignore[no-any-return]

    return problem_of(residual), calls


@pytest.mark.parametrize("kind", ["missing", "a file", "a folder itself", "read only"])
def test_folders_are_looked_at_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    path, error = tmp_path / "there" / "run.pt", "no folder .*there"
    if kind == "a file":
        path.parent.write_text("")
    if kind == "a folder itself":
        path.mkdir(parents=True)
        error = "run.pt is a folder"
    if kind == "read only":
        path.parent.mkdir(mode=0o500)
        error = "cannot write run.pt into .*there"
        if os.access(path.parent, os.W_OK):  # to the superuser nothing is forbidden

            def denied(**_: Any) -> None:
                raise PermissionError(13, "Permission denied")

            monkeypatch.setattr("tempfile.TemporaryFile", denied)
    problem, calls = counting(SQUARED)
    model = model_of()
    with pytest.raises(OSError, match=error):
        fit(model, problem, sgd(model), steps=2, callbacks=[Checkpoint(path)])
    assert not calls


def test_a_state_that_could_not_be_read_again(tmp_path: Path) -> None:
    class Odd(Callback):
        def state_dict(self) -> dict[str, Any]:
            return {"folder": tmp_path}

    model = model_of()
    callbacks = [Odd(), Checkpoint(tmp_path / "run.pt")]
    fit(model, SQUARED, sgd(model), steps=1, callbacks=callbacks)
    with pytest.raises(RuntimeError, match=r"run.pt holds more than tensors, numbers"):
        fit(model, SQUARED, sgd(model), steps=2, callbacks=callbacks)


def test_periods() -> None:
    for every in (0, "9", 1.5):
        with pytest.raises(ValueError, match=f"every must be a number of steps, found '?{every}"):
            Checkpoint("run.pt", every=every)  # type: ignore[arg-type]
