"""ENGD against dense solves and itself on the other side; approximate kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_problems import (
    Closure,
    cases,
    flat,
    network,
    points,
    poisson,
    relative,
    small_case,
)
from test_kfac import PROBLEMS, reference
from torch import Tensor, nn

from kfac_pinn import ENGD, Linearization, laplacian, linearize
from kfac_pinn.curvature.kronecker_factors import Average
from kfac_pinn.curvature.sample_space import ExactKernel, NystromKernel
from kfac_pinn.optimizers.engd import Diagonal, Full, PerLayer, SampleSpace
from kfac_pinn.search.line import FixedStep


@pytest.mark.parametrize("problem", PROBLEMS)
def test_accuracy(problem: str) -> None:
    """Whatever the side, the direction is that of a singular value decomposition of J."""
    model, residuals, _ = reference(problem)
    linearization = linearize(residuals, list(model.parameters()))
    expected = dense_direction(linearization, 1e-6)
    optimizer = ENGD(model.parameters(), damping=1e-6)
    assert relative(optimizer.direction(linearization), expected) <= 1e-10


def dense_direction(linearization: Linearization, damping: float) -> Tensor:
    """-V S/(S^2 + lambda) U^T r, by the decomposition of J: no Gramian, no kernel."""
    U, S, Vh = torch.linalg.svd(linearization.rows().double(), full_matrices=False)
    return -Vh.mT @ (S / (S.square() + damping) * (U.mT @ linearization.residual.double()))


@st.composite
def systems(draw: st.DrawFn) -> tuple[Linearization, float]:
    """Wide and tall Jacobians, one or two hidden layers, both precisions; and a damping."""
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    hidden = draw(st.lists(st.integers(1, 8), min_size=1, max_size=2))
    sizes = [draw(st.integers(1, 3)), *hidden, 1]
    n, nb, seed = draw(st.integers(1, 40)), draw(st.integers(1, 10)), draw(st.integers(0, 10_000))
    model = network(*sizes, seed=seed).to(dtype)
    x, xb = (points(k, sizes[0], seed + k).to(dtype) for k in (n, nb))
    linearization = linearize(poisson(model, x, xb), list(model.parameters()))
    largest = float(linearization.rows().double().square().sum())
    lowest = -2 if dtype == torch.float32 else -8
    return linearization, largest * 10 ** draw(st.floats(lowest, 1))


@given(systems())
def test_both_sides_agree(system: tuple[Linearization, float]) -> None:
    """Smaller side, sample space and parameter space, with a singular value decomposition."""
    linearization, damping = system
    expected = dense_direction(linearization, damping)
    condition = 1 + float(linearization.rows().double().square().sum()) / damping
    tolerance = 100 * torch.finfo(linearization.residual.dtype).eps * condition
    for gramian in (Full(), SampleSpace(), Full(Average(0.0))):
        optimizer = ENGD(linearization.parameters, damping=damping, gramian=gramian)
        assert relative(optimizer.direction(linearization).double(), expected) <= tolerance


@given(cases())
def test_layers_are_solved_alone(case: tuple[nn.Sequential, Closure]) -> None:
    model, residuals = case
    linearization = linearize(residuals, list(model.parameters()))
    optimizer = ENGD(model.parameters(), damping=1e-4, gramian=PerLayer())
    direction = optimizer.direction(linearization)
    gramian, gradient = linearization.gramian(), linearization.gradient
    for block in linearization.blocks:
        columns = torch.cat([torch.arange(s.start, s.stop) for s in block.slices])
        matrix = gramian[columns][:, columns] + 1e-4 * torch.eye(len(columns), dtype=torch.float64)
        assert relative(matrix @ direction[columns], -gradient[columns]) <= 1e-8


@given(cases())
def test_zero_damping_is_the_pseudo_inverse(case: tuple[nn.Sequential, Closure]) -> None:
    model, residuals = case
    linearization = linearize(residuals, list(model.parameters()))
    direction = ENGD(model.parameters(), damping=0.0).direction(linearization)
    # Singular values below sqrt(eps) may or may not be kept: what they do to the model is small.
    residual = linearization.residual + linearization @ direction
    U, S, _ = torch.linalg.svd(linearization.rows(), full_matrices=False)
    kept = U[:, 1e-5 * S[0] < S]
    assert (kept.mT @ residual).norm() <= 1e-6 * linearization.residual.norm()


def test_average_starts_from_the_identity() -> None:
    model, residuals = small_case()
    linearization = linearize(residuals, list(model.parameters()))
    optimizer = ENGD(model.parameters(), damping=1e-3, gramian=Full(Average(0.75)))
    gramian = torch.eye(linearization.size, dtype=torch.float64)
    for _ in range(3):
        gramian = 0.75 * gramian + 0.25 * linearization.gramian()
        damped = gramian + 1e-3 * torch.eye(linearization.size, dtype=torch.float64)
        expected = -torch.linalg.solve(damped, linearization.gradient)
        assert relative(optimizer.direction(linearization), expected) <= 1e-11


@pytest.mark.parametrize("start", [1.0, 0.0, None])
def test_averages_of_parts_are_merged_with_what_is_remembered(start: float | None) -> None:
    """Of each layer and of the diagonal, from `start` times the identity; a layer that a step does
    not see keeps its average, and goes on from there.
    """
    model, _ = small_case()
    x, y = points(12), points(12, seed=1)
    whole = lambda: (laplacian(model, x) + 1, model(y))  # noqa: E731
    without_first = lambda: model[2](points(9, 5, seed=2))  # noqa: E731
    average = Average(0.75, start)
    layers, diagonal = (
        ENGD(model.parameters(), damping=1e-3, gramian=gramian(average))
        for gramian in (PerLayer, Diagonal)
    )
    columns = [torch.arange(15), torch.arange(15, 21)]  # both layers' weight and bias
    known: list[Tensor | None] = [None, None]
    mean: Tensor | None = None

    def averaged(old: Tensor | None, new: Tensor) -> Tensor:
        if old is None and start is None:
            return new
        identity = torch.eye(len(new), dtype=new.dtype) if new.ndim == 2 else torch.ones_like(new)
        return 0.75 * (start * identity if old is None else old) + 0.25 * new  # type: ignore[operator]

    for closure, seen in ((whole, (0, 1)), (without_first, (1,)), (whole, (0, 1))):
        linearization = linearize(closure, list(model.parameters()))
        J, gradient = linearization.rows(), linearization.gradient
        found = layers.direction(linearization)
        for i in seen:
            known[i] = averaged(known[i], J[:, columns[i]].mT @ J[:, columns[i]])
            damped = known[i] + 1e-3 * torch.eye(len(columns[i]), dtype=J.dtype)
            expected = -torch.linalg.solve(damped, gradient[columns[i]])
            assert relative(found[columns[i]], expected) <= 1e-10
        mean = averaged(mean, J.square().sum(0))
        expected = -gradient / (mean + 1e-3)
        assert relative(diagonal.direction(linearization), expected) <= 1e-12


@pytest.mark.parametrize("gramian", [Full, PerLayer, Diagonal])
def test_averages_start_again_when_a_parameter_is_frozen(gramian: Any) -> None:
    model, closure = small_case()
    optimizer = ENGD(model.parameters(), gramian=gramian(Average(0.5, start=None)))
    optimizer.step(closure)
    optimizer.param_groups[0]["params"][0].requires_grad_(False)
    linearization = linearize(closure, [p for p in model.parameters() if p.requires_grad])
    fresh = ENGD(optimizer.parameters, gramian=gramian(Average(0.5, start=None)))
    directions = [each.direction(linearization) for each in (optimizer, fresh)]
    assert directions[0].shape == (linearization.size,)
    if gramian is not PerLayer:  # there, the layers that stayed as they were remember
        assert torch.equal(*directions)


def test_groups_may_differ_in_damping() -> None:
    model, residuals = small_case(n=2)
    first, last = model[0].parameters(), model[2].parameters()
    groups = [{"params": first, "damping": 1e-2}, {"params": last, "damping": 1e-1}]
    optimizer = ENGD(groups)
    linearization = linearize(residuals, list(model.parameters()))
    damping = torch.tensor([1e-2] * 15 + [1e-1] * 6, dtype=torch.float64)
    damped = linearization.gramian() + torch.diag(damping)
    expected = -torch.linalg.solve(damped, linearization.gradient)
    assert relative(optimizer.direction(linearization), expected) <= 1e-11
    with pytest.raises(ValueError, match=r"one damping.*Full\(\)"):
        ENGD(groups, gramian=SampleSpace()).direction(linearization)


@given(st.integers(0, 1000))
def test_nystrom_becomes_exact(seed: int) -> None:
    model, residuals = small_case(n=40, hidden=8, seed=seed)
    linearization = linearize(residuals, list(model.parameters()))
    exact = ExactKernel().factor(linearization, 1e-3, 0)(linearization.residual)
    found = [
        NystromKernel(tail, seed).factor(linearization, 1e-3, 0)(linearization.residual)
        for tail in (1e-4, 0.0)
    ]
    pulled = [linearization.vjp(u - exact).norm() for u in found]
    scale = linearization.vjp(exact).norm()
    # Tails near the damping have no bound: 4 of 1001 projections miss an eigenvalue by chance
    assert pulled[0] <= 1e-2 * scale
    assert pulled[1] <= 1e-7 * scale


def test_a_random_kernel_is_new_every_step_and_resumes() -> None:
    kernel = NystromKernel()

    def run(steps: int, state: dict[str, Any] | None = None) -> tuple[Tensor, dict[str, Any]]:
        optimizer = ENGD(model.parameters(), 0.1, 1e-3, SampleSpace(kernel), FixedStep())
        if state:
            optimizer.load_state_dict(state)
        for _ in range(steps):
            optimizer.step(residuals)
        return flat(model), optimizer.state_dict()

    model, residuals = small_case(n=40)
    whole, _ = run(4)
    model, residuals = small_case(n=40)
    _, state = run(2)
    resumed, _ = run(2, state)
    assert torch.equal(whole, resumed)
    linearization = linearize(residuals, list(model.parameters()))
    u = linearization.residual
    first, second = (kernel.factor(linearization, 1e-3, step)(u) for step in (0, 1))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("setting", [Full(), PerLayer(), Diagonal(), SampleSpace()])
def test_training_solves_the_problem(setting: Any) -> None:
    model, residuals = small_case(n=30, hidden=10)
    optimizer = ENGD(model.parameters(), damping=1e-8, gramian=setting)
    first = float(optimizer.step(residuals))
    for _ in range(15):
        last = float(optimizer.step(residuals))
    assert last < (0.3 if isinstance(setting, Diagonal) else 1e-3) * first


def test_bad_hyper_parameters() -> None:
    model, _ = small_case()
    make: Callable[..., ENGD] = lambda **kwargs: ENGD(model.parameters(), **kwargs)  # noqa: E731
    with pytest.raises(ValueError, match="damping must not be negative"):
        make(damping=-1.0)
    with pytest.raises(ValueError, match="lr must be positive"):
        make(lr=0.0)
