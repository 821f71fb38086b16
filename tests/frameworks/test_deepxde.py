"""DeepXDE: its demos with one line changed, saving, restoring, schedules, resampled points."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from installed import body
from torch.optim import Optimizer

from kfac_pinn import KFACPINN, Affordable, GaussNewton

demos = body("deepxde_demos")
dde = demos.dde

SMALL: dict[str, dict[str, Any]] = {
    "burgers": {"domain": 300, "boundary": 20, "initial": 40, "width": 10},
    "kovasznay": {"domain": 150, "boundary": 60, "width": 12, "depth": 2},
    "beam": {},
    "diffusivity": {},
    "hard_constraint": {},
}


def demo(name: str) -> Any:
    """A small one, the same at every call."""
    dde.config.set_random_seed(0)
    return demos.DEMOS[name](**SMALL[name])


def train(name: str, kind: Callable[..., Optimizer], steps: int, **settings: Any) -> float:
    """The error after so many iterations."""
    trained = demo(name)
    trained.model.compile(kind(trained.trained, **settings), verbose=0)
    trained.model.train(iterations=steps, display_every=10, verbose=0)
    return trained.error()


def truncated(parameters: Any) -> KFACPINN:
    """Without exact steps, which need more than forty."""
    return KFACPINN(parameters, exact=Affordable(0))


@pytest.mark.parametrize(
    ("name", "kind", "steps", "gain"),
    [
        ("burgers", truncated, 40, 2),
        ("kovasznay", GaussNewton, 30, 5),
        ("beam", GaussNewton, 30, 5),
        ("diffusivity", GaussNewton, 30, 1000),
        ("hard_constraint", truncated, 30, 50),
    ],
)
def test_demos_end_below_adam(
    name: str, kind: Callable[..., Optimizer], steps: int, gain: float
) -> None:
    """Adam gets ten times the steps, about the same seconds."""
    assert train(name, kind, steps) < train(name, torch.optim.Adam, 10 * steps, lr=1e-3) / gain


def test_in_double_precision() -> None:
    dde.config.set_default_float("float64")
    try:
        assert train("beam", GaussNewton, 60) < 1e-6
    finally:
        dde.config.set_default_float("float32")


def parameters_of(trained: Any) -> list[np.ndarray]:
    """As numbers that stay."""
    return [p.detach().numpy().copy() for p in trained.model.net.parameters()]


@pytest.mark.parametrize("kind", [KFACPINN, GaussNewton])
def test_a_restored_run_goes_on_as_if_it_had_not_stopped(kind: type[Optimizer]) -> None:
    whole = demo("hard_constraint")
    whole.model.compile(kind(whole.trained), verbose=0)
    whole.model.train(iterations=4, verbose=0)
    path = whole.model.save("checkpoint")
    whole.model.train(iterations=3, verbose=0)
    resumed = demo("hard_constraint")
    resumed.model.compile(kind(resumed.trained), verbose=0)
    resumed.model.restore(path)
    resumed.model.train(iterations=3, verbose=0)
    for found, expected in zip(parameters_of(resumed), parameters_of(whole), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_a_schedule_of_deepxde_moves_lr() -> None:
    trained = demo("beam")
    optimizer = KFACPINN(trained.trained)
    trained.model.compile(optimizer, decay=("step", 1, 0.5), verbose=0)
    trained.model.train(iterations=3, verbose=0)
    assert optimizer.param_groups[0]["lr"] == 0.125


def test_weights_of_the_losses_count() -> None:
    def loss(weights: list[float]) -> list[float]:
        trained = demo("burgers")
        trained.model.compile(KFACPINN(trained.trained), loss_weights=weights, verbose=0)
        history, _ = trained.model.train(iterations=15, verbose=0)
        return list(np.array(history.loss_train[-1]) / weights)

    assert loss([1, 1, 1000])[2] < loss([1, 1, 1])[2]


def test_new_points_between_the_steps() -> None:
    trained = demo("hard_constraint")
    trained.model.compile(KFACPINN(trained.trained), verbose=0)
    before = trained.error()
    resampler = dde.callbacks.PDEPointResampler(period=1)
    trained.model.train(iterations=30, callbacks=[resampler], verbose=0)
    assert trained.error() < before / 20


def test_the_unknown_is_watched_by_deepxde_s_own_callback() -> None:
    trained = demo("diffusivity")
    trained.model.compile(
        GaussNewton(trained.trained), external_trainable_variables=trained.unknowns, verbose=0
    )
    watch = dde.callbacks.VariableValue(trained.unknowns, period=5, filename="unknown.dat")
    trained.model.train(iterations=20, callbacks=[watch], verbose=0)
    lines = Path("unknown.dat").read_text().splitlines()
    values = [line.split("[")[1].rstrip("]") for line in lines]
    assert float(values[0]) == 2.0
    assert abs(float(values[-1]) - 1) < 0.1


def test_callbacks_that_stop_and_save() -> None:
    trained = demo("hard_constraint")
    trained.model.compile(KFACPINN(trained.trained), verbose=0)
    stop = dde.callbacks.EarlyStopping(min_delta=0.5, patience=3)
    best = dde.callbacks.ModelCheckpoint("best", save_better_only=True, period=2)
    trained.model.train(iterations=200, callbacks=[stop, best], display_every=2, verbose=0)
    assert 3 < trained.model.train_state.iteration < 200
    assert list(Path().glob("best-*.pt"))


@pytest.mark.parametrize("loss", ["MAE", ["MSE", "MAE", "MSE"]])
def test_other_losses_than_means_of_squares(loss: Any) -> None:
    """An absolute value is a reweighted square."""
    trained = demo("burgers")
    trained.model.compile(KFACPINN(trained.trained), loss=loss, verbose=0)
    history, _ = trained.model.train(iterations=15, display_every=5, verbose=0)
    assert sum(history.loss_train[-1]) < sum(history.loss_train[0]) / 2


def test_an_infinite_loss_is_named() -> None:
    """Relative to data that are zero, as those of an equation are."""
    trained = demo("beam")
    trained.model.compile(KFACPINN(trained.trained), loss="mean l2 relative error", verbose=0)
    with pytest.raises(FloatingPointError, match=r"Norm.*not finite"):
        trained.model.train(iterations=1, verbose=0)


def test_mixed_precision_is_named() -> None:
    dde.config.set_default_float("mixed")
    try:
        trained = demo("beam")
        trained.model.compile(KFACPINN(trained.trained), verbose=0)
        with pytest.raises(RuntimeError, match="autocast"):
            trained.model.train(iterations=1, verbose=0)
    finally:
        dde.config.set_default_float("float32")
