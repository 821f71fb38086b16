"""What people write out of habit from torch.optim: it works, or the message says what to write."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_problems import flat, network, points, small_case
from torch import Tensor, nn
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    LambdaLR,
    OneCycleLR,
    ReduceLROnPlateau,
    StepLR,
)

import kfac_pinn
from kfac_pinn import (
    ENGD,
    KFAC,
    KFACPINN,
    SPRING,
    CheckSchedule,
    GaussNewton,
    HessianFree,
    KFACStar,
)
from kfac_pinn.optimizers.arguments import ADVICE
from kfac_pinn.optimizers.arguments import PARTS as EXAMPLES
from kfac_pinn.optimizers.base import LeastSquaresOptimizer
from kfac_pinn.search.line import FixedStep, NormConstraint

EXPORTED = [getattr(kfac_pinn, name) for name in kfac_pinn.__all__]
CLASSES = [c for c in EXPORTED if inspect.isclass(c) and issubclass(c, LeastSquaresOptimizer)]
OURS = [c for c in CLASSES if "lr" in inspect.signature(c).parameters]
every_optimizer = pytest.mark.parametrize("make", OURS, ids=lambda c: c.__name__)


def trained(make: Any, steps: int = 3, **options: Any) -> tuple[nn.Module, Any, Any]:
    """A model, its closure and an optimizer after some steps."""
    model, closure = small_case()
    optimizer = make(model.parameters(), **options)
    for _ in range(steps):
        optimizer.step(closure)
    return model, closure, optimizer


# Arguments


@every_optimizer
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("betas", (0.9, 0.999)),
        ("eps", 1e-8),
        ("nesterov", True),
        ("amsgrad", False),
        ("history_size", 50),
        ("line_search_fn", "strong_wolfe"),
        ("tolerance_grad", 1e-7),
        ("foreach", True),
        ("weight_deacy", 1e-4),
    ],
)
def test_arguments_of_other_optimizers_are_named(make: Any, name: str, value: Any) -> None:
    model, _ = small_case()
    with pytest.raises(TypeError, match=f"{make.__name__} has no {name}.*arguments are lr"):
        make(model.parameters(), **{name: value})
    if not isinstance(value, str) or name in ADVICE:
        with pytest.raises(TypeError, match=f"{make.__name__} has no {name}"):
            make([{"params": model.parameters(), name: value}])


PARTS = [(c, name) for c in OURS for name in inspect.signature(c).parameters if name in EXAMPLES]


@pytest.mark.parametrize(("make", "name"), PARTS)
def test_parts_that_cannot_do_what_is_asked_of_them(make: Any, name: str) -> None:
    """A class, a name, a number: refused before the first step, with what to write."""
    model, _ = small_case()
    for part in (kfac_pinn.Armijo, kfac_pinn.Factors, "default", 0.5):
        with pytest.raises(TypeError, match=rf"{make.__name__}.*{name}.*(\w+\(|lambda)"):
            make(model.parameters(), **{name: part})


def test_all_parts_have_an_example() -> None:
    """An argument that is neither a number nor a choice of True and False."""
    own = {name for c in OURS for name in inspect.signature(c).parameters}
    numbers = {"params", "common", "bias_correction", "lr", "damping", "momentum", "products"}
    assert own - numbers - {"memory", "trials", "slack"} == EXAMPLES.keys()


@pytest.mark.parametrize("make", [GaussNewton, kfac_pinn.LevenbergMarquardt])
def test_a_search_that_would_be_ignored_is_refused(make: Any) -> None:
    model, _ = small_case()
    for search in (kfac_pinn.Armijo(), kfac_pinn.GridSearch(), FixedStep()):
        with pytest.raises(TypeError, match=r"OneEvaluation\(\).* left out"):
            make(model.parameters(), search=search)


def test_a_law_may_be_a_function() -> None:
    model, closure = small_case()
    optimizer = KFACPINN(model.parameters(), law=lambda damping, ratio: damping)
    losses = [float(optimizer.step(closure)) for _ in range(3)]
    assert losses == sorted(losses, reverse=True)


@pytest.mark.parametrize("make", [GaussNewton, KFACPINN, HessianFree, ENGD, KFACStar])
def test_a_momentum_that_would_be_ignored_is_refused(make: Any) -> None:
    model, _ = small_case()
    with pytest.raises(TypeError, match=r"no momentum .*KFAC.momentum"):
        make(model.parameters(), momentum=0.9)
    with pytest.raises(TypeError, match="no momentum"):
        make([{"params": model.parameters(), "momentum": 0.9}])


def test_labels_of_groups_and_the_entries_of_schedulers_are_nobodys_business() -> None:
    model, closure = small_case()
    group = {"params": model.parameters(), "name": "net", "initial_lr": 1.0}
    KFACPINN([group]).step(closure)


@every_optimizer
@pytest.mark.parametrize("lr", ["1e-3", None, [1.0], True])
def test_a_learning_rate_that_is_no_number(make: Any, lr: Any) -> None:
    model, _ = small_case()
    with pytest.raises(TypeError, match="lr must be a number, found"):
        make(model.parameters(), lr=lr)
    with pytest.raises(TypeError, match="lr must be a number, found"):
        make([{"params": model.parameters(), "lr": lr}])


def test_text_as_a_number_is_told_how_to_write_it() -> None:
    model, _ = small_case()
    with pytest.raises(TypeError, match=r"found '1e-3'; write 0.001"):
        KFACPINN(model.parameters(), lr="1e-3")


@pytest.mark.parametrize("make", [ENGD, SPRING, KFAC, HessianFree, KFACStar])
@pytest.mark.parametrize("damping", ["1e-3", -1.0, float("nan")])
def test_damping_is_checked_in_groups_too(make: Any, damping: Any) -> None:
    model, _ = small_case()
    with pytest.raises((TypeError, ValueError), match="damping must"):
        make(model.parameters(), damping=damping)
    with pytest.raises((TypeError, ValueError), match="damping must"):
        make([{"params": model.parameters(), "damping": damping}])


@pytest.mark.parametrize("make", [KFACPINN, GaussNewton, HessianFree, ENGD])
def test_a_learning_rate_of_adam_is_remarked_on_once(make: Any) -> None:
    model, closure = small_case()
    with pytest.warns(UserWarning, match=r"lr=0.001 .*leave lr at 1") as caught:
        optimizer = make(model.parameters(), lr=1e-3)
        optimizer.step(closure)
        optimizer.step(closure)
    assert len([w for w in caught if "leave lr at 1" in str(w.message)]) == 1
    assert caught[0].filename == __file__


def test_small_learning_rates_that_mean_something_are_not_remarked_on() -> None:
    model, _ = small_case()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        KFACStar(model.parameters())
        KFAC(model.parameters(), lr=1e-3, search=FixedStep())
        SPRING(model.parameters(), lr=1e-3, search=NormConstraint())
        GaussNewton([{"params": model[0].parameters(), "lr": 1e-3}, *groups(model[2])])
        copy.deepcopy(KFACPINN(model.parameters()))


def groups(*modules: nn.Module) -> list[dict[str, Any]]:
    return [{"params": list(m.parameters())} for m in modules]


# max_iter


@every_optimizer
def test_max_iter_is_so_many_steps_in_one_call(make: Any) -> None:
    model, closure = small_case()
    reference, same = small_case()
    losses = [float(make_once.step(same)) for make_once in [make(reference.parameters())] * 4]
    optimizer = make(model.parameters(), max_iter=4)
    loss = optimizer.step(closure)
    assert float(loss) == losses[0]
    torch.testing.assert_close(flat(model), flat(reference), rtol=1e-12, atol=1e-14)
    assert optimizer.steps == 4
    assert optimizer.stats["loss"] == pytest.approx(losses[-1], rel=1e-12)


@pytest.mark.parametrize("max_iter", [0, 2.5, "20"])
def test_max_iter_counts(max_iter: Any) -> None:
    model, _ = small_case()
    with pytest.raises(
        (TypeError, ValueError), match="max_iter must be a whole number, at least 1"
    ):
        KFACPINN(model.parameters(), max_iter=max_iter)


def test_max_iter_ends_where_nothing_moves_any_more() -> None:
    model = network(2, 4, 1)
    x = points(5)
    with torch.no_grad():
        target = model(x)
    calls = 0

    def closure() -> Tensor:
        nonlocal calls
        calls += 1
        return model(x) - target

    KFACPINN(model.parameters(), max_iter=100).step(closure)
    assert calls < 10


# Weight decay: the ridge is a residual like any other


def with_ridge(model: nn.Module, closure: Callable[[], Any], decay: dict[Tensor, float]) -> Any:
    """The closure with rows sqrt(w) theta: 1/2 mean (sqrt(w P) theta)^2 = w/2 ||theta||^2."""

    def ridge() -> Tensor:
        parts = [w**0.5 * p.reshape(-1) for p, w in decay.items()]
        row = torch.cat(parts)
        return row * len(row) ** 0.5

    return lambda: (*closure(), ridge())


def decayed(make: Any, kind: str, **options: Any) -> tuple[Tensor, Tensor, Any, Any]:
    """Parameters after three steps with weight decay, and with the rows written out."""
    model, closure = small_case()
    other, same = small_case()
    weights = {p: (0.3 if kind == "one" or p.ndim > 1 else 0.0) for p in other.parameters()}
    params: Any = model.parameters()
    if kind == "groups":
        params = [
            {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.3},
            {"params": [p for p in model.parameters() if p.ndim == 1]},
        ]
        weights = {p: weights[p] for p in (*[q for q in weights if q.ndim > 1],)}
        order: Any = [
            {"params": [p for p in other.parameters() if p.ndim > 1]},
            {"params": [p for p in other.parameters() if p.ndim == 1]},
        ]
    else:
        options_decay = {"weight_decay": 0.3}
        order = other.parameters()
    optimizer = make(params, **options, **(options_decay if kind == "one" else {}))
    reference = make(order, **options)
    written = with_ridge(other, same, weights)
    for _ in range(3):
        optimizer.step(closure)
        reference.step(written)
    return flat(model), flat(other), optimizer, reference


EXACT = {
    "GaussNewton": (GaussNewton, {}),
    "ENGD": (ENGD, {"damping": 1e-3}),
    "HessianFree": (HessianFree, {}),
}


@pytest.mark.parametrize("kind", ["one", "groups"])
@pytest.mark.parametrize("name", EXACT)
def test_weight_decay_is_exactly_a_ridge_of_residuals(name: str, kind: str) -> None:
    make, options = EXACT[name]
    found, expected, optimizer, reference = decayed(make, kind, **options)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)
    for key in ("loss", "new_loss", "gradient_norm"):
        assert optimizer.stats[key] == pytest.approx(reference.stats[key], rel=1e-6)


@every_optimizer
def test_weight_decay_is_in_loss_and_gradient(make: Any) -> None:
    model, closure = small_case()
    theta, decay = flat(model), 0.2
    loss = sum(0.5 * r.square().mean() for r in closure()) + decay / 2 * theta.square().sum()
    optimizer = make(model.parameters(), weight_decay=decay)
    expected = [
        g + decay * p
        for g, p in zip(
            torch.autograd.grad(
                sum(0.5 * r.square().mean() for r in closure()), [*model.parameters()]
            ),
            model.parameters(),
            strict=True,
        )
    ]
    expected = [e.detach() for e in expected]
    assert float(optimizer.step(closure)) == pytest.approx(float(loss))
    for p, g in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, g, rtol=1e-9, atol=1e-12)
    new = sum(0.5 * r.square().mean() for r in closure()) + decay / 2 * flat(model).square().sum()
    if optimizer.stats["new_loss"] == optimizer.stats["new_loss"]:
        assert optimizer.stats["new_loss"] == pytest.approx(float(new), rel=1e-9)


@every_optimizer
def test_weight_decay_shrinks_towards_the_minimum_of_the_whole(make: Any) -> None:
    """A linear least-squares problem: the minimum is (J^T J + w I)^-1 J^T y."""
    torch.manual_seed(1)
    x, y, w = torch.randn(30, 3).double(), torch.randn(30, 1).double(), 0.5
    model = nn.Linear(3, 1, bias=False).double()
    J = x / 30**0.5
    best = torch.linalg.solve(J.T @ J + w * torch.eye(3), J.T @ y / 30**0.5)
    options = {"damping": 1e-6} if "damping" in inspect.signature(make).parameters else {}
    optimizer = make(model.parameters(), weight_decay=w, **options)
    for _ in range(60):
        optimizer.step(lambda: model(x) - y)
    torch.testing.assert_close(model.weight.detach().T, best, rtol=1e-3, atol=1e-4)


def test_weight_decay_of_groups_that_one_kernel_cannot_have_is_refused() -> None:
    model, closure = small_case()
    optimizer = SPRING([{"params": model[0].parameters(), "weight_decay": 0.1}, *groups(model[2])])
    with pytest.raises(ValueError, match="one weight_decay for all"):
        optimizer.step(closure)


@every_optimizer
def test_weight_decay_of_a_group_may_change_and_be_zero(make: Any) -> None:
    model, closure = small_case()
    other, same = small_case()
    optimizer, plain = make(model.parameters(), weight_decay=0.2), make(other.parameters())
    optimizer.param_groups[0]["weight_decay"] = 0.0
    for _ in range(2):
        optimizer.step(closure)
        plain.step(same)
    assert torch.equal(flat(model), flat(other))


@pytest.mark.parametrize("decay", [-1e-4, "1e-4"])
def test_weight_decay_is_a_number_not_negative(decay: Any) -> None:
    model, _ = small_case()
    with pytest.raises((TypeError, ValueError), match="weight_decay must"):
        KFACPINN(model.parameters(), weight_decay=decay)


# Schedulers

SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "LambdaLR": lambda o: LambdaLR(o, lambda step: 0.5**step),
    "StepLR": lambda o: StepLR(o, 1, 0.5),
    "CosineAnnealingLR": lambda o: CosineAnnealingLR(o, 4),
    "OneCycleLR": lambda o: OneCycleLR(o, max_lr=1.0, total_steps=8, cycle_momentum=False),
    "ReduceLROnPlateau": lambda o: ReduceLROnPlateau(o, patience=0, threshold=1e9),
}


@every_optimizer
@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers(make: Any, name: str) -> None:
    model, closure = small_case()
    optimizer = make(model.parameters())
    scheduler = SCHEDULERS[name](optimizer)
    rates = []
    for _ in range(4):
        loss = optimizer.step(closure)
        scheduler.step(*([loss] if name == "ReduceLROnPlateau" else []))
        rates.append(optimizer.param_groups[0]["lr"])
    assert len(set(rates)) > 1
    assert torch.isfinite(flat(model)).all()


@pytest.mark.parametrize("make", [KFAC, SPRING])
def test_one_cycle_cycles_the_momentum_of_those_that_have_one(make: Any) -> None:
    model, closure = small_case()
    optimizer = make(model.parameters())
    scheduler = OneCycleLR(optimizer, max_lr=1.0, total_steps=6)
    momenta = []
    for _ in range(5):
        momenta.append(optimizer.param_groups[0]["momentum"])
        optimizer.step(closure)
        scheduler.step()
    assert min(momenta) < max(momenta)


def test_one_cycle_says_how_where_there_is_no_momentum() -> None:
    model, _ = small_case()
    with pytest.raises(ValueError, match="cycle_momentum"):
        OneCycleLR(KFACPINN(model.parameters()), max_lr=1.0, total_steps=6)


# State


@every_optimizer
@pytest.mark.parametrize("other", [torch.optim.Adam, torch.optim.SGD, torch.optim.LBFGS])
def test_the_state_of_a_torch_optimizer_is_refused(make: Any, other: Any) -> None:
    model, _, optimizer = trained(make)
    before = copy.deepcopy(optimizer.state_dict())
    foreign = other(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=f"{other.__name__}.*not of {make.__name__}"):
        optimizer.load_state_dict(foreign.state_dict())
    assert str(optimizer.state_dict()) == str(before)


@pytest.mark.parametrize("make", OURS, ids=lambda c: c.__name__)
@pytest.mark.parametrize("other", OURS, ids=lambda c: c.__name__)
def test_the_state_of_another_of_ours_is_refused(make: Any, other: Any) -> None:
    if make is not other:
        _, _, optimizer = trained(make, 1)
        _, _, foreign = trained(other, 1)
        with pytest.raises(ValueError, match=f"{other.__name__}, not of {make.__name__}"):
            optimizer.load_state_dict(foreign.state_dict())


@every_optimizer
def test_the_state_of_other_shapes_is_refused(make: Any) -> None:
    model, closure = small_case()
    optimizer = make(model.named_parameters())
    larger, same = small_case(hidden=6)
    other = make(larger.named_parameters())
    other.step(same)
    with pytest.raises(
        ValueError, match=r"0.weight has shape \(5, 2\), in the saved state \(6, 2\)"
    ):
        optimizer.load_state_dict(other.state_dict())
    optimizer.step(closure)


@every_optimizer
def test_double_between_two_steps(make: Any) -> None:
    model, _ = small_case()
    model.float()
    x = points(12)
    dtype = torch.float32

    def closure() -> Tensor:
        return model(x.to(dtype)) - x[:, :1].to(dtype)

    optimizer = make(model.parameters())
    for _ in range(3):
        optimizer.step(closure)
    model.double()
    dtype = torch.float64
    with pytest.warns(UserWarning, match=r"float64 on cpu now.*starts afresh"):
        optimizer.step(closure)
    loss = optimizer.step(closure)
    for _ in range(3):
        optimizer.step(closure)
    assert loss.dtype == torch.float64
    assert all(p.grad.dtype == torch.float64 for p in model.parameters())


# Parameters that the closure no longer reads


@every_optimizer
def test_a_parameter_object_that_was_replaced_is_named(make: Any) -> None:
    model, closure = small_case()
    optimizer = make(model.named_parameters())
    optimizer.step(closure)
    model[0].weight = nn.Parameter(model[0].weight.detach().clone())
    with pytest.warns(UserWarning, match="0.weight any longer"):
        optimizer.step(closure)


@every_optimizer
def test_all_parameters_replaced(make: Any) -> None:
    model, closure = small_case()
    optimizer = make(model.named_parameters())
    optimizer.step(closure)
    for module in (model[0], model[2]):
        module.weight = nn.Parameter(module.weight.detach().clone())
        module.bias = nn.Parameter(module.bias.detach().clone())
    with pytest.raises(RuntimeError, match="depend"):
        optimizer.step(closure)


# Numbers that float64 cannot square, hooks, mixed precision


@every_optimizer
@pytest.mark.parametrize("scale", [1e150, 1e170, 1e300])
def test_residuals_whose_squares_overflow(make: Any, scale: float) -> None:
    model, closure = small_case()
    optimizer = make(model.parameters())
    theta = flat(model)
    try:
        optimizer.step(lambda: tuple(scale * r for r in closure()))
    except FloatingPointError as error:
        assert "scale" in str(error) or "finite" in str(error)
        assert torch.equal(flat(model), theta)
    assert torch.isfinite(flat(model)).all()


def test_an_empty_batch_is_named() -> None:
    model, _ = small_case()
    with pytest.raises(ValueError, match="no points"):
        KFACPINN(model.parameters()).step(lambda: model(torch.zeros(0, 2).double()))


def test_a_grad_scaler_is_named() -> None:
    model, closure = small_case()
    optimizer = KFACPINN(model.parameters())
    scaler = torch.amp.GradScaler("cpu")
    loss = sum(0.5 * r.square().mean() for r in closure())
    scaler.scale(loss).backward()
    with pytest.raises(TypeError, match="GradScaler"):
        scaler.step(optimizer)
    with pytest.raises(TypeError, match="GradScaler"):
        scaler.step(optimizer, closure)


def test_a_disabled_grad_scaler_is_harmless() -> None:
    model, closure = small_case()
    optimizer = KFACPINN(model.parameters())
    torch.amp.GradScaler("cpu", enabled=False).step(optimizer, closure)
    assert optimizer.steps == 1


@every_optimizer
def test_autocast_is_named(make: Any) -> None:
    model = network(2, 5, 1).float()
    optimizer, x = make(model.parameters()), points(9).float()
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(ValueError, match="autocast"):
        optimizer.step(lambda: model(x) - 1)


@every_optimizer
def test_a_hook_that_changes_the_gradient_has_no_effect_and_is_named(make: Any) -> None:
    model, closure = small_case()
    other, same = small_case()
    handle = model[0].weight.register_hook(lambda g: 2 * g)
    optimizer = make(model.named_parameters())
    with pytest.warns(UserWarning, match=r"0.weight .*hook"):
        optimizer.step(closure)
    make(other.parameters()).step(same)
    torch.testing.assert_close(flat(model), flat(other), rtol=1e-12, atol=1e-14)
    sum(r.square().sum() for r in closure()).backward()
    handle.remove()


# Signature


def test_frameworks_that_ask_for_a_default_pass_a_closure() -> None:
    """neurodiffeq passes a closure only if `closure` has no default."""
    for make in OURS:
        model, _ = small_case()
        optimizer = make(model.parameters())
        LambdaLR(optimizer, lambda step: 1.0)
        parameter = inspect.signature(optimizer.step).parameters["closure"]
        assert parameter.default is inspect.Parameter.empty


@pytest.mark.parametrize("keyword", [False, True])
def test_closures_by_position_and_keyword(keyword: bool) -> None:
    model, closure = small_case()
    optimizer = KFACPINN(model.parameters())
    optimizer.step(closure=closure) if keyword else optimizer.step(closure)
    assert optimizer.steps == 1


def test_what_is_not_a_closure_is_named() -> None:
    model, closure = small_case()
    with pytest.raises(TypeError, match="pass the function"):
        KFACPINN(model.parameters()).step(closure())


def moved(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """What Lightning does to an optimizer's state: tensors replaced, dataclasses field by field."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, dict):
        return {key: moved(entry, function) for key, entry in value.items()}
    if dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            setattr(value, field.name, moved(getattr(value, field.name), function))
    return value


@every_optimizer
def test_frameworks_may_move_the_state(make: Any) -> None:
    model, closure, optimizer = trained(make)
    for p, state in optimizer.state.items():
        optimizer.state[p] = moved(state, lambda t: t.clone())
    optimizer.step(closure)
    assert torch.isfinite(flat(model)).all()


# When the Jacobian is compared


@pytest.mark.parametrize("make", OURS, ids=lambda c: c.__name__)
def test_check_is_an_argument_of_every_optimizer(make: Any) -> None:
    model, _ = small_case()
    assert make(model.parameters(), check=True).check is True
    assert make(model.parameters(), check=False).check is False
    schedule = CheckSchedule(every=3)
    assert make(model.parameters(), check=schedule).check is schedule
    assert isinstance(make(model.parameters()).check, CheckSchedule)
    for wrong in (1, "never", None):
        with pytest.raises(TypeError, match="check is True, False or a CheckSchedule"):
            make(model.parameters(), check=wrong)


def test_schedules_belong_to_one_optimizer_each() -> None:
    model, _ = small_case()
    first, second = KFACPINN(model.parameters()), KFACPINN(model.parameters())
    assert first.check is not second.check


def test_a_module_for_its_parameters_is_named() -> None:
    with pytest.raises(TypeError, match=r"write model.parameters\(\)"):
        KFACPINN(network(2, 3, 1))


@pytest.mark.parametrize("free", [False, True])
def test_autocast_inside_the_closure_is_named(free: bool) -> None:
    model, x = network(2, 3, 1).float(), points(5).float()
    optimizer = KFACPINN(model.parameters())

    def loss() -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return (model(x) - 1).square().mean()

    if free:
        loss().backward()
    with pytest.raises(RuntimeError, match=r"bfloat16, under torch.autocast maybe"):
        optimizer.step(*([] if free else [loss]))
