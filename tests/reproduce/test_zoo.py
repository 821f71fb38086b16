"""The zoo: runs are kept one by one, failures too, and come to one table."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest
import torch
from experiments import load
from typer.testing import CliRunner

from kfac_pinn.pinn.conditions import dirichlet
from kfac_pinn.pinn.domains import Box, TimeSpace
from kfac_pinn.pinn.problem import Problem, Term
from kfac_pinn.pinn.problems import PROBLEMS
from kfac_pinn.taylor_mode.operators import partial, taylor


@pytest.fixture(autouse=True)
def default_dtype():
    before = torch.get_default_dtype()
    yield
    torch.set_default_dtype(before)


def call(*args: str):
    return CliRunner().invoke(load("zoo").app, list(args))


def small() -> Problem:
    problem = PROBLEMS["poisson_2d"]()
    terms = {k: Term(t.points, t.residual, 20) for k, t in problem.terms.items()}
    return Problem("small", problem.domain, terms, problem.solution, ((2, 4, 1),))


def decaying() -> Problem:
    """u_t + u = 0, u(0, x) = 1 + cos(pi x) / 2, on [0, 1] x [-1, 1]."""
    domain = TimeSpace(0.0, 1.0, Box((-1.0,), (1.0,)))

    def solution(x):
        return torch.exp(-x[:, :1]) * (1 + torch.cos(torch.pi * x[:, 1:2]) / 2)

    terms = {
        "interior": Term(domain.interior, lambda u, x: u(x) + partial(u, x, (0,)), 80),
        "initial": Term(domain.initial, dirichlet(solution), 40),
    }
    return Problem("decaying", domain, terms, solution, ((2, 8, 1),))


def broken() -> Problem:
    def residual(u, x):
        raise ArithmeticError("no residual today")

    problem = small()
    return Problem(
        "broken",
        problem.domain,
        {"interior": Term(problem.domain.interior, residual, 5)},
        problem.solution,
        ((2, 4, 1),),
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("a_step_is_a_second")
def test_runs_are_resumed_and_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PROBLEMS, "zz_small", small)
    monkeypatch.setitem(PROBLEMS, "zz_broken", broken)
    marks = ("--only", "zz", "--seconds", "2,4", "--folder", str(tmp_path))
    first = call("measure", *marks)
    assert first.exit_code == 0, first.output
    assert len(list(tmp_path.glob("*.json"))) == 8 and not list(tmp_path.glob("*.part"))
    found = json.loads((tmp_path / "zz_small-tanh-KFACPINN-0.json").read_text())
    assert list(found["errors"]) == ["2", "4"] and found["steps"] == 4
    assert found["errors"]["4"] > 0 and found["reason"] == "4.0 seconds are spent"
    assert call("measure", *marks).output == ""  # nothing is left to do
    assert call("measure", *marks, "--seeds", "2").output.count("-1: ") == 8
    page = tmp_path / "page.md"
    page.write_text("# Zoo\n<!-- measured -->\nold\n<!-- end -->\nrest\n")
    assert call("report", "--folder", str(tmp_path), "--page", str(page)).exit_code == 0
    text = page.read_text()
    assert (
        "old" not in text
        and text.endswith("rest\n")
        and "| zz_small | 2-4-1 tanh | KFACPINN |" in text
    )
    assert "| zz_broken | 2-4-1 tanh | Adam | – | – | 2 |" in text
    assert "zz_broken, Adam, 2-4-1 tanh, seed 1: ArithmeticError: no residual today" in text


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("a_step_is_a_second")
def test_time_windows_share_the_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PROBLEMS, "zz_decaying", decaying)
    args = ("--only", "zz", "--optimizer", "GaussNewton", "--network", "periodic")
    parts = ("--windows", "3", "--points", "interior=100,initial=20", "--seconds", "60,240")
    done = call("measure", *args, *parts, "--folder", str(tmp_path))
    assert done.exit_code == 0, done.output
    found = json.loads(
        (
            tmp_path / "zz_decaying-periodic-3windows-interior=100,initial=20-GaussNewton-0.json"
        ).read_text()
    )
    (mark,) = found["errors"]
    spent = float(found["reason"].split(" of ")[0])
    assert spent <= float(mark) <= 240 and found["steps"] == spent and found["windows"] == 3
    assert found["errors"][mark] < 1e-3
    text = load("zoo").table([found])
    assert "| zz_decaying | 2-8-1 periodic, 3 windows | GaussNewton |" in text


def test_points_are_those_of_a_term(tmp_path: Path) -> None:
    args = ("--only", "poisson_2d", "--points", "start=9", "--folder", str(tmp_path))
    assert "has no {'start'}" in call("measure", *args).output


def test_layers_come_with_early_points_where_the_start_contradicts_a_wall() -> None:
    Runner = load("zoo_runs").Runner
    plain, layered = (Runner("robin_heat", "KFACPINN", network) for network in ("tanh", "layers"))
    times = []
    for runner in (plain, layered):
        problem = runner.drawn()
        model = runner.model(problem).double()
        x = problem.terms["interior"].points(
            100, torch.Generator().manual_seed(0), torch.float64, "cpu"
        )
        assert model(x).shape == (100, 1)
        times.append(x[:, 0])
    torch.testing.assert_close(times[1], times[0] ** 2)


def test_what_is_even_in_x_has_layers_at_both_ends_in_one() -> None:
    runner = load("zoo_runs").Runner("allen_cahn", "GaussNewton", "layers", "6-6")
    model = runner.model(runner.drawn()).double()
    x = PROBLEMS["allen_cahn"]().domain.interior(50, dtype=torch.float64)
    torch.testing.assert_close(model(x), model(x * x.new_tensor([1.0, -1.0])))
    wall = x * x.new_tensor([1.0, 0.0]) + x.new_tensor([0.0, 1.0])
    layers = runner.layers(PROBLEMS["allen_cahn"]())
    inward = -taylor(layers, wall, 1)[1][1][:, 2]  # the first layer's, from the start on
    torch.testing.assert_close(inward, torch.full_like(inward, -1 / (4e-4) ** 0.5))


def test_time_windows_need_a_time(tmp_path: Path) -> None:
    args = ("--only", "poisson_2d", "--windows", "2", "--folder", str(tmp_path))
    assert "poisson_2d has no time" in call("measure", *args).output


@pytest.mark.parametrize(
    "args",
    [
        ("--only", "nothing"),
        ("--optimizer", "SGD"),
        ("--network", "tan"),
        ("--seconds", "3,2"),
        ("--only", "poisson_2d", "--network", "layers"),
    ],
)
def test_misuse_is_named(args, tmp_path: Path) -> None:
    assert call("measure", *args, "--folder", str(tmp_path)).exit_code == 2


@pytest.mark.parametrize("network", ["tanh", "sine", "Fourier", "modified", "Pirate"])
def test_models_carry_what_is_unknown(network: str) -> None:
    zoo, runs = load("zoo"), load("zoo_runs")
    problem = PROBLEMS["oscillator_inverse"]()
    model = runs.Runner("oscillator_inverse", "GaussNewton", network, "6-6").model(problem)
    assert {"friction", "stiffness"} <= dict(model.named_parameters()).keys()
    assert model(torch.rand(3, 1)).shape == (3, 1)
    field = runs.Runner("inverse_heat", "GaussNewton", network)
    assert field.model(PROBLEMS["inverse_heat"]()).diffusivity.item() == 1.0
    assert set(zoo.PUBLISHED) <= set(PROBLEMS)


def test_points_are_scaled_by_the_box_around_them() -> None:
    box = load("zoo_runs").box_of(PROBLEMS["convection"]())
    torch.testing.assert_close(
        torch.tensor(box.upper), torch.tensor([1.0, 6.28]), atol=0.02, rtol=0
    )


ROOT = Path(__file__).parents[2]
ZOO = ROOT / "examples" / "reproduce" / "results" / "zoo"
IN_README = {
    "convection": ("convection-sine-40-40-GaussNewton", "100"),
    "wave": ("wave_two_modes-sine-32-32-GaussNewton", "30"),
    "reaction": ("reaction-tanh-KFACPINN", "100"),
    "Helmholtz": ("helmholtz-sine-40-40-KFACPINN", "60"),
    "2+1d Burgers": ("burgers_2d-tanh-GaussNewton", "300"),
    "Allen–Cahn": ("allen_cahn-layers-*-GaussNewton", "300"),
    "Korteweg–de Vries": ("kdv-harmonics-*-GaussNewton", "600"),
    "Kuramoto–Sivashinsky": ("kuramoto_sivashinsky-harmonics-*-GaussNewton", "2400"),
}


@pytest.mark.skipif(not ZOO.exists(), reason="results are in the repository only")
@pytest.mark.parametrize("row", IN_README)
def test_what_the_readme_says_is_in_the_result_files(row: str) -> None:
    name, mark = IN_README[row]
    files = ZOO.glob(f"{name}-[0-9].json")
    errors = [json.loads(file.read_text())["errors"][mark] for file in files]
    (line,) = [x for x in (ROOT / "README.md").read_text().splitlines() if x.startswith(f"| {row}")]
    said = line.split("|")[2].split("(")[0]
    assert float(said) == float(f"{statistics.median(errors):.1e}")
    assert ("three seeds" in line) == (len(errors) == 3)
