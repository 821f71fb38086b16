"""Convection, diffusion and reaction on a ring, and Helmholtz: solutions, conditions, training."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
import torch
from experiments import EXAMPLES
from transport_table import COLUMNS, TERMS, Groups, Plan, markdown, measure
from typer import BadParameter

from hyperlora_ext.family import Family
from hyperlora_ext.problems import convection, helmholtz, solve_transport, transport
from hyperlora_ext.problems.transport_equation import LENGTH, Terms, corner_at, gaussian
from hyperlora_ext.schedules import LevenbergSchedule
from hyperlora_ext.task_spaces import Intervals
from kfac_pinn.pinn.networks import MLP, PeriodicFeatures

F64 = torch.float64
RESULTS = EXAMPLES / "reproduce" / "results" / "hyperlora" / "transport"
RANGE = (1.0, 20.0)


def family_of(letters: str) -> Family:
    """The family with these terms."""
    return transport(*(RANGE if letter in letters else None for letter in "cdr"))


FAMILIES = [family_of(letters) for letters in TERMS.values()]
EVERY = [*FAMILIES, convection(), helmholtz()]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def three(family: Family, task: torch.Tensor) -> torch.Tensor:
    """(beta, nu, rho) of a task (p,)."""
    terms = Terms(*(letter in TERMS[family.name] for letter in "cdr"))
    return torch.cat(terms.coefficients(task))


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
def test_names_and_ranges(family: Family) -> None:
    tasks = family.space.sample(50, seeded())
    assert family.name in TERMS and tasks.shape[1] == len(TERMS[family.name])
    assert tasks.min() >= 1 and tasks.max() <= 20


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
def test_solutions_agree_with_finite_differences_and_small_steps(family: Family) -> None:
    """Fourth-order differences in x and Runge-Kutta in t: nothing is shared with the solutions."""
    for task in (torch.full((family.space.inputs,), 1.5, dtype=F64), family.space.sample(1)[0]):
        beta, nu, rho = three(family, task.clamp(max=4)).tolist()
        task = task.clamp(max=4)
        m, steps = 128, 4000
        x = LENGTH * torch.arange(m, dtype=F64) / m
        h = LENGTH / m

        def rate(u: torch.Tensor, h: float = h, b: float = beta, n: float = nu, r: float = rho):  # type: ignore[no-untyped-def]
            r1, r2, l1, l2 = (u.roll(s) for s in (-1, -2, 1, 2))
            first = (8 * (r1 - l1) - (r2 - l2)) / (12 * h)
            second = (16 * (r1 + l1) - (r2 + l2) - 30 * u) / (12 * h * h)
            return -b * first + n * second + r * u * (1 - u)

        u, dt = gaussian(x), 1 / steps
        for _ in range(steps // 2):
            k1 = rate(u)
            k2 = rate(u + dt / 2 * k1)
            k3 = rate(u + dt / 2 * k2)
            u = u + dt / 6 * (k1 + 2 * k2 + 2 * k3 + rate(u + dt * k3))
        points = torch.stack([torch.full_like(x, 0.5), x], dim=1)
        # The moving corner is all that these differences see badly
        bound = 2e-2 if not nu and beta else 2e-4
        assert (family.solution(points, task)[:, 0] - u).abs().max() < bound


@pytest.mark.parametrize("letters", ["c", "d", "r", "cd"])
def test_the_splitting_agrees_with_the_formulas(letters: str) -> None:
    family = family_of(letters)
    for task in family.space.sample(2, seeded(3)):
        solved = solve_transport(gaussian, three(family, task)[None], modes=1024, steps=50)
        found = solved.on_grid(128, 51)[0]
        x = LENGTH * torch.arange(128, dtype=F64) / 128
        points = torch.cartesian_prod(torch.linspace(0, 1, 51, dtype=F64), x)
        # A corner of slope 0.34 has modes 0.1 / k^2: cut off at 512 they leave 2e-4 in it
        error = found - family.solution(points, task).reshape(51, 128)
        assert error.square().mean().sqrt() < 3e-5


@pytest.mark.parametrize("coefficients", [(0.0, 1.0, 5.0), (3.0, 2.0, 20.0), (20.0, 20.0, 20.0)])
def test_the_splitting_is_of_fourth_order(coefficients: tuple[float, ...]) -> None:
    """On a smooth start, against the finest; and the default steps are converged."""
    rows = torch.tensor([coefficients], dtype=F64)

    def final(steps: int) -> torch.Tensor:
        smooth = solve_transport(lambda x: 0.5 + 0.3 * torch.sin(x), rows, 64, steps)
        return smooth.on_grid(64, 11)[0]

    finest = final(1600)
    coarse, fine = ((final(n) - finest).abs().max() for n in (100, 200))
    assert coarse / fine > 10 and (final(400) - finest).abs().max() < 1e-6


def exact_rest(family: Family, task: torch.Tensor):  # type: ignore[no-untyped-def]
    """What a network should be, as a function of points whose derivatives autograd takes."""
    return lambda x: family.rest(x, task)


@pytest.mark.parametrize("family", EVERY, ids=lambda f: f.name)
def test_every_condition_vanishes_at_the_solution(family: Family) -> None:
    """By differences of the solution in a jet's place: exact up to those of a small step."""
    for task in family.space.sample(2, seeded(1)):
        problem = family.problem(task)
        batch = problem.sample(seeded(2), dict.fromkeys(problem.terms, 60), F64)
        x = batch.points["interior"]
        edge = next(name for name in batch.points if name != "interior")
        last = family.residuals(
            exact_rest(family, task), task[None], {edge: batch.points[edge][None]}
        )
        assert all(r.abs().max() < 1e-6 for r in last.values())
        if family.domain.dim == 2 and edge == "initial":
            x = torch.stack([x[:, 0].clamp(0.05, 0.95), x[:, 1]], dim=1)
        residual = family.residuals(Fitted(family, task, x), task[None], {"interior": x[None]})[
            "interior"
        ]
        assert residual.abs().max() < 2e-4, family.name


class Fitted:
    """Near each of some points, the Taylor polynomial of the exact rest, by central differences."""

    def __init__(self, family: Family, task: torch.Tensor, x: torch.Tensor) -> None:
        def u(*moves: float) -> torch.Tensor:
            return family.rest(x + x.new_tensor(moves), task)

        h = 2e-3
        self.x, self.value = x, u(0, 0)
        ahead, back = (u(h, 0), u(0, h)), (u(-h, 0), u(0, -h))
        far, behind = (u(2 * h, 0), u(0, 2 * h)), (u(-2 * h, 0), u(0, -2 * h))
        quad = list(zip(ahead, back, far, behind, strict=True))
        self.first = [(8 * (a - b) - (f - c)) / (12 * h) for a, b, f, c in quad]
        self.second = [
            (16 * (a + b) - (f + c) - 30 * self.value) / (12 * h * h) for a, b, f, c in quad
        ]

    def __call__(self, x):  # type: ignore[no-untyped-def]
        total = self.value
        for i in range(2):
            move = x[:, i : i + 1] - self.x[:, i : i + 1]
            total = move * self.first[i] + 0.5 * move * move * self.second[i] + total
        return total


def test_the_corner_is_the_gaussians() -> None:
    """Gaussian minus corner has continuous derivatives up to the fourth: modes fall like k^-6."""
    x = LENGTH * torch.arange(2048, dtype=F64) / 2048
    modes = torch.fft.rfft(gaussian(x) - corner_at(x), norm="forward").abs()
    assert modes[40] < 2e-10 and modes[20] / modes[40] > 40
    assert torch.fft.rfft(gaussian(x), norm="forward").abs()[40] > 1e-5
    assert abs(float(corner_at(x).mean())) < 1e-6


def test_the_corners_series_is_the_corner() -> None:
    """Soon after the start the smoothed corner is still near the corner, but for its tip."""
    terms = Terms(False, True, False)
    x = torch.stack([torch.full((50,), 1e-9, dtype=F64), torch.linspace(0.5, 5.5, 50).to(F64)], 1)
    found = terms.corner(x, torch.ones(50, 1, dtype=F64))
    assert (found - corner_at(x[:, 1:])).abs().max() < 1e-3


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
def test_points_are_early_where_something_decays_or_grows(family: Family) -> None:
    """Times of even points have the mean 1/2, their squares 1/3."""
    tasks = family.space.sample(50, seeded())
    times = family.conditions["interior"].draw(200, tasks, seeded())[..., 0]
    expected = 1 / 2 if family.name == "convection" else 1 / 3
    assert times.mean().item() == pytest.approx(expected, abs=0.01)


def test_ranges_are_checked() -> None:
    with pytest.raises(ValueError, match="give at least one term"):
        transport()
    with pytest.raises(ValueError, match=r"convection\[0\] must be positive"):
        transport(convection=(0.0, 5.0))


def test_a_network_learns_one_task() -> None:
    family = transport(convection=(1.0, 5.0), diffusion=(1.0, 5.0))
    torch.manual_seed(0)
    features = PeriodicFeatures((None, 2 * math.pi))
    network = torch.nn.Sequential(features, MLP((3, 12, 12, 1))).double()
    sizes = {"interior": 200, "initial": 40}
    LevenbergSchedule(sizes)(network, family.problem(torch.tensor([2.0, 1.5])), steps=30)
    errors = family.errors(lambda task: network, torch.tensor([[2.0, 1.5]]))
    assert errors.relative < 1e-3


# --- the page ------------------------------------------------------------------------------------


def test_a_line_of_the_table_has_what_was_measured() -> None:
    several = {"mean": 1.5e-3, "worst": 0.02, "tasks": 20}
    ways = {"parametric": several, "hypernetwork": several, "adapted": several | {"tasks": 1}}
    rows = {"a": {"published": 0.1} | ways, "b": {"published": None} | ways}
    head, _, first, second = markdown(rows)
    assert head.count("|") == 6  # no column where nothing was measured
    assert first == "| a | 1.0e-01 | 1.5e-03, 2.0e-02 | 1.5e-03, 2.0e-02 | 1.5e-03 |"
    assert second == "| b |  | 1.5e-03, 2.0e-02 | 1.5e-03, 2.0e-02 | 1.5e-03 |"


def test_a_plan_goes_from_share_to_share() -> None:
    assert list(Plan(6.0).stages()) == [(1.0, 6.0)]
    assert list(Plan(6.0, (0.2, 0.5, 1.0)).stages(2 / 3)) == [(0.2, 1.0), (0.5, 1.0), (1.0, 2.0)]


def test_a_row_from_easy_tasks_to_all(tmp_path: Path) -> None:
    out = tmp_path / "rows.json"
    for _ in range(2):
        measure(0.05, 0, 1, "Helmholtz", [0.5, 1.0], 4.0, None, out)
    rows = json.loads(out.read_text())
    assert list(rows) == ["Helmholtz 1-3, seed 0"]
    (row,) = rows.values()
    assert row["shares"] == [0.5, 1.0] and row["omega"] == 4
    assert all(0 < row[way]["mean"] < 10 for way in ("parametric", "hypernetwork", "adapted"))


def test_a_way_is_added_to_a_row(tmp_path: Path) -> None:
    out, name = tmp_path / "rows.json", "convection-diffusion-reaction 1-5"
    for way in ("groups", "moving", "groups"):
        measure(0.05, 3, 1, name, None, 2.0, [way], out)
    (row,) = json.loads(out.read_text()).values()
    assert {way for way in COLUMNS if way in row} == {"groups", "moving"}
    head, _, line = markdown({"this": row})
    assert "of groups | moving along |" in head and line.startswith("| this | 5.3e-02 | ")


def test_what_would_mix_rows_is_named(tmp_path: Path) -> None:
    out, name = tmp_path / "rows.json", "diffusion 1-5"
    with pytest.raises(BadParameter, match="not adapted"):
        measure(0.05, 0, 1, name, None, 2.0, ["adapted"], out)
    out.write_text(json.dumps({f"{name}, seed 0": {"seconds": 9, "shares": [1], "omega": 2}}))
    with pytest.raises(BadParameter, match="with other settings: take another file"):
        measure(0.05, 0, 1, name, None, 2.0, ["groups"], out)


@pytest.mark.parametrize("letters", ["c", "cd", "cdr"])
def test_who_moves_along_sees_the_same_at_every_speed(letters: str) -> None:
    family = family_of(letters)
    space = family.space
    groups = Groups(letters, space.parts if isinstance(space, Intervals) else (space,), True)
    slow = torch.full((1, len(letters)), 2.0, dtype=F64)
    fast = slow + torch.eye(len(letters), dtype=F64)[:1]
    x = torch.rand(40, 2, generator=seeded(), dtype=F64)
    ahead = torch.stack([x[:, 0], x[:, 1] + x[:, 0]], dim=1)
    here, there = groups(x, slow.expand(40, -1)), groups(ahead, fast.expand(40, -1))
    same = [torch.allclose(a, b) for a, b in zip(here.T, there.T, strict=True)]
    assert same.count(False) == 1  # the speed itself
    first, second = family.solution(x, slow[0]), family.solution(ahead, fast[0])
    torch.testing.assert_close(first, second, rtol=0, atol=1e-5 if "dr" in letters else 1e-9)


@pytest.mark.parametrize("moving", [False, True])
@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
def test_groups_are_all_that_solutions_depend_on(family: Family, moving: bool) -> None:
    """Rows of the inputs but time and coefficients tell apart what the solutions do."""
    letters = TERMS[family.name]
    space = family.space
    parts = space.parts if isinstance(space, Intervals) else (space,)
    groups = Groups(letters, parts, moving)
    tasks = torch.full((1, len(letters)), 2.0, dtype=F64)
    x = torch.rand(40, 2, generator=seeded(), dtype=F64) * torch.tensor([0.5, LENGTH], dtype=F64)
    twice = x * torch.tensor([2.0, 1.0], dtype=F64)  # later, where all is half as fast
    here, there = groups(x, 2 * tasks.expand(40, -1)), groups(twice, tasks.expand(40, -1))
    kept = [i for i in range(here.shape[1]) if torch.allclose(here[:, i], there[:, i])]
    assert len(kept) == here.shape[1] - 1 - len(letters)
    first, second = family.solution(x, 2 * tasks[0]), family.solution(twice, tasks[0])
    # The splitting's steps are fixed in t
    torch.testing.assert_close(first, second, rtol=0, atol=1e-5 if "dr" in letters else 1e-9)


@pytest.mark.skipif(not RESULTS.exists(), reason="results are in the repository only")
def test_the_lines_of_the_page_are_those_of_the_result_files() -> None:
    files = RESULTS.glob("seconds-*.json")
    known = {line for file in files for line in markdown(json.loads(file.read_text()))}
    page = (EXAMPLES.parent / "docs" / "hyperlora.md").read_text().splitlines()
    said = [line for line in page if re.match(r"\| .* \d+-\d+, seed \d", line)]
    assert said and set(said) <= known
