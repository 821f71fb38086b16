"""The benchmark suite compares like with like, and measures what it says."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

PAIRS = {
    "burgers_taylor": ("burgers_nested", 2),
    "heat_taylor": ("heat_nested", 3),
    "laplacian": ("nested_laplacian", 3),
}


@pytest.mark.parametrize("name", PAIRS)
def test_ours_and_the_others_compute_the_same_residual(name: str) -> None:
    import suite_rows

    other, d = PAIRS[name]
    ours, theirs = getattr(suite_rows, name), getattr(suite_rows, other)
    model, (x, _) = suite_rows.network((d, 6, 5, 1)), suite_rows.points(d, 7)
    expected = suite_rows.nested(theirs, model, x)
    torch.testing.assert_close(ours(model, x).reshape(-1), expected, rtol=1e-12, atol=1e-12)


def test_whole_hessians_give_the_same_laplacian() -> None:
    import suite_rows

    model, (x, _) = suite_rows.network((3, 6, 5, 1)), suite_rows.points(3, 7)
    expected = suite_rows.laplacian(model, x).reshape(-1)
    torch.testing.assert_close(suite_rows.hessian_laplacian(model, x), expected)


def test_closures_by_jets_and_by_the_graph_agree() -> None:
    import suite_rows

    model, x = suite_rows.network((2, 6, 5, 1)), suite_rows.points(2, 7, 4)
    jets, graph = (suite_rows.closure_of(model, x, by_graph=each)() for each in (False, True))
    for a, b in zip(jets, graph, strict=True):
        torch.testing.assert_close(a.reshape(-1), b.reshape(-1))


def test_operations_are_those_of_the_products(capsys: pytest.CaptureFixture[str]) -> None:
    import suite_rows

    work = {"ours": lambda: torch.zeros(3, 5).addmm_(torch.ones(3, 4), torch.ones(4, 5))}
    suite_rows.ROWS["one product"] = lambda: work
    try:
        suite_rows.main("one product", "ours")
    finally:
        del suite_rows.ROWS["one product"]
    assert json.loads(capsys.readouterr().out)["operations"] == 2 * 3 * 4 * 5


def test_report_fills_the_page_from_the_stored_figures(tmp_path: Path) -> None:
    import benchmark_suite

    each = {"seconds": 0.5, "MiB": 3.0, "operations": 2_000_000_000, "products": 4.0}
    rows = {"a row": {"ours": each, "theirs": {**each, "seconds": 1.0}, "commit": "abc"}}
    (tmp_path / "suite.json").write_text(json.dumps({"rows": rows}))
    page = tmp_path / "page.md"
    page.write_text(f"before\n{benchmark_suite.START}\nold\n{benchmark_suite.END}\nafter\n")
    options = ["report", "--results", str(tmp_path), "--page", str(page)]
    assert CliRunner().invoke(benchmark_suite.app, options).exit_code == 0
    text = page.read_text()
    assert "| a row | ours | 500 | 3 | 2 | 4.0 |  |" in text and "old" not in text
    assert "|  | theirs | 1e+03 | 3 | 2 | 4.0 | 0.50 |" in text
    assert text.startswith("before") and text.endswith("after\n")


def test_a_rival_that_is_not_installed_is_said_to_be_missing() -> None:
    import benchmark_suite

    each = {"seconds": 0.5, "MiB": 3.0, "operations": 0, "products": None}
    found = {"ours": each, "theirs": {"failed": "ModuleNotFoundError: No module named 'theirs'"}}
    assert benchmark_suite.cells("a row", found)[1][1:3] == ["theirs", "not installed"]


def test_residuals_as_a_module_are_those_of_the_closure() -> None:
    import suite_rows

    model, (x, _) = suite_rows.network((2, 6, 5, 1)), suite_rows.points(2, 7)
    module = suite_rows.Residual(model, suite_rows.hessian_laplacian)
    torch.testing.assert_close(module(x), suite_rows.laplacian(model, x).reshape(-1, 1) + 1)
