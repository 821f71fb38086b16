"""Every example runs, on a budget of seconds."""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import json
import math
import re
import runpy
import shlex
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from hyperlora_ext import training

EXAMPLES = Path(__file__).parent.parent / "examples"
SCRIPTS = {
    "heat": {"seconds": 0.1},
    "burgers": {"steps": 1, "points": 200},
    "fokker_planck": {"seconds": 0.1, "points": 60},
    "inverse_heat": {"steps": 2},
    "deep_ritz": {"steps": 2, "points": 256},
    "own_operator": {"steps": 2},
    "own_activation": {"steps": 1},
    "own_problem": {"steps": 2},
    "own_optimizer": {"steps": 2},
}
OPTIMIZERS = (
    "sgd", "adam", "lbfgs", "kfac", "kfac_star", "engd", "engd_layers", "engd_diagonal",
    "kernel_engd", "spring", "hessian_free", "kfac_pinn", "gauss_newton",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _examples_importable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As if started from their folder; the default dtype that a script sets is taken back."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.syspath_prepend(str(EXAMPLES / "reproduce"))
    dtype = torch.get_default_dtype()
    yield
    torch.set_default_dtype(dtype)
    for name in [
        n for n in sys.modules if n in {*SCRIPTS, "run", "compare"} or n.startswith("published")
    ]:
        del sys.modules[name]


def load(name: str) -> ModuleType:
    return importlib.import_module(name)


@pytest.mark.parametrize("name", ["hyperlora_adapt", "hyperlora_family"])
def test_hyperlora_scripts_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As they are printed in the docs, but one step instead of so many seconds."""
    fit = training.fit
    monkeypatch.setattr(
        training, "fit", lambda *a, **k: fit(*a, **{**k, "seconds": None, "steps": 1})
    )
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(EXAMPLES / f"{name}.py"))
    assert (tmp_path / f"{name}.png").exists()
    assert capsys.readouterr().out


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_run(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    load(name).main(**SCRIPTS[name])
    assert "error" in capsys.readouterr().out


def invoke(app: Any, *arguments: Any) -> str:
    result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_runner_trains_keeps_what_is_done_and_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = load("run")
    monkeypatch.setattr(run, "ROOT", tmp_path)
    recipes = load("published.recipes")
    monkeypatch.setitem(recipes.PROBLEMS, "heat_1d", smaller(recipes.PROBLEMS["heat_1d"], 20))
    monkeypatch.setattr(run, "BEST", tmp_path / "settings.json")
    train = ("train", "heat_1d", "kfac_star", "--steps", 3, "--seeds", 2, "--folder", tmp_path)
    train = (*train, "--settings", '{"damping": 1e-6}')
    first = invoke(run.app, *train)
    assert "| 257 | kfac_star | damping 1e-06 |" in first
    assert "done" not in first
    assert invoke(run.app, *train).count(": done, ") == 2
    assert (tmp_path / "heat_1d.png").exists()
    page = tmp_path / "docs" / "experiments" / "heat_1d.md"
    page.parent.mkdir(parents=True)
    (tmp_path / "docs" / "choosing.md").write_text("<!-- published -->\n<!-- end -->\n")
    (tmp_path / "README.md").write_text("<!-- headline -->\n<!-- end -->\n")
    page.write_text("# Heat\n<!-- results -->\n<!-- end -->\nends\n")
    invoke(run.app, "report", "--folder", tmp_path)
    assert "| 257 | kfac_star |" in page.read_text()
    assert "with 257 parameters sgd (2.8e-04), adam (1.2e-04), lbfgs" in page.read_text()
    assert "8.8e-07" in page.read_text()  # the published value stands beside the measured one
    assert (tmp_path / "docs" / "figures" / "heat_1d.png").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--network 64,48", "whole numbers, as in 64-64-48-48"),
        ("--settings {lr:1}", "is no JSON"),
        ("--settings [1]", "does not map names to numbers"),
        ('--settings {"lrr":1}', "argument 'lrr'; a sweep tunes ['lr']"),
        ('--points {"interor":9}', "has points for ['interior', 'conditions'], not ['interor']"),
        ("--device nowhere", "--device nowhere"),
        ("--dtype float31", "is not one of 'float64', 'float32'"),
        ("--steps -3", "--steps"),
        ("--seeds 0", "--seeds"),
    ],
)
def test_the_runner_says_what_is_wrong_in_one_line(options: str, said: str, tmp_path: Path) -> None:
    run = load("run")
    asked = ["train", "heat_1d", "adam", "--steps", "1", "--folder", str(tmp_path)]
    result = CliRunner().invoke(run.app, asked + options.split(" "), env={"COLUMNS": "300"})
    assert result.exit_code == 2
    assert said in result.output
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("train heat_1d adam", "the run has no end"),
        ("sweep heat_1d kfac_pinn", "nothing to tune"),
        ("queue --plan --only 1000d", "nothing in the queue"),
        ("report --folder nowhere", "no result files in nowhere"),
    ],
)
def test_a_command_that_cannot_be_done_says_so(asked: str, said: str) -> None:
    result = CliRunner().invoke(load("run").app, asked.split(" "), env={"COLUMNS": "300"})
    assert result.exit_code == 2
    assert said in result.output


def test_every_row_comes_with_the_command_that_remakes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a page prints makes the same run again, under the same name."""
    run, pages, results = load("run"), load("published.pages"), load("published.results")
    points = '{"interior": 9, "conditions": 5}'
    asked = ["train", "heat_4d", "kfac_star", "--network", "4-3", "--steps", 2, "--keep", 1]
    asked += ["--settings", '{"damping": 1e-06}', "--points", points, "--dtype", "float32"]
    invoke(run.app, *asked, "--folder", tmp_path / "a")
    printed = pages.commands(results.load(tmp_path / "a"))
    assert printed.startswith("python examples/reproduce/run.py train heat_4d kfac_star")
    monkeypatch.chdir(tmp_path)
    invoke(run.app, *shlex.split(printed)[2:])
    files = [{path.name for path in (tmp_path / name).iterdir()} for name in ("a", "mine")]
    assert files[0] == files[1]


def test_the_smallest_network_has_one_name() -> None:
    run = load("run")
    assert run.widths("", "heat_1d") == run.widths("64", "heat_1d") == ()
    assert run.widths("64-48", "heat_1d") == (64, 48)


def test_every_optimizer_has_its_own_line() -> None:
    styles = load("published.figures").STYLES
    assert set(styles) == set(load("published.recipes").OPTIMIZERS)
    assert len(set(styles.values())) == len(styles)


TINY = {"problem": "heat_1d", "network": (4,), "points": {"interior": 12, "conditions": 6}}
CURVE = ("step", "loss", "held_out_loss", "relative_l2")


def experiment(optimizer: str = "kfac_star", **changes: Any) -> Any:
    return load("published.results").Experiment(optimizer=optimizer, **{**TINY, **changes})


def interrupt_after(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """As if Ctrl-C were pressed during a step."""
    training = load("published.training")
    original = training.Clock.on_step

    def on_step(self: Any, run: Any) -> None:
        if run.step == step:
            signal.raise_signal(signal.SIGINT)
        original(self, run)

    monkeypatch.setattr(training.Clock, "on_step", on_step)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_recipe_resumes_bit_by_bit_and_goes_on(
    optimizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = load("published.training")
    run = experiment(optimizer, steps=6, resample=2)
    whole = training.train(run, tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_after(patch, step=3)
        training.train(run, tmp_path / "parts")
    training.train(run.replace(steps=4), tmp_path / "parts")
    assert not run.done(tmp_path / "parts")
    parts = training.train(run, tmp_path / "parts")
    assert run.done(tmp_path / "parts")
    assert [parts[key] for key in CURVE] == [whole[key] for key in CURVE]


def test_seconds_survive_an_interruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training, ticks = load("published.training"), itertools.count()
    monkeypatch.setattr(training, "cpu_seconds", lambda: float(next(ticks)))
    run = experiment("adam", seconds=10.0)  # a step is one second of this clock
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_after(patch, step=7)
        training.train(run, tmp_path)
    assert training.train(run, tmp_path)["step"] == 10


def test_a_run_at_rest_ends_early(tmp_path: Path) -> None:
    training = load("published.training")
    run = experiment("gauss_newton", steps=1000, points={"interior": 2, "conditions": 2})
    assert training.train(run, tmp_path)["step"] < 1000
    assert run.replace(steps=2000).done(tmp_path)


def test_tables_show_what_longer_runs_had_reached_before(tmp_path: Path) -> None:
    training, results = load("published.training"), load("published.results")
    for seed, steps in ((0, 4), (1, 8)):
        training.train(experiment("adam", steps=steps, seed=seed), tmp_path)
    table = results.summary(results.load(tmp_path))
    assert sorted(zip(table["seeds"], table["steps"], strict=True)) == [(1, 8), (2, 6)]


def test_errors_are_compared_at_every_budget_that_some_run_had(tmp_path: Path) -> None:
    training, results = load("published.training"), load("published.results")
    for name, seconds in (("adam", 0.2), ("sgd", 0.4)):
        training.train(experiment(name, seconds=seconds), tmp_path)
    table = results.summary(results.load(tmp_path))
    found = sorted(zip(table["budget"], table["optimizer"], strict=True))
    assert found == [(0.2, "adam"), (0.2, "sgd"), (0.4, "sgd")]


def smaller(problem: Callable[[], Any], size: int) -> Callable[[], Any]:
    """The same problem with so many points a term, and ten times as many held out."""
    terms = {k: dataclasses.replace(term, size=size) for k, term in problem().terms.items()}
    return lambda: dataclasses.replace(problem(), terms=terms)


def test_every_published_problem_and_network_can_be_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipes, training = load("published.recipes"), load("published.training")
    for name, problem in list(recipes.PROBLEMS.items()):
        monkeypatch.setitem(recipes.PROBLEMS, name, smaller(problem, size=3))
        for sizes in problem().networks:
            run = experiment("adam", problem=name, network=sizes[1:-1], points={}, steps=1)
            assert training.train(run, tmp_path)["relative_l2"] > 0


def test_published_runs_can_be_made_and_end_at_the_published_error() -> None:
    published, recipes = load("published.recorded"), load("published.recipes")
    parameters = [torch.nn.Parameter(torch.zeros(2))]
    for (problem, size, optimizer), run in published.RECORDED.items():
        recipes.OPTIMIZERS[optimizer].build(parameters, **run.settings)
        counts, errors = zip(*run.curve, strict=True)
        assert list(counts) == sorted(set(counts))
        assert [run.after(n) for n in counts] == pytest.approx(errors)
        assert run.after(counts[-1] + 1) == pytest.approx(errors[-1])
        assert errors[-1] == pytest.approx(published.RMS[problem, size, optimizer], rel=0.05)
    run = published.RECORDED["heat_1d", 257, "kfac"]
    (a, low), (b, high) = run.curve[5:7]
    assert run.after((a * b) ** 0.5) == pytest.approx((low * high) ** 0.5)
    assert published.steps("heat_1d", 257, "kfac") == 13878
    assert math.isnan(published.steps("poisson_5d", 10065, "sgd"))  # not recorded


def test_report_fills_every_page_and_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipes, training, pages = (
        load(f"published.{name}") for name in ("recipes", "training", "pages")
    )
    docs = shutil.copytree(EXAMPLES.parent / "docs", tmp_path / "docs")
    shutil.copy(EXAMPLES.parent / "README.md", tmp_path)
    monkeypatch.setitem(recipes.PROBLEMS, "heat_4d", smaller(recipes.PROBLEMS["heat_4d"], 3))
    for name, seed in itertools.product(("adam", "kfac_star"), range(2)):
        run = experiment(name, problem="heat_4d", network=(64, 64, 48, 48), points={}, steps=2)
        training.train(run.replace(seed=seed, seconds=99.0), tmp_path / "results")
    pages.report(tmp_path / "results", tmp_path)
    page = (docs / "experiments" / "heat_4d.md").read_text()
    assert "3.10e-03 ± 2.45e-03" in page  # the ten published seeds
    assert "with 449 parameters sgd (8.4e-03), adam (1.0e-03)" in page
    assert "--network 64-64-48-48 --seconds 99 --steps 2 --seeds 2 --folder mine" in page
    assert "No run is committed yet" in (docs / "experiments" / "poisson_100d.md").read_text()
    assert re.search(r"heat_4d .* 99 s .* adam .* \(2\)", (docs / "choosing.md").read_text())
    line = r"\| 4\+1d heat \| 10,065 \| 99 \| 2 \| \S+ \| – \| \S+ \| – \| – \|"
    assert re.search(line, (tmp_path / "README.md").read_text())
    assert (docs / "figures" / "heat_4d.png").exists()


def test_the_queue_tunes_trains_and_says_what_is_left(tmp_path: Path) -> None:
    queue = load("published.queue")
    folders = queue.Folders(tmp_path / "results", tmp_path / "sweeps", tmp_path / "best.json")
    stage = {"network": (4,), "points": TINY["points"], "tuning": 0.02, "trials": 1}
    stages = (queue.Stage("heat_1d", optimizers=("adam",), seconds=0.02, seeds=2, **stage),)
    assert list(queue.plan(stages, folders)["due"]) == [3]  # tuning, and two seeds
    queue.work(stages, folders, hours=0)
    assert list(queue.plan(stages, folders)["due"]) == [3]
    queue.work(stages, folders, hours=1)
    assert list(queue.plan(stages, folders)["due"]) == [0]
    assert "lr" in json.loads(folders.best.read_text())["heat_1d 4 adam"]["settings"]
    longer = tuple(dataclasses.replace(stage, seconds=0.05) for stage in stages)
    assert list(queue.plan(longer, folders)["due"]) == [2]


def test_every_item_of_the_queue_can_be_built(tmp_path: Path) -> None:
    queue = load("published.queue")
    folders = queue.Folders(tmp_path, tmp_path, tmp_path / "best.json")
    for item in queue.QUEUE:
        for job in item.due(folders):
            assert job.seconds > 0
    shown = invoke(load("run").app, "queue", "--plan", "--only", "100d", "--folder", tmp_path)
    assert "poisson_100d" in shown
    assert "heat" not in shown


def test_the_queue_calls_networks_as_the_command_does() -> None:
    """One name for one network: a run of the queue is found by the command, and its settings."""
    queue, run = load("published.queue"), load("run")
    stages = [item for item in queue.QUEUE if isinstance(item, queue.Stage)]
    assert stages
    for stage in stages:
        assert run.widths("-".join(map(str, stage.network)), stage.problem) == stage.network


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
        lambda: spectra.measure(network=(2, 3, 1), steps=(0,)), spectra.draw, spectra.quantiles, 0
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


def test_sweep_remembers_the_best_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = load("run")
    monkeypatch.setattr(run, "BEST", tmp_path / "settings.json")
    budget = ("--seconds", 0.03, "--trials", 2, "--folder", tmp_path)
    invoke(run.app, "sweep", "poisson_2d", "adam", "--network", "8", *budget)
    best = json.loads(run.BEST.read_text())["poisson_2d 8 adam"]
    assert 1e-4 <= best["settings"]["lr"] <= 1
    assert best["trials"] == 2
    better = json.dumps({"poisson_2d 8 adam": {**best, "relative_l2": 1e-9}})
    run.BEST.write_text(better)
    assert "not kept" in invoke(run.app, "sweep", "poisson_2d", "adam", "--network", "8", *budget)
    assert run.BEST.read_text() == better


def test_an_interrupted_sweep_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweeps = load("published.sweeps")
    errors = iter([0.2, KeyboardInterrupt(), 0.1, 0.3])

    def error(*_: Any) -> float:
        if isinstance(found := next(errors), BaseException):
            raise found
        return found

    monkeypatch.setattr(sweeps, "error", error)
    base = experiment("adam", seconds=1.0)
    with pytest.raises(KeyboardInterrupt):
        sweeps.sweep(base, 3, tmp_path)
    study = sweeps.sweep(base, 3, tmp_path)
    assert [trial.value for trial in sweeps.completed(study)] == [0.2, 0.1, 0.3]


def test_side_by_side_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compare = load("compare")
    monkeypatch.setattr(compare, "RESULTS", tmp_path)
    monkeypatch.setattr(compare, "FIGURE", tmp_path / "figure.png")
    monkeypatch.setattr(compare, "PAGE", tmp_path / "page.md")
    compare.PAGE.write_text("<!-- results -->\n<!-- end -->\n")
    monkeypatch.setattr(compare, "CHOOSING", tmp_path / "choosing.md")
    compare.CHOOSING.write_text("<!-- compare -->\n<!-- end -->\n")
    monkeypatch.setattr(compare, "TASKS", {"poisson_2d": {"network": (4,)}})
    some = {name: compare.OPTIMIZERS[name] for name in ("adam", "kfac_pinn")}
    monkeypatch.setattr(compare, "OPTIMIZERS", some)
    monkeypatch.setattr(compare, "run_all", one_after_the_other)
    invoke(compare.app, "tune", "--seconds", 0.02)
    invoke(compare.app, "train", "--seconds", 0.02, "--seeds", 1, "--optimizer", "adam")
    assert "| poisson_2d | 4 | 17 | adam |" in invoke(compare.app, "report")
    assert (tmp_path / "figure.png").exists()
    assert CliRunner().invoke(compare.app, ["train", "--optimizer", "foo"]).exit_code == 2


def one_after_the_other(experiments: Any, folder: Path, jobs: int) -> None:
    """What `run_all` does, without the seconds that new processes take to start."""
    for experiment in experiments:
        load("published.training").train(experiment, folder)


def test_the_published_start_is_drawn_in_single_precision_from_seed_1() -> None:
    training = load("published.training")
    run = experiment("kfac", problem="heat_1d", network=(), points={}).replace(published_start=True)
    torch.manual_seed(1)
    first = torch.nn.Linear(2, 64, dtype=torch.float32).weight
    for seed in range(2):
        torch.manual_seed(seed)
        model = training.network_of(run)
        assert torch.equal(next(model.parameters()), first.to(torch.get_default_dtype()))
    assert run.name.endswith("published-start_seed0")
    assert training.network_of(run).layers[0].weight.dtype == torch.get_default_dtype()
