"""Spectra, costs, pictures and the ablation are measured and drawn."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from experiments import invoke, load, smaller


def test_spectra_of_the_kronecker_approximation() -> None:
    spectra, kp = load("published.spectra"), load("kfac_pinn")
    torch.set_default_dtype(torch.float64)
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1))
    x = torch.rand(20, 2)
    closure = lambda: {"a": kp.laplacian(model, x), "b": model(x)}  # noqa: E731
    linearization = load("kfac_pinn.jacobian.closure").linearize(closure, list(model.parameters()))
    F = spectra.block_diagonal(linearization, spectra.kronecker())
    average = load("kfac_pinn.curvature.kronecker_factors").Average(0.0)
    factors = load("kfac_pinn.curvature.kronecker_factors").Factors(average=average)
    optimizer = kp.KFAC(model.parameters(), damping=spectra.DAMPING, factors=factors)
    torch.testing.assert_close(F @ optimizer.direction(linearization), -linearization.gradient)
    found = spectra.spectra_of(linearization)
    trace = linearization.gramian().trace()
    torch.testing.assert_close(found["gramian"].sum(), trace)
    torch.testing.assert_close(found["blocks"].sum(), trace)


def test_spectra_are_measured_and_drawn(tmp_path: Path) -> None:
    spectra = load("published.spectra")
    rows = spectra.measure(network=(2, 3, 1), steps=(0, 2))
    spectra.draw(rows, tmp_path / "spectra.png")
    assert len(spectra.quantiles(rows)) == 10
    assert (tmp_path / "spectra.png").exists()


def test_cost_is_measured_beside_the_formulas(tmp_path: Path) -> None:
    cost = load("published.cost")
    rows = cost.measure_all(["adam", "kfac_star"], {"points": (16, 32)})
    assert (rows["ms"] > 0).all()
    assert (rows["operations"].groupby(rows["optimizer"]).diff().dropna() > 0).all()
    model = load("kfac_pinn.pinn.networks").MLP(cost.Size().sizes)
    assert sum(p.numel() for p in model.parameters()) == cost.Size().parameters
    cost.draw(rows, tmp_path / "cost.png")
    assert list(cost.constants(rows)["measurements"]) == [2, 2]
    x = load("pandas").Series([1.0, 2.0, 4.0])
    assert cost.line(x, 3 + 2 * x) == pytest.approx((3, 2))
    assert cost.line(x, 2 * x) == pytest.approx((0, 2))


def test_pictures_are_taken_and_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = load("published.pictures")
    monkeypatch.setattr(pictures, "SIDE", 5)
    monkeypatch.setattr(pictures, "SECONDS", (0.0, 0.02))
    monkeypatch.setattr(pictures, "TRIAL", 0.01)
    monkeypatch.setattr(pictures, "SHOWN", {"adam": [{"lr": 1e-3}, {"lr": 1e9}], "kfac_pinn": [{}]})
    rows = pictures.measure(pictures.SECONDS)
    assert next(iter(rows["step"])) == 0
    pictures.draw(rows, tmp_path / "pictures.png")
    assert (tmp_path / "pictures.png").exists()
    assert set(rows["settings"]) == {'{"lr": 0.001}', "{}"}
    assert "u" not in pictures.errors(rows)


def test_the_ablation_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ablation = load("published.ablation")
    for name, value in (("BATCHES", (12,)), ("KEPT", (1, 10)), ("EMAS", (0.0,)), ("SEEDS", 1)):
        monkeypatch.setattr(ablation, name, value)
    monkeypatch.setattr(ablation, "NETWORK", (3,))
    recipes = load("published.recipes")
    monkeypatch.setitem(recipes.PROBLEMS, "heat_4d", smaller(recipes.PROBLEMS["heat_4d"], 3))
    table = ablation.measure(tmp_path / "runs", seconds=0.01)
    assert len(table) == 3
    ablation.draw(table, tmp_path / "ablation.png")
    assert len(ablation.medians(table)) == 3


def test_a_study_leaves_table_figure_and_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, studies = load("run"), load("published.studies")
    monkeypatch.setattr(studies, "RESULTS", tmp_path)
    monkeypatch.setattr(studies, "DOCS", tmp_path)
    spectra = studies.spectra
    quick = studies.Study(
        lambda: spectra.measure(network=(2, 3, 1), steps=(0,)),
        spectra.draw,
        spectra.quantiles,
        0,
        "spectra of a small network",
    )
    monkeypatch.setitem(studies.STUDIES, "spectra", quick)
    page = tmp_path / "experiments" / "spectra.md"
    page.parent.mkdir()
    page.write_text("<!-- results -->\n<!-- end -->\n")
    invoke(run.app, "study", "spectra")
    assert "| 0 | gramian |" in page.read_text()
    page.write_text("<!-- results -->\n<!-- end -->\n")
    invoke(run.app, "study", "spectra", "--redraw")
    assert "commit" in page.read_text()
