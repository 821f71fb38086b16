"""Points drawn by residuals: their density, what `fit` does with them, and what stays."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Generator

from kfac_pinn import GaussNewton
from kfac_pinn.pinn.domains import Ball, Box
from kfac_pinn.pinn.networks import MLP
from kfac_pinn.pinn.problem import Problem, Term
from kfac_pinn.pinn.problems import heat_1d, poisson_2d, poisson_ritz
from kfac_pinn.pinn.training import R3, RAD, Causal, Checkpoint, Every, by_residual, fit
from kfac_pinn.pinn.training.adaptive import causal_weights, residual_sizes

F64 = torch.float64
FEW = {"interior": 40, "boundary": 20}
HEAT = {"interior": 60, "conditions": 20}


def seeded(seed=0):
    return Generator().manual_seed(seed)


def candidates(n=40_000):
    return Box.cube(1).interior(n, seeded(), F64)


@pytest.mark.parametrize(("power", "floor"), [(1.0, 1.0), (2.0, 0.1), (1.0, 0.01), (0.0, 1.0)])
def test_the_density_is_that_of_the_formula(power, floor):
    x = candidates()
    sizes = 3e5 * x[:, 0] ** 2  # units do not matter
    found = by_residual(x, sizes, 2000, power, floor, seeded(1))[:, 0]
    assert len(found.unique()) == 2000
    grid = torch.linspace(0, 1, 2001, dtype=F64)
    density = grid ** (2 * power) * (2 * power + 1) + floor
    for moment in (1, 2):
        expected = torch.trapezoid(grid**moment * density, grid) / torch.trapezoid(density, grid)
        assert float((found**moment).mean()) == pytest.approx(float(expected), abs=0.03)


def test_a_solved_problem_is_drawn_evenly():
    x = candidates()
    assert float(
        by_residual(x, torch.zeros(len(x)), 2000, generator=seeded(1)).mean()
    ) == pytest.approx(0.5, abs=0.03)


def test_by_residual_follows_its_generator():
    x = candidates(500)
    one, other = (by_residual(x, x[:, 0], 50, generator=seeded(3)) for _ in range(2))
    assert torch.equal(one, other) and not torch.equal(
        one, by_residual(x, x[:, 0], 50, generator=seeded(4))
    )


def test_systems_count_by_the_root_of_their_squares():
    term = Term(Box.cube(2).interior, lambda u, x: (3 * u(x), 4 * u(x)[:, 0]), 5)
    x = Box.cube(2).interior(5, seeded(), F64)
    found = residual_sizes(lambda x: x[:, :1], term, x)
    torch.testing.assert_close(found, 5 * x[:, 0])


def test_power_zero_is_a_uniform_draw() -> None:
    assert RAD(power=0.0).power == 0
    x = torch.arange(2000.0)[:, None]
    chosen = by_residual(x, x[:, 0] ** 9, 1000, power=0.0)
    assert 850 < float(chosen.mean()) < 1150


MISUSED = {
    "few": (lambda: by_residual(torch.rand(5, 2), torch.rand(5), 6), "at least as many candidates"),
    "sizes": (lambda: by_residual(torch.rand(5, 2), torch.rand(4), 2), "one size a candidate"),
    "nan": (lambda: by_residual(torch.rand(2, 1), torch.tensor([1.0, math.nan]), 1), "finite"),
    "floor": (
        lambda: by_residual(torch.rand(2, 1), torch.rand(2), 1, floor=0.0),
        "floor > 0",
    ),
    "RAD floor": (lambda: RAD(floor=0.0), "floor > 0"),
    "RAD power": (lambda: RAD(power=-0.1), "power >= 0"),
    "RAD every": (lambda: RAD(every=0), "every must be a whole number"),
    "RAD text": (lambda: RAD(terms="interior"), "a list of names"),
    "R3 every": (lambda: R3(every=1.5), "every must be a whole number"),
    "Causal": (lambda: Causal(tolerance=-1.0), "tolerance >= 0"),
    "pieces": (lambda: Causal(pieces=0), "pieces must be"),
}


@pytest.mark.parametrize("name", MISUSED)
def test_misuse_is_named(name):
    call, message = MISUSED[name]
    with pytest.raises((TypeError, ValueError), match=message):
        call()


def trained(sampling, problem=None, steps=4, **more):
    torch.manual_seed(0)
    model = MLP((2, 6, 1)).double()
    problem = problem or poisson_2d()
    history = fit(
        model, problem, GaussNewton(model.parameters()), steps=steps, sampling=sampling, **more
    )
    return model, history


class Points:
    """A sampling that remembers the batches another one gave."""

    def __init__(self, sampling):
        self.sampling, self.batches = sampling, []

    def __call__(self, run):
        found = self.sampling(run)
        if found is not None:
            self.batches.append({k: v.clone() for k, v in found.points.items()})
        return found


@pytest.mark.filterwarnings("ignore:the loss is")
@pytest.mark.filterwarnings("ignore:the last step left")
class TestInFit:
    def test_rad_draws_where_the_residual_is_large(self):
        """All of the residual of the zero function lies where the source is."""

        def source(u, x):
            return u(x) * 0.01 + 100 * (x[:, :1] > 0.8)

        box = Box.cube(2)
        problem = Problem("step", box, {"interior": Term(box.interior, source, 200)})
        points = Points(RAD(every=2, floor=0.01))
        trained(points, problem, steps=3)
        first, second = points.batches
        assert (first["interior"][:, 0] > 0.8).double().mean() < 0.3
        assert (second["interior"][:, 0] > 0.8).double().mean() > 0.9
        assert second["interior"].shape == (200, 2)

    def test_terms_not_named_are_drawn_anew_and_sizes_hold(self):
        points = Points(RAD(every=2, sizes=FEW))
        trained(points, steps=5)
        assert len(points.batches) == 3
        for one, other in zip(points.batches, points.batches[1:], strict=False):
            for name, n in FEW.items():
                assert len(other[name]) == n and not torch.equal(one[name], other[name])

    def test_r3_keeps_what_is_above_the_mean(self):
        points = Points(R3(every=1, sizes=FEW))
        model = MLP((2, 6, 1)).double()
        terms = poisson_2d().terms
        seen = []

        def sampling(run):
            if run.step:
                x = run.batch.points["interior"]
                sizes = residual_sizes(run.model, terms["interior"], x)
                seen.append(x[sizes > sizes.mean()])
            return points(run)

        fit(model, poisson_2d(), GaussNewton(model.parameters()), steps=3, sampling=sampling)
        for kept, batch in zip(seen, points.batches[1:], strict=True):
            assert torch.equal(batch["interior"][: len(kept)], kept) and 0 < len(kept) < 40
            assert len(batch["interior"]) == 40
            assert torch.equal(batch["boundary"], points.batches[0]["boundary"])

    def test_causal_points_come_early_while_the_start_is_wrong(self):
        points = Points(Causal(every=1, tolerance=1e8, pieces=10, sizes=HEAT))
        trained(points, heat_1d(), steps=1)
        assert points.batches[0]["interior"][:, 0].max() < 0.2
        even = Points(Causal(every=1, tolerance=0.0, sizes=HEAT))
        trained(even, heat_1d(), steps=1)
        assert even.batches[0]["interior"][:, 0].max() > 0.9
        with pytest.raises(ValueError, match="has no time"):
            trained(Causal())

    @pytest.mark.parametrize("sampling", [RAD(2, sizes=FEW), R3(2, sizes=FEW)])
    def test_a_resumed_run_goes_on_bit_for_bit(self, sampling, tmp_path):
        whole, _ = trained(sampling, steps=7)
        trained(sampling, steps=3, callbacks=[Checkpoint(tmp_path / "run.pt")])
        parts, _ = trained(sampling, steps=7, callbacks=[Checkpoint(tmp_path / "run.pt")])
        for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
            assert torch.equal(a, b)

    def test_any_sampler_will_do(self):
        shape = Box.cube(2, -1.0, 1.0) - Ball((0.0, 0.0), 0.5)
        terms = {"interior": Term(shape.interior, lambda u, x: u(x) - x[:, :1] ** 3, 60)}
        points = Points(RAD(every=1))
        trained(points, Problem("ring", shape, terms), steps=3)
        assert all(shape.contains(b["interior"]).all() for b in points.batches)

    def test_points_held_out_stay_as_they_were(self):
        """So that points that were fitted show."""
        held = []

        def sampling(other):
            def draw(run):
                held.append(run.held_out.points["interior"])
                return other(run)

            return draw

        trained(sampling(RAD(every=2, sizes=FEW)))
        trained(sampling(Every(2, FEW)))
        assert all(torch.equal(held[0], x) for x in held)

    def test_fitted_points_are_still_noticed(self):
        few = {"interior": 6, "boundary": 4}
        with pytest.warns(UserWarning, match="the points were fitted"):
            torch.manual_seed(0)
            model = MLP((2, 20, 1)).double()
            fit(
                model,
                poisson_2d(),
                GaussNewton(model.parameters()),
                steps=40,
                sampling=RAD(every=1000, sizes=few),
            )

    def test_terms_are_named(self):
        with pytest.raises(KeyError, match="name those whose points are to be chosen"):
            trained(RAD(every=1, terms=("inside",)), steps=3)
        energy = replace(poisson_ritz(), resample_every=None)
        with pytest.raises(ValueError, match="energies and integrals have none"):
            trained(RAD(every=1, terms=("energy",)), energy, steps=3)


def test_causal_weights_are_those_of_the_formula():
    squares = torch.rand(50, dtype=F64)
    piece = torch.randint(0, 5, (50,))
    piece[:5] = torch.arange(5)
    found = causal_weights(squares, piece, 5)
    for n in range(50):
        before = [squares[piece == j].mean() for j in range(int(piece[n]))]
        assert float(found[n]) == pytest.approx(math.exp(-float(sum(before)) / 5))
