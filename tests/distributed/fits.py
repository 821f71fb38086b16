"""Whole runs of `fit` in several processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import kfac_pinn as kp
from kfac_pinn import KFACPINN, Callback, Checkpoint, Every, Patience, Processes, Progress

SIZES = {"interior": 50, "boundary": 20}


class Told(Callback):
    """Notes who called it, and may stop the run or fail; the first process only."""

    alone = True

    def __init__(self, path: Path, stop: int = 0, fail: int = 0) -> None:
        self.path, self.stop, self.fail = path, stop, fail

    def on_step(self, run: kp.Run) -> None:
        with self.path.open("a") as file:
            file.write(f"{run.processes.rank} ")
        if run.step == self.stop:
            run.stop("rank 0 has seen enough")
        if run.step == self.fail:
            raise OSError("the disk is full")


def model_of() -> kp.MLP:
    torch.manual_seed(3)
    return kp.MLP((2, 8, 1)).double()


def flat(model: torch.nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def fitted(
    rank: int, count: int, kind: Any = KFACPINN, sampling: Any = None, steps: int = 6
) -> Any:
    """Parameters and history of a run, with what each process evaluated."""
    model = model_of()
    optimizer = kind(model.parameters(), weight_decay=0.1, processes=Processes())
    sampling = sampling or Every(3, SIZES)
    history = kp.fit(
        model, kp.poisson_2d(), optimizer, steps=steps, every=2, sampling=sampling, seed=5
    )
    keys = ("step", "loss", "held_out_loss", "relative_l2", "rms")
    return flat(model).numpy(), [[row[key] for key in keys] for row in history.rows]


def shares(rank: int, count: int) -> Any:
    """The points that this process trained on, and all of them."""
    model = model_of()
    seen: list[Tensor] = []

    def interior(u: Any, x: Tensor) -> Tensor:
        seen.append(x)
        return u(x) - 1

    box = kp.Box.cube(2)
    problem = kp.Problem("p", box, {"pde": kp.Term(box.interior, interior, 7)})
    optimizer = KFACPINN(model.parameters(), processes=Processes())
    kp.fit(model, problem, optimizer, steps=1, seed=2)
    drawn = torch.Generator().manual_seed(2)
    problem.sample(drawn, dtype=torch.float64)  # held out
    problem.held_out(drawn, dtype=torch.float64)
    whole = problem.sample(drawn, dtype=torch.float64).points["pde"]
    trained = [x for x in seen if len(x) < 7 and any(torch.equal(x[0], each) for each in whole)]
    return trained[-1].numpy(), whole.numpy()


def told(rank: int, count: int, path: str, stop: int, fail: int) -> Any:
    """A run with a callback of the first process alone, and a progress bar."""
    model = model_of()
    optimizer = KFACPINN(model.parameters(), processes=Processes())
    callback = Told(Path(path), stop, fail)
    callbacks = [callback, Progress(), Patience(50)]
    history = kp.fit(
        model, kp.poisson_2d(), optimizer, steps=4, sampling=kp.Fixed(SIZES), callbacks=callbacks
    )
    return history.reason, history.last["step"]


def stored(rank: int, count: int, path: str, steps: int, every: int = 2) -> Any:
    """A run that is stored, and goes on from what is stored there."""
    model = model_of()
    optimizer = KFACPINN(model.parameters(), weight_decay=0.1, processes=Processes())
    callbacks = [Checkpoint(path, every)]
    kp.fit(
        model,
        kp.poisson_2d(),
        optimizer,
        steps=steps,
        every=2,
        sampling=Every(3, SIZES),
        callbacks=callbacks,
    )
    return flat(model).numpy()


def differing(rank: int, count: int, what: str) -> None:
    """Processes that call `fit` with other arguments, or have too few points."""
    model = model_of()
    optimizer = KFACPINN(model.parameters(), processes=Processes())
    sizes = {**SIZES, "boundary": 1} if what == "points" else SIZES
    seed = rank if what == "seed" else 0
    kp.fit(model, kp.poisson_2d(), optimizer, steps=2, sampling=kp.Fixed(sizes), seed=seed)
