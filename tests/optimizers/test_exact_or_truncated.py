"""`KFACPINN` chooses between exact and truncated steps, by counted operations."""

from __future__ import annotations

import copy
import io
import math
from typing import Any

import pytest
import torch
from small_problems import flat, network, points, poisson
from torch import nn

from kfac_pinn import (
    KFACPINN,
    Affordable,
    Armijo,
    Factors,
    GaussNewton,
    Marquardt,
    OneEvaluation,
    linearize,
)
from kfac_pinn.curvature.compression import affordable, operations

NEVER, ALWAYS = Affordable(0), Affordable(math.inf)
kinds = pytest.mark.parametrize("exact", [NEVER, ALWAYS], ids=["truncated", "exact"])


def problem(inside: int = 40, hidden: int = 8, seed: int = 0) -> tuple[nn.Module, Any]:
    torch.manual_seed(seed)
    model = network(2, hidden, 1)
    return model, poisson(model, points(inside), points(12, seed=1))


def trained(optimizer: Any, closure: Any, steps: int) -> Any:
    for _ in range(steps):
        optimizer.step(closure)
    return optimizer


def test_exact_steps_are_those_of_gauss_newton() -> None:
    """Bit by bit: by default on a small network, and however large it is if they are asked for."""
    expected, closure = problem()
    trained(GaussNewton(expected.parameters()), closure, 8)
    for settings in ({}, {"exact": ALWAYS}):
        model, closure = problem()
        optimizer = trained(KFACPINN(model.parameters(), **settings), closure, 8)
        assert torch.equal(flat(model), flat(expected))
        assert optimizer.stats["exact"] == 1
        assert {"target", "radius", "effective_parameters"} <= optimizer.stats.keys()


@pytest.mark.parametrize(
    "setting",
    [
        {"products": 10},
        {"memory": 100},
        {"factors": Factors()},
        {"law": Marquardt()},
        {"search": Armijo()},
    ],
    ids=lambda setting: next(iter(setting)),
)
def test_no_setting_of_truncated_steps_is_ignored(setting: dict[str, Any]) -> None:
    model, closure = problem()
    assert trained(KFACPINN(model.parameters(), **setting), closure, 1).stats["exact"] == 0
    both = KFACPINN(model.parameters(), **setting, exact=ALWAYS)  # who asks for both gets both
    assert trained(both, closure, 1).stats["exact"] == 1


def test_where_no_trial_is_made_steps_are_truncated() -> None:
    """With one evaluation a step; without a closure, too, and exact again with the next one."""
    model, closure = problem()
    assert (
        trained(KFACPINN(model.parameters(), search=OneEvaluation()), closure, 3).stats["exact"]
        == 0
    )
    with pytest.raises(TypeError, match="leave out exact"):
        KFACPINN(model.parameters(), search=OneEvaluation(), exact=ALWAYS)
    optimizer, found = KFACPINN(model.parameters()), []
    for number in range(4):
        optimizer.zero_grad()
        if number % 2:
            sum(r.square().mean() / 2 for r in closure()).backward()
            optimizer.step()
        else:
            optimizer.step(closure)
        found.append(optimizer.stats["exact"])
    assert found == [1, 0, 1, 0]


@pytest.mark.parametrize(
    ("rows", "columns", "kept", "values"),
    [
        (100, 40, 100, 40),  # all of J, tall
        (40, 100, 40, 40),  # and wide
        (5000, 1000, 5000, 1000),
        (5000, 1001, 775, 775),  # sketched: min((0.3 * 200 R P)^(1/3), (200 R)^(1/2))
        (1200, 30000, 489, 489),
    ],
)
def test_operations_of_an_exact_step(rows: int, columns: int, kept: int, values: int) -> None:
    """Eq. (35), by numbers worked out by hand."""
    if kept < rows:
        kept = values = min(int((200 * rows) ** 0.5), int((60 * rows * columns) ** (1 / 3)))
        assert kept == affordable(rows, columns)
    expected = 200 * rows * columns + 2 * kept * values * columns + 10 * values**3
    assert operations(rows, columns) == pytest.approx(expected, rel=1e-12)


def test_the_border_lies_where_it_is_set() -> None:
    """At the operations of this J exactly; a ridge adds its rows."""
    model, closure = problem()
    size = sum(p.numel() for p in model.parameters())
    border = operations(52, size)
    for decay, bound, exact in ((0.0, border, 1), (0.0, border * 0.999, 0), (1e-3, border, 0)):
        optimizer = KFACPINN(model.parameters(), exact=Affordable(bound), weight_decay=decay)
        assert trained(optimizer, closure, 1).stats["exact"] == exact


def test_rows_that_are_left_to_autograd_count() -> None:
    """A backward pass each, which truncated steps do without."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 1)).double()
    x = points(40)
    bound = Affordable(operations(40, sum(p.numel() for p in model.parameters())) * 2)
    with pytest.warns(UserWarning, match="left to autograd"):
        mixed = linearize(lambda: model(x) - 1, list(model.parameters()))
    assert not bound(mixed)
    plain = linearize(lambda: model.eval()(x) - 1, list(model.parameters()))
    assert bound(plain)


def test_the_choice_is_made_anew_where_j_has_another_size() -> None:
    """Not where the number of rows is less than doubled: what is remembered would be lost."""
    model, _ = problem()
    few, more, many = (poisson(model, points(n, seed=n), points(12, seed=1)) for n in (40, 60, 400))
    size = sum(p.numel() for p in model.parameters())
    optimizer = KFACPINN(model.parameters(), exact=Affordable(operations(60, size)))
    found = []
    for closure in (few, more, many, more, many, few):
        optimizer.step(closure)
        found.append(optimizer.stats["exact"])
    # 72 rows are beyond the border, but no reason to choose anew after 52
    assert found == [1, 1, 0, 0, 0, 1]


def test_the_choice_is_made_anew_with_other_parameters() -> None:
    model, closure = problem()
    first, *_, last = model.children()
    bound = operations(52, sum(p.numel() for p in last.parameters()))
    optimizer = KFACPINN(last.parameters(), exact=Affordable(bound))
    assert trained(optimizer, closure, 2).stats["exact"] == 1
    optimizer.add_param_group({"params": list(first.parameters())})
    assert trained(optimizer, closure, 2).stats["exact"] == 0


@kinds
def test_a_saved_run_of_either_kind_continues_bit_by_bit(exact: Affordable) -> None:
    model, closure = problem()
    optimizer = trained(KFACPINN(model.parameters(), exact=exact), closure, 4)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other, again = problem(seed=1)
    other.load_state_dict(saved["model"])
    resumed = KFACPINN(other.parameters(), exact=exact)
    resumed.load_state_dict(saved["optimizer"])
    assert resumed.memory.choice == optimizer.memory.choice
    trained(optimizer, closure, 4), trained(resumed, again, 4)
    assert torch.equal(flat(model), flat(other))


@kinds
def test_a_step_that_raises_leaves_all_as_it_was(exact: Affordable) -> None:
    model, closure = problem()
    optimizer = trained(KFACPINN(model.parameters(), exact=exact), closure, 3)
    theta, memory, calls = flat(model), copy.copy(optimizer.memory), 0

    def fails() -> Any:
        nonlocal calls
        calls += 1
        if calls > 1:  # in a trial
            raise ZeroDivisionError
        return closure()

    with pytest.raises(ZeroDivisionError):
        optimizer.step(fails)
    assert torch.equal(flat(model), theta) and optimizer.memory == memory


@pytest.mark.parametrize("wrong", [True, "always", Affordable, -1.0], ids=repr)
def test_what_is_no_border_is_refused(wrong: Any) -> None:
    model, _ = problem()
    with pytest.raises(TypeError, match="exact"):
        KFACPINN(model.parameters(), exact=wrong)


def test_the_count_falls_where_rows_begin_to_be_sketched():
    """The figures of the docstring of `Affordable`."""
    most = Affordable().operations
    assert operations(4700, 1000) == pytest.approx(2.0e10, rel=0.02)
    assert operations(4700, 1001) == pytest.approx(4.6e9, rel=0.02)
    assert operations(1000, 4500) <= most < operations(1000, 4600)
    assert operations(1001, 31_000) <= most < operations(1001, 32_000)
