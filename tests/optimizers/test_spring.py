"""SPRING against the published trajectory and the minimisation problem that defines it."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_problems import Closure, cases, flat, relative, small_case
from test_kfac import PROBLEMS, reference
from torch import Tensor, nn

from kfac_pinn import ENGD, SPRING, ConvexLoss, laplacian, linearize
from kfac_pinn.curvature.sample_space import NystromKernel
from kfac_pinn.optimizers.engd import SampleSpace
from kfac_pinn.search.line import FixedStep, GridSearch, NormConstraint


@pytest.mark.parametrize("problem", PROBLEMS)
def test_published_trajectory(problem: str) -> None:
    model, residuals, data = reference(problem)
    optimizer = SPRING(model.parameters(), 0.05, 1e-3, 0.9, search=NormConstraint(1e-2))
    for losses, theta in zip(data["spring/losses"], data["spring/thetas"], strict=True):
        loss = optimizer.step(residuals)
        assert relative(flat(model), torch.from_numpy(theta)) <= 1e-12
        assert float(loss) == pytest.approx(losses.sum(), rel=1e-12)


def minimiser(closure: Closure, model: nn.Module, kept: Tensor, damping: float) -> Tensor:
    """argmin 1/2 ||J p + r||^2 + e.p + damping/2 ||p - kept||^2, by the dense normal equations."""
    linearization = linearize(closure, list(model.parameters()))
    damped = linearization.gramian() + damping * torch.eye(len(kept), dtype=torch.float64)
    return torch.linalg.solve(damped, damping * kept - linearization.gradient)


@given(cases(), st.floats(0.0, 0.95))
def test_direction_minimises(case: tuple[nn.Sequential, Closure], mu: float) -> None:
    model, residuals = case
    optimizer = SPRING(model.parameters(), 0.1, 1e-2, mu, search=FixedStep())
    phi = torch.zeros_like(flat(model))
    for _ in range(3):
        before, phi = flat(model), minimiser(residuals, model, mu * phi, 1e-2)
        optimizer.step(residuals)
        assert relative(flat(model) - before, 0.1 * phi) <= 1e-7


def test_convex_losses_add_their_excess() -> None:
    model, residuals = small_case()
    x = torch.rand(7, 2, dtype=torch.float64)

    def closure() -> tuple[Tensor, ConvexLoss]:
        u = laplacian(model, x)
        return residuals()[0], ConvexLoss((u, model(x)), lambda a, b: a.square() - 3 * b)

    optimizer = SPRING(model.parameters(), 0.1, 1e-2, 0.5, search=FixedStep())
    phi = torch.zeros_like(flat(model))
    for _ in range(3):
        before, phi = flat(model), minimiser(closure, model, 0.5 * phi, 1e-2)
        optimizer.step(closure)
        assert relative(flat(model) - before, 0.1 * phi) <= 1e-9


def test_without_momentum_it_is_kernel_engd() -> None:
    first, residuals = small_case()
    spring = SPRING(first.parameters(), 1.0, 1e-4, 0.0, search=GridSearch())
    for _ in range(3):
        spring.step(residuals)
    second, residuals = small_case()
    engd = ENGD(second.parameters(), damping=1e-4, gramian=SampleSpace())
    for _ in range(3):
        engd.step(residuals)
    assert relative(flat(first), flat(second)) <= 1e-10


def test_bias_correction() -> None:
    model, residuals = small_case()
    linearization = linearize(residuals, list(model.parameters()))
    plain = SPRING(model.parameters(), momentum=0.8)
    corrected = SPRING(model.parameters(), momentum=0.8, bias_correction=True)
    for k in (1, 2, 3):
        plain.steps = corrected.steps = k - 1
        expected = plain.direction(linearization) / (1 - 0.8 ** (2 * k)) ** 0.5
        assert relative(corrected.direction(linearization), expected) <= 1e-14


def test_norm_constraint() -> None:
    model, residuals = small_case()
    optimizer = SPRING(model.parameters(), 1.0, search=NormConstraint(1e-4))
    before = flat(model)
    optimizer.step(residuals)
    assert float((flat(model) - before).norm()) == pytest.approx(1e-2, rel=1e-10)
    assert optimizer.stats["shortened"] == 1 and not optimizer.stats["reason"]


def test_state_resumes_exactly() -> None:
    model, residuals = small_case(n=40)
    kernel = NystromKernel()
    optimizer = SPRING(model.parameters(), kernel=kernel, bias_correction=True)
    for _ in range(2):
        optimizer.step(residuals)
    state, theta = copy.deepcopy(optimizer.state_dict()), flat(model)
    optimizer.step(residuals)
    expected = flat(model)
    nn.utils.vector_to_parameters(theta, model.parameters())
    restored = SPRING(model.parameters(), kernel=kernel, bias_correction=True)
    restored.load_state_dict(state)
    restored.step(residuals)
    assert torch.equal(flat(model), expected)


def test_one_damping_for_all_groups() -> None:
    model, residuals = small_case()
    groups = [{"params": model[0].parameters()}, {"params": model[2].parameters(), "damping": 1.0}]
    optimizer = SPRING(groups)
    with pytest.raises(ValueError, match="one damping for all parameters"):
        optimizer.step(residuals)
    optimizer.param_groups[1]["damping"] = optimizer.param_groups[0]["damping"]
    optimizer.step(residuals)


def test_bad_hyper_parameters() -> None:
    model, _ = small_case()
    with pytest.raises(ValueError, match="damping must be positive"):
        SPRING(model.parameters(), damping=0.0)
    with pytest.raises(ValueError, match=r"momentum must be in \[0, 1\), found 1"):
        SPRING(model.parameters(), momentum=1.0)
