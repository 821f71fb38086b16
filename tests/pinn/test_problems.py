"""Every exact solution solves its problem, and reference solutions agree with other methods."""

from __future__ import annotations

import math

import numpy
import pytest
import torch
from torch import Generator

from kfac_pinn.pinn.domains import Box, grid
from kfac_pinn.pinn.networks import MLP
from kfac_pinn.pinn.problem import Problem, Term, relative_l2, root_mean_square_error
from kfac_pinn.pinn.problems import (
    WithDiffusivity,
    burgers,
    fokker_planck,
    heat_1d,
    heat_4d,
    inverse_heat,
    poisson_2d,
    poisson_5d,
    poisson_10d,
    poisson_100d,
    poisson_ritz,
)
from kfac_pinn.pinn.problems.burgers_equation import cole_hopf

PROBLEMS = [
    poisson_2d(),
    poisson_5d(),
    poisson_10d(),
    poisson_100d(),
    heat_1d(),
    heat_4d(),
    fokker_planck(),
    fokker_planck(2),
    inverse_heat(),
    burgers(),
    burgers(0.01),
]
problems = pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: p.name)


def draw(problem, n=20):
    sizes = dict.fromkeys(problem.terms, n)
    return problem.sample(Generator().manual_seed(0), sizes, torch.float64)


def exact(problem):
    """The solution as a model: with its diffusivity, where that is asked for."""

    def u(x):
        return problem.solution(x)

    u.diffusivity = 0.25
    return u


@problems
def test_the_exact_solution_has_no_residual(problem):
    # Burgers' front is steep: terms of the residual reach 1e4
    tolerance = 1e-8 if "Burgers" in problem.name else 1e-10
    for name, residual in draw(problem).residuals(exact(problem))().items():
        assert residual.abs().max() < tolerance, name


@problems
def test_a_wrong_solution_has_one(problem):
    u = exact(problem)

    def wrong(x):
        return u(x) + 0.1 * torch.sin(3 * x[:, -1:] + 2 * x[:, :1] + 1)

    wrong.diffusivity = 0.25
    assert all(r.abs().max() > 1e-3 for r in draw(problem).residuals(wrong)().values())


def walls(problem, x):
    """Which faces each point lies on, by (coordinate, end); the start of time is (0, 0)."""
    domain = problem.domain
    space = getattr(domain, "space", domain)
    first = domain.dim - space.dim
    bounds = zip(space.lower, space.upper, strict=True)
    found = {
        (first + i, end): x[:, first + i] == b
        for i, ends in enumerate(bounds)
        for end, b in enumerate(ends)
    }
    return found | ({(0, 0): x[:, 0] == domain.start} if first else {})


def conditions_of(problem):
    """The faces on which the published problem says what u is."""
    if problem.name == "inverse heat":
        return set()
    if "Fokker" in problem.name:
        return {(0, 0)}
    faces = {(i, end) for i in range(problem.domain.dim) for end in (0, 1)}
    return faces - {(0, 1)} if hasattr(problem.domain, "initial") else faces


@pytest.mark.parametrize("problem", [*PROBLEMS, poisson_ritz()], ids=lambda p: p.name)
def test_each_face_is_covered_and_nothing_else(problem):
    batch = draw(problem, 3000 if problem.domain.dim < 50 else 6000)
    u = exact(problem)
    moved = batch.residuals(plus_one(u))()
    covered = set()
    for name, x in batch.points.items():
        if name in ("interior", "energy", "measurements"):
            assert not any(on.any() for on in walls(problem, x).values())
            continue
        residual = batch.residuals(u)()[name]
        assert residual.abs().max() < 1e-9
        assert (moved[name] - residual).abs().min() > 0.5  # u enters at every point
        faces = {face: on for face, on in walls(problem, x).items() if on.any()}
        assert sum(on.long() for on in faces.values()).eq(1).all()  # on one face each
        for face, on in faces.items():
            spread = x[on].max(0).values - x[on].min(0).values
            width = [hi - lo for lo, hi in bounds_of(problem.domain)]
            free = [i for i in range(problem.domain.dim) if i != face[0]]
            assert all(spread[i] > 0.5 * width[i] for i in free)  # all over it, at all times
        covered |= set(faces)
    assert covered == conditions_of(problem)


def plus_one(u):
    """u + 1, with its diffusivity."""

    def moved(x):
        return u(x) + 1

    moved.diffusivity = u.diffusivity
    return moved


def bounds_of(domain):
    space = getattr(domain, "space", domain)
    time = [(domain.start, domain.end)] if hasattr(domain, "start") else []
    return [*time, *zip(space.lower, space.upper, strict=True)]


def test_the_ritz_energy_is_stationary_at_the_solution():
    """Its derivative in a direction v that vanishes on the boundary, by the midpoint rule."""
    problem = poisson_ritz()
    x = Box.cube(2, fill=grid).interior(100**2, None, torch.float64)
    energy = problem.terms["energy"].residual

    def loss(t):
        def v(x):
            return x[:, :1] * torch.sin(math.pi * x[:, :1]) * torch.sin(2 * math.pi * x[:, 1:] ** 2)

        return energy(lambda x: problem.solution(x) + t * v(x), x).loss()

    t = torch.zeros((), dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(loss(t), t)
    assert abs(slope) < 1e-3 < loss(torch.tensor(0.3)) - loss(torch.tensor(0.0))


@problems
def test_residuals_of_the_published_network_are_columns(problem):
    model = WithDiffusivity(MLP(problem.networks[0])).double()
    for name, residual in draw(problem).residuals(model)().items():
        assert residual.shape in ((20,), (20, 1)), name
        assert residual.dtype == torch.float64 and residual.requires_grad


@pytest.mark.parametrize(
    ("problem", "sizes", "rms"),
    [
        (poisson_2d(), (900, 120), 0.500),
        (poisson_5d(), (3000, 500), 1.5815),
        (poisson_10d(), (3000, 1000), 1.003 * 1.34),
        (poisson_100d(), (175, 2086), 1.0),
        (heat_1d(), (900, 120), 0.3177),
        (heat_4d(), (3000, 500), 1.906),
        (fokker_planck(), (3000, 1000), 38.63),
    ],
    ids=lambda p: getattr(p, "name", ""),
)
def test_published_sizes_and_the_size_of_the_solution(problem, sizes, rms):
    assert tuple(term.size for term in problem.terms.values()) == sizes
    x = problem.held_out(Generator().manual_seed(0), 20_000, torch.float64)
    assert math.isclose(problem.solution(x).square().mean().sqrt(), rms, rel_tol=0.01)


def test_heat_conditions_are_half_boundary_half_initial():
    x = heat_1d().sample(dtype=torch.float64).points["conditions"]
    assert (x[60:, 0] == 0).all() and ((x[:60, 1] == 0) | (x[:60, 1] == 1)).all()


def test_the_inverse_problem_knows_its_unknown():
    model = WithDiffusivity(MLP((2, 4, 1)), start=0.7).double()
    assert math.isclose(model.diffusivity.item(), 0.7, rel_tol=1e-6)
    residuals = draw(inverse_heat()).residuals(model)()
    residuals["interior"].square().mean().backward()
    assert model.log_kappa.grad != 0


class TestColeHopf:
    @pytest.mark.parametrize("viscosity", [0.01 / math.pi, 0.01, 0.1])
    def test_against_gauss_hermite_quadrature(self, viscosity):
        points = torch.rand(300, 2, dtype=torch.float64) * torch.tensor([1.0, 2.0])
        t, x = points[:, :1], points[:, 1:] - 1
        x[:100] *= 1e-2  # the front
        nodes, weights = map(torch.from_numpy, numpy.polynomial.hermite.hermgauss(150))
        y = x - nodes * torch.sqrt(4 * viscosity * t)
        phi = weights * torch.exp(-torch.cos(math.pi * y) / (2 * math.pi * viscosity))
        expected = -(torch.sin(math.pi * y) * phi).sum(1) / phi.sum(1)
        found = cole_hopf(torch.cat([t, x], 1), viscosity)[:, 0]
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)

    def test_initial_and_boundary_values(self):
        x = torch.linspace(-1, 1, 21, dtype=torch.float64)[:, None]
        start = torch.cat([torch.zeros_like(x), x], 1)
        torch.testing.assert_close(
            cole_hopf(start, 0.01), -torch.sin(math.pi * x), rtol=0, atol=1e-15
        )
        ends = torch.tensor([[0.3, -1], [0.8, 1], [0.5, 0]], dtype=torch.float64)
        assert cole_hopf(ends, 0.01 / math.pi).abs().max() < 1e-14

    def test_the_known_slope_of_the_front(self):
        # Basdevant et al. (1986): max |u_x| = 152.00516 at t = 1.6037 / pi for nu = 0.01 / pi
        point = torch.tensor([[1.6037 / math.pi, 0.0]], dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad(cole_hopf(point, 0.01 / math.pi), point)
        assert math.isclose(slope[0, 1], -152.00516, abs_tol=1e-5)


class TestProblem:
    def test_sampling_follows_generator_sizes_and_dtype(self):
        problem = poisson_2d()
        a, b = (problem.sample(Generator().manual_seed(1), {"interior": 7}) for _ in range(2))
        assert all(torch.equal(a.points[k], b.points[k]) for k in a.points)
        assert len(a.points["interior"]) == 7 and len(a.points["boundary"]) == 120
        assert problem.sample(dtype=torch.float64).points["interior"].dtype == torch.float64
        assert problem.held_out().shape == (9000, 2)
        with pytest.raises(KeyError, match="has terms"):
            problem.sample(sizes={"inside": 3})

    def test_systems_return_one_residual_an_equation(self):
        box = Box.cube(2)
        term = Term(box.interior, lambda u, x: (u(x)[:, 0], u(x)[:, 1]), 4)
        residuals = Problem("system", box, {"flow": term}).sample().residuals(lambda x: x)()
        assert list(residuals) == ["flow 0", "flow 1"]

    def test_errors_relative_and_absolute(self):
        x = torch.rand(50, 1, dtype=torch.float64)
        u, solution = (lambda x: 1.1 * x), (lambda x: x)
        assert math.isclose(relative_l2(u, solution, x), 0.1)
        expected = 0.1 * x.square().mean().sqrt().item()
        assert math.isclose(root_mean_square_error(u, solution, x), expected)
        with pytest.raises(ValueError, match="return \\(N, 1\\)"):
            relative_l2(lambda x: x[:, 0], solution, x)
