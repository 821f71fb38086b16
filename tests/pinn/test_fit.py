"""The training loop: honest rows, the same run from the same seed, bit-exact resumption."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import kfac_pinn
from kfac_pinn.jacobian.losses import ConvexLoss
from kfac_pinn.optimizers.direction import DirectionOptimizer
from kfac_pinn.pinn.domains import Box
from kfac_pinn.pinn.networks import MLP
from kfac_pinn.pinn.problem import Problem, Term, relative_l2
from kfac_pinn.pinn.problems import WithDiffusivity, heat_1d, inverse_heat, poisson_2d
from kfac_pinn.pinn.training import (
    Callback,
    Checkpoint,
    Every,
    Fixed,
    Patience,
    Progress,
    Schedule,
    StopAtError,
    fit,
)
from kfac_pinn.search.line import FixedStep

SMALL = {"interior": 40, "boundary": 20}
OURS = ["KFAC", "KFACStar", "KFACPINN", "ENGD", "SPRING", "HessianFree", "GaussNewton"]


def setup(seed=0, lr=1e-2):
    torch.manual_seed(seed)
    model = MLP((2, 8, 1)).double()
    return model, torch.optim.Adam(model.parameters(), lr)


def rows_but_time(history):
    # As text: floats to the last bit, and nan equal to nan.
    return [repr({k: v for k, v in row.items() if k != "seconds"}) for row in history.rows]


class Interrupt(Callback):
    """Stops the run as a killed process would: without another checkpoint."""

    def __init__(self, at):
        self.at = at

    def on_step(self, run):
        if run.step == self.at:
            raise KeyboardInterrupt


class StopAfter(Callback):
    def __init__(self, steps):
        self.steps = steps

    def on_step(self, run):
        if run.step == self.steps:
            run.stop("enough")


class Noise(Callback):
    """Uses the global random numbers, as dropout would."""

    def on_step(self, run):
        for p in run.model.parameters():
            p.data += 1e-6 * torch.randn_like(p)


@pytest.mark.parametrize(
    "sampling", [Fixed(SMALL), Every(3, SMALL), Every(1, SMALL)], ids=["fixed", "3", "1"]
)
def test_resumed_runs_are_bit_for_bit_the_uninterrupted_one(tmp_path, sampling):
    def train(path, *callbacks):
        model, optimizer = setup()
        schedule = Schedule(torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9))
        checkpoint = Checkpoint(path, every=4)
        history = fit(
            model,
            poisson_2d(),
            optimizer,
            steps=13,
            every=2,
            sampling=sampling,
            callbacks=[schedule, Noise(), checkpoint, *callbacks],
        )
        return history, model

    whole, model = train(tmp_path / "whole.pt", Callback())
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "parts.pt", Interrupt(10))
    torch.randn(5)  # another process is in another state
    resumed, again = train(tmp_path / "parts.pt", Callback())
    assert rows_but_time(resumed) == rows_but_time(whole)
    for p, q in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("name", OURS)
def test_every_optimizer_of_ours_resumes_bit_for_bit(tmp_path, name):
    def train(steps, path=None):
        torch.manual_seed(0)
        model = MLP((2, 6, 5, 1)).double()
        optimizer = getattr(kfac_pinn, name)(model.parameters())
        keep = [Checkpoint(path, every=3)] if path else []
        options = {"every": 1, "sampling": Every(3, SMALL), "callbacks": [*keep, Callback()]}
        return fit(model, poisson_2d(), optimizer, steps=steps, **options), model

    whole, model = train(8)
    train(4, tmp_path / "parts.pt")
    resumed, again = train(8, tmp_path / "parts.pt")
    assert rows_but_time(resumed) == rows_but_time(whole)
    for p, q in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(p, q)


def test_checkpoints_hold_plain_data_and_extend_a_finished_run(tmp_path):
    path = tmp_path / "run.pt"
    model, optimizer = setup()
    options = {"every": 2, "sampling": Fixed(SMALL)}
    fit(model, poisson_2d(), optimizer, steps=5, callbacks=[Checkpoint(path)], **options)
    stored = torch.load(path, weights_only=True)
    assert stored["step"] == 5 and set(stored["points"]) == set(SMALL)

    model, optimizer = setup(seed=1)
    longer = fit(model, poisson_2d(), optimizer, steps=8, callbacks=[Checkpoint(path)], **options)
    model, optimizer = setup()
    whole = fit(model, poisson_2d(), optimizer, steps=8, **options)
    assert rows_but_time(longer) == rows_but_time(whole)
    assert longer.last["seconds"] > longer.rows[0]["seconds"] == 0.0

    anew = [Checkpoint(path, resume=False)]
    fit(model, poisson_2d(), optimizer, steps=3, callbacks=anew, **options)
    assert torch.load(path, weights_only=True)["step"] == 3


def test_rows_are_tidy_and_true():
    model, optimizer = setup()
    problem = poisson_2d()
    history = fit(model, problem, optimizer, steps=7, every=3, sampling=Fixed(SMALL))
    assert history.column("step") == [0, 3, 6, 7] and history.reason == "7 steps are done"
    seconds = history.column("seconds")
    assert seconds == sorted(seconds) and seconds[0] == 0
    x = problem.held_out(dtype=torch.float64)
    error = relative_l2(model, problem.solution, x)
    assert math.isclose(history.last["relative_l2"], error, rel_tol=0.05)  # other points
    assert math.isclose(history.last["rms"], 0.5 * error, rel_tol=0.1)
    assert history.last["loss"] < history.rows[0]["loss"]
    assert history.last.keys() == {
        *("step", "seconds", "loss", "held_out_loss", "relative_l2", "rms")
    }


def test_the_loss_is_half_the_mean_of_squares():
    model, optimizer = setup(lr=0.0)
    problem = poisson_2d()
    history = fit(model, problem, optimizer, steps=1)
    generator = torch.Generator().manual_seed(0)
    problem.sample(generator, None, torch.float64)  # the held-out batch
    problem.held_out(generator, None, torch.float64)
    batch = problem.sample(generator, None, torch.float64)
    expected = sum(0.5 * r.square().mean() for r in batch.residuals(model)().values())
    assert math.isclose(history.last["loss"], expected.item(), rel_tol=1e-12)


@pytest.mark.parametrize("name", ["SGD", "Adam", "LBFGS"])
def test_torch_optimizers_lower_the_loss(name):
    model, _ = setup()
    optimizer = getattr(torch.optim, name)(model.parameters(), lr=1e-2)
    history = fit(model, heat_1d(), optimizer, steps=20, every=20)
    assert history.last["loss"] < history.rows[0]["loss"]


class SteepestDescent(DirectionOptimizer):
    """The least-squares optimizer whose direction is the negative gradient: SGD."""

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr}, FixedStep())

    def direction(self, linearization):
        return -linearization.gradient


def test_our_optimizers_are_given_residuals_and_their_stats_are_rows():
    def train(optimizer):
        model, _ = setup()
        options = {"steps": 6, "every": 2, "sampling": Every(2, SMALL)}
        return fit(model, poisson_2d(), optimizer(model.parameters(), lr=1e-3), **options)

    ours, sgd = train(SteepestDescent), train(torch.optim.SGD)
    assert ours.column("loss") == pytest.approx(sgd.column("loss"), rel=1e-10)
    assert ours.column("relative_l2") == pytest.approx(sgd.column("relative_l2"), rel=1e-10)
    assert {"step_norm", "gradient_norm", "new_loss", "reason"} <= ours.last.keys()


def test_new_points_come_when_the_policy_says_so():
    class Points(Callback):
        def __init__(self):
            self.seen = []

        def on_step(self, run):
            self.seen.append(run.batch.points["interior"][0, 0].item())

    def seen(sampling, problem=None):
        points, (model, optimizer) = Points(), setup()
        problem = problem or poisson_2d()
        fit(model, problem, optimizer, steps=6, sampling=sampling, callbacks=[points])
        return [a == b for a, b in zip(points.seen, points.seen[1:], strict=False)]

    assert seen(Fixed(SMALL)) == [True] * 5
    assert seen(Every(2, SMALL)) == [True, False, True, False, True]
    assert seen(None) == [True] * 5  # as published: one batch


@pytest.mark.usefixtures("a_step_is_a_second")
def test_runs_end_at_seconds_at_an_error_and_at_a_loss_that_is_not_finite():
    model, optimizer = setup()
    problem, fixed = poisson_2d(), Fixed(SMALL)
    history = fit(model, problem, optimizer, seconds=2.5, every=10**9, sampling=fixed)
    assert history.reason == "2.5 seconds are spent"
    assert (history.last["step"], history.last["seconds"]) == (3, 3.0)
    stop = StopAtError(math.inf)
    history = fit(model, problem, optimizer, every=2, sampling=fixed, callbacks=[stop])
    assert "is at most" in history.reason and history.last["step"] == 1
    nn.init.constant_(model.layers[0].weight, math.nan)
    history = fit(model, problem, optimizer, steps=5, sampling=fixed)
    assert history.reason == "the loss is not finite" and history.last["step"] == 1
    with pytest.raises(ValueError, match="no end"):
        fit(model, problem, optimizer)


def test_fitted_points_are_warned_of():
    model, _ = setup()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=300, line_search_fn="strong_wolfe")
    with pytest.warns(UserWarning, match="held out: the points were fitted") as said:
        fit(
            model,
            poisson_2d(),
            optimizer,
            steps=2,
            sampling=Fixed({"interior": 3, "boundary": 2}),
        )
    assert said[-1].filename == __file__  # where the user called


def test_problems_without_a_solution_and_with_unknown_coefficients():
    box = Box.cube(2)
    term = Term(box.interior, lambda u, x: u(x) - 1, 10)
    model, optimizer = setup()
    history = fit(model, Problem("no solution", box, {"all": term}), optimizer, steps=2)
    assert "relative_l2" not in history.last
    model = WithDiffusivity(MLP((2, 6, 1))).double()
    history = fit(model, inverse_heat(), torch.optim.Adam(model.parameters()), steps=2)
    assert model.diffusivity.item() != 1.0 and "relative_l2" in history.last


def test_energies_may_be_negative():
    box = Box.cube(2)

    def energy(u, x):
        return ConvexLoss(u(x), lambda u: 0.5 * u**2 - 3 * u)

    model, optimizer = setup(lr=0.1)
    history = fit(
        model, Problem("energy", box, {"all": Term(box.interior, energy, 10)}), optimizer, steps=40
    )
    assert history.last["loss"] < -2


@pytest.mark.parametrize(
    ("budget", "bar", "shown"),
    [
        ({"steps": 3}, Progress(), "3/3"),
        ({"steps": 3}, Progress(4), "3/4"),
        ({"seconds": 4.0}, Progress(), "4/4 s"),
        ({"steps": 9, "seconds": 4.0}, Progress(), "4/9"),
    ],
)
@pytest.mark.usefixtures("a_step_is_a_second")
def test_progress_shows_the_budget_the_loss_and_the_error(capsys, budget, bar, shown):
    model, optimizer = setup()
    fit(model, poisson_2d(), optimizer, sampling=Fixed(SMALL), callbacks=[bar], **budget)
    last = capsys.readouterr().err.split("\r")[-1]
    assert shown in last and "loss " in last and "error " in last


def test_progress_without_a_solution_or_a_budget(capsys):
    box, (model, optimizer) = Box.cube(2), setup()
    problem = Problem("mine", box, {"all": Term(box.interior, lambda u, x: u(x) - 1, 10)})
    fit(model, problem, optimizer, callbacks=[Progress(), StopAfter(5)])
    last = capsys.readouterr().err.split("\r")[-1]
    assert "5step" in last and "held-out loss " in last


def test_progress_goes_on_where_the_run_was(tmp_path, capsys):
    for steps in (3, 5):
        model, optimizer = setup()
        callbacks = [Progress(), Checkpoint(tmp_path / "run.pt")]
        fit(model, poisson_2d(), optimizer, steps=steps, sampling=Fixed(SMALL), callbacks=callbacks)
    assert "5/5" in capsys.readouterr().err.split("\r")[-1]


def test_patience_begins_anew_with_every_run():
    patience = Patience(3)
    patience.best, patience.since = 0.0, 1  # what a better run, which ended soon, leaves
    model, _ = setup()
    optimizer = kfac_pinn.KFACPINN(model.parameters())
    found = fit(model, poisson_2d(), optimizer, steps=8, every=1, callbacks=[patience])
    assert found.last["step"] == 8 and patience.best > 0


def test_periods_are_positive():
    model = MLP((2, 3, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="every must be at least 1 step, found 0"):
        fit(model, poisson_2d(), optimizer, steps=1, every=0)
    for steps in (0, "9", 0.5):
        with pytest.raises(ValueError, match=r"steps: give 1, 2, ..., or Fixed\(\)"):
            Every(steps)
        with pytest.raises(ValueError, match="Patience needs a number of steps, found"):
            Patience(steps)
    with pytest.raises(TypeError, match=r"Schedule needs a scheduler of torch, found 0\.9"):
        Schedule(0.9)
