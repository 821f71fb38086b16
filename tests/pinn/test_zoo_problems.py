"""Every problem by its name: its solution solves it term by term, each face and time is covered.

References that were computed are compared with coarser ones and with another method.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Generator

from kfac_pinn import linearize
from kfac_pinn.pinn.domains import Box, TimeSpace
from kfac_pinn.pinn.networks import MLP
from kfac_pinn.pinn.problem import InverseProblem
from kfac_pinn.pinn.problems import PROBLEMS
from kfac_pinn.pinn.problems.cavity import solve_cavity
from kfac_pinn.pinn.problems.holes import (
    BESSEL,
    one_on_walls,
    particular,
    solve_poisson_boltzmann,
    solve_poisson_holes,
    source,
)
from kfac_pinn.pinn.problems.in_time import InTime, runge_kutta
from kfac_pinn.pinn.problems.inverse import scatter, solve_lorenz
from kfac_pinn.pinn.problems.periodic_flows import (
    solve_allen_cahn,
    solve_kdv,
    solve_kuramoto_sivashinsky,
)
from kfac_pinn.pinn.problems.rods import rates_of
from kfac_pinn.pinn.wrappers import SideBySide, WithUnknowns
from kfac_pinn.taylor_mode.operators import laplacian, taylor

F64 = torch.float64
TESTED_ELSEWHERE = {"poisson_ritz"}  # an energy
NAMES = [name for name in PROBLEMS if name not in TESTED_ELSEWHERE]
# Computed references: what their residuals come to, or what their fit is off by
TOLERANCES = {
    ("kdv", "interior"): 1e-4,
    ("kuramoto_sivashinsky", "interior"): 1e-2,  # of terms of 1e2
    ("kuramoto_sivashinsky", "periodic 3"): 1e-8,
    ("allen_cahn", "interior"): 1e-3,
    ("allen_cahn", "initial"): 2e-4,
    ("lid_driven_cavity", "interior 1"): 2e-2,
    ("lid_driven_cavity", "interior 2"): 2e-2,
    ("poisson_boltzmann", "walls"): 2e-7,
    ("poisson_boltzmann", "rims"): 1e-7,
    ("lorenz_inverse", "interior 0"): 1e-7,
    ("lorenz_inverse", "interior 1"): 1e-7,
    ("lorenz_inverse", "interior 2"): 1e-7,
}


@pytest.fixture(scope="module", params=NAMES)
def case(request):
    return request.param, PROBLEMS[request.param]()


def draw(problem, n=20):
    return problem.sample(Generator().manual_seed(0), dict.fromkeys(problem.terms, n), F64)


def with_truths(u, problem):
    u.diffusivity = 0.25  # the older problem's
    for name, unknown in getattr(problem, "unknowns", {}).items():
        setattr(u, name, unknown.truth)
    return u


def exact(problem):
    return with_truths(lambda x: problem.solution(x), problem)


def test_the_solution_has_no_residual(case):
    name, problem = case
    for term, residual in draw(problem).residuals(exact(problem))().items():
        default = 1e-8 if name == "burgers" else 1e-10
        assert residual.abs().max() < TOLERANCES.get((name, term), default), term


def test_an_optimizer_can_linearise_it(case):
    """With the sizes it comes with, where they are small: a start of one point, say."""
    _, problem = case
    sizes = {name: min(term.size, 9) for name, term in problem.terms.items()}
    network = MLP((problem.networks[0][0], 3, problem.networks[0][-1])).double()
    model = WithUnknowns(network, dict.fromkeys(getattr(problem, "unknowns", {}), 1.0)).double()
    closure = problem.sample(Generator().manual_seed(0), sizes, F64).residuals(model)
    lin = linearize(closure, list(model.parameters()), check=False)
    assert math.isfinite(lin.loss) and lin.gradient.isfinite().all()


def test_a_wrong_function_has_one_in_every_term(case):
    _, problem = case

    def u(x):
        z = sum((1.3 * i + 2) * x[:, i : i + 1] for i in range(x.shape[1]))
        found = problem.solution(x)
        waves = [torch.sin(z + j) for j in range(found.shape[1])]
        return found + 0.3 * torch.cat(waves, 1)

    residuals = draw(problem, 40).residuals(with_truths(u, problem))()
    assert all(r.abs().max() > 1e-3 for r in residuals.values())


def test_wrong_unknowns_are_seen(case):
    _, problem = case
    if not isinstance(problem, InverseProblem):
        return
    for name, unknown in problem.unknowns.items():
        u = exact(problem)
        setattr(u, name, 1.1 * unknown.truth)
        assert any(r.abs().max() > 1e-3 for r in draw(problem).residuals(u)().values())
        assert unknown.guess != unknown.truth


#: Where nothing is asked: the end of time, whole faces or the start of time.
FREE = {
    "inverse_heat": "all",
    "navier_stokes_inverse": "all",
    "oscillator_inverse": "all",
    "fokker_planck": "walls",
    "lorenz_inverse": "end",
    "klein_gordon_inverse": "walls",
    "poisson_inverse": "",
    "heat_inverse": "start",
}


def test_each_face_and_time_is_covered(case):
    """All of the boundary, from the start of time to its end, by points spread over it."""
    name, problem = case
    domain, free = problem.domain, FREE.get(name, "")
    batch = draw(problem, 4000)
    on = [x for term, x in batch.points.items() if term not in ("interior", "measurements")]
    on = torch.cat([torch.zeros(0, domain.dim, dtype=F64), *on])
    timed = isinstance(domain, TimeSpace)
    if timed and free not in ("all", "start"):
        first = on[on[:, 0] == domain.start][:, 1:]
        assert len(first) >= 500, "the start"
        spread_over(domain.space, domain.space.interior, first)
    if timed and free not in ("all", "walls"):
        walls = on[on[:, 0] > domain.start]
        periodic = "periodic" in problem.terms  # the residual reads the other face
        shape = domain.space
        other = walls.clone()
        other[:, 1] = shape.upper[0]
        walls = torch.cat([walls, other]) if periodic else walls
        assert walls[:, 0].min() < domain.start + 0.05 * (domain.end - domain.start)
        assert walls[:, 0].max() > domain.end - 0.05 * (domain.end - domain.start)
        spread_over(shape, shape.boundary, walls[:, 1:])
    if not timed and free == "":
        spread_over(domain, domain.boundary, on)
    inside = batch.points["interior"]
    space, x = (domain.space, inside[:, 1:]) if timed else (domain, inside)
    spread_over(space, space.interior, x)


def spread_over(shape, sampler, x):
    """No point that the sampler draws is far from all of x."""
    targets = sampler(200, Generator().manual_seed(5), F64)
    width = torch.tensor(shape.upper, dtype=F64) - torch.tensor(shape.lower, dtype=F64)
    reach = 0.15 if shape.dim < 4 else 0.6 * shape.dim**0.5
    if shape.dim <= 5:
        assert torch.cdist(targets / width, x / width).amin(1).max() < reach


def test_a_network_of_its_size_gives_residuals(case):
    _, problem = case
    model = MLP(problem.networks[0])
    guesses = {name: unknown.guess for name, unknown in getattr(problem, "unknowns", {}).items()}
    model = WithUnknowns(model, guesses or {"diffusivity": 1.0}).double()
    x = problem.held_out(Generator().manual_seed(1), 30, F64)
    assert model(x).shape == problem.solution(x).shape
    for name, residual in draw(problem).residuals(model)().items():
        assert residual.shape[0] == 20 and residual.isfinite().all() and residual.requires_grad, (
            name
        )


def test_names_are_one_function_each():
    titles = [PROBLEMS[name]().name for name in NAMES]
    assert len(set(titles)) >= len(titles) - 2  # Poisson in five dimensions, twice


def relative(a, b):
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize(
    ("solve", "number", "coarse", "off"),
    [
        (solve_kdv, 0.022, (512, 2000), 2e-6),
        (solve_kuramoto_sivashinsky, 0.5, (512, 2000), 1e-6),
        (solve_allen_cahn, 1e-4, (1024, 500), 2e-5),
    ],
    ids=["KdV", "KS", "Allen-Cahn"],
)
def test_series_have_converged(solve, number, coarse, off):
    """Half the modes or steps change little: the finer one is better by far more than that."""
    x = Box((0.0, -1.0), (0.5, 1.0)).interior(500, Generator().manual_seed(2), F64)
    assert relative(solve(number, *coarse)(x), solve(number)(x)) < off


@pytest.mark.parametrize(
    ("solve", "number"), [(solve_kdv, 0.022), (solve_kuramoto_sivashinsky, 0.5)]
)
def test_series_keep_the_mean(solve, number):
    waves = solve(number).waves.values
    assert (waves[:, 0] - waves[0, 0]).abs().max() < 1e-12


def test_allen_cahn_against_finite_differences():
    """Second order in x and t, on the half [0, 1], where u is even: extrapolated, to 1e-4."""

    def differences(n, steps):
        x, h = torch.linspace(0, 1, n + 1, dtype=F64), 1 / n
        laplace = torch.diag(torch.full((n,), 1.0, dtype=F64), 1)
        laplace = laplace + laplace.mT - 2 * torch.eye(n + 1, dtype=F64)
        laplace[0, 1] = laplace[n, n - 1] = 2
        dt = 0.5 / steps
        half = torch.linalg.inv(torch.eye(n + 1, dtype=F64) - dt / 2 * 1e-4 / h**2 * laplace)
        half = half @ (torch.eye(n + 1, dtype=F64) + dt / 2 * 1e-4 / h**2 * laplace)
        u = x**2 * torch.cos(math.pi * x)
        for _ in range(steps):  # Strang: the reaction u' = 5 u - 5 u^3 exactly
            for part in (0, 1, 0):
                if part:
                    u = half @ u
                else:
                    e = math.exp(5 * dt / 2)
                    u = u * e / (1 + u * u * (e * e - 1)).sqrt()
        return u

    coarse, fine = differences(200, 200), differences(400, 400)
    found = fine[::2] + (fine[::2] - coarse) / 3
    x = torch.linspace(0, 1, 201, dtype=F64)
    points = torch.stack([torch.full_like(x, 0.5), x], 1)
    assert relative(found, solve_allen_cahn(1e-4)(points)[:, 0]) < 2e-4


def test_lorenz_has_converged():
    t = torch.linspace(0, 3, 100, dtype=F64)[:, None]
    assert relative(solve_lorenz(1500)(t), solve_lorenz()(t)) < 1e-7


def test_the_cavity_has_converged():
    x = Box.cube(2).interior(300, Generator().manual_seed(2), F64)
    coarse, fine = solve_cavity(100.0, 24)(x), solve_cavity(100.0)(x)
    assert relative(coarse[:, :2], fine[:, :2]) < 3e-5 and relative(coarse, fine) < 1e-3
    assert (taylor(solve_cavity(100.0), x, 1)[1].diagonal(dim1=0, dim2=2).sum(-1)).shape == (300,)
    # the stream function of the Stokes flow is even in x - 1/2
    stokes = solve_cavity(1e-6, 16)
    mirrored = stokes(torch.stack([1 - x[:, 0], x[:, 1]], 1))
    assert (stokes(x)[:, 0] - mirrored[:, 0]).abs().max() < 1e-6


def test_fundamental_solutions_have_converged():
    for name, solve in (
        ("poisson_holes", solve_poisson_holes),
        ("poisson_boltzmann", lambda density=2: solve_poisson_boltzmann(8.0, density)),
    ):
        x = PROBLEMS[name]().domain.interior(500, Generator().manual_seed(2), F64)
        assert relative(solve(density=1)(x), solve()(x)) < 1e-5


def test_the_parts_of_the_boltzmann_reference():
    x = Box.cube(2, -1.0, 1.0).interior(50, Generator().manual_seed(2), F64)
    left = 64 * particular(x, 8.0) - laplacian(lambda z: particular(z, 8.0), x)
    torch.testing.assert_close(left, source(x))
    x = 0.98 * x
    left = laplacian(lambda z: one_on_walls(z, 8.0), x) - 64 * one_on_walls(x, 8.0)
    assert left.abs().max() < 1e-9
    walls = Box.cube(2, -1.0, 1.0).boundary(200, Generator().manual_seed(2), F64)
    assert (one_on_walls(walls, 8.0) - 1).abs().max() < 1e-6


def test_derivatives_of_bessel_functions():
    """Against K_n' = -(K_(n-1) + K_(n+1)) / 2, twice over."""
    z = torch.linspace(0.3, 6, 30, dtype=F64)[:, None]
    _, first, second, third = taylor(BESSEL, z, 3)
    k0, k1 = torch.special.modified_bessel_k0(z), torch.special.modified_bessel_k1(z)
    k2, k3 = k0 + 2 / z * k1, k1 + 4 / z * (k0 + 2 / z * k1)
    torch.testing.assert_close(first[0], -k1)
    torch.testing.assert_close(second[0], (k0 + k2) / 2)
    torch.testing.assert_close(third[0], -(3 * k1 + k3) / 4)


def test_interpolation_in_time_is_exact_for_polynomials():
    t = torch.linspace(0, 2, 21, dtype=F64)[:, None]
    table = InTime(torch.cat([t**7 - t, 3 * t**2], 1), 2.0)
    z = torch.rand(50, 1, dtype=F64) * 2
    torch.testing.assert_close(table(z), torch.cat([z**7 - z, 3 * z**2], 1))
    first = taylor(table, z, 1)[1][0]
    torch.testing.assert_close(first, torch.cat([7 * z**6 - 1, 6 * z], 1), rtol=1e-8, atol=1e-8)


def test_runge_kutta_is_of_fourth_order():
    def end(steps):
        return runge_kutta(lambda y: -y * y, torch.ones(1, dtype=F64), 1.0, steps).values[-1] - 0.5

    assert float(end(10) / end(20)) == pytest.approx(16, rel=0.1)


def test_the_rates_of_the_robin_rod():
    for loss in (0.1, 1.0, 10.0):
        rates = rates_of(loss)
        assert (rates * torch.sin(rates) - loss * torch.cos(rates)).abs().max() < 1e-7
        assert (rates / math.pi).floor().equal(torch.arange(2000.0).double())


def test_noise_is_normal_and_belongs_to_its_place():
    x = Box.cube(2).interior(20_000, Generator().manual_seed(0), F64)
    e = scatter(x)
    assert torch.equal(e[:50], scatter(x[:50]))
    assert abs(e.mean()) < 0.04 and abs(e.std() - 1) < 0.03 and e.abs().max() < 6
    problem = PROBLEMS["poisson_inverse"](noise=0.1)
    residual = draw(problem, 2000).residuals(exact(problem))()["measurements"]
    assert residual.std() == pytest.approx(0.1, rel=0.1)


def test_side_by_side_and_with_unknowns():
    one, other = MLP((2, 3, 1)), MLP((2, 4, 2))
    x = torch.rand(5, 2)
    assert torch.equal(SideBySide(one, other)(x), torch.cat([one(x), other(x)], 1))
    model = WithUnknowns(one, {"viscosity": 0.5})
    assert model.viscosity.item() == 0.5 and torch.equal(model(x), one(x))
    assert "viscosity" in dict(model.named_parameters())
    for name in ("network", "forward", "no name"):
        with pytest.raises(ValueError, match="cannot be the name of an unknown"):
            WithUnknowns(one, {name: 1.0})
    with pytest.raises(ValueError, match="needs networks"):
        SideBySide()
