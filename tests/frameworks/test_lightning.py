"""A plain LightningModule: automatic and manual optimization, logs, schedules, checkpoints."""

from __future__ import annotations

import copy
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from installed import body
from torch import Tensor
from torch.optim import Optimizer

from kfac_pinn import KFACPINN, Affordable, GaussNewton, OneEvaluation

BODIES = Path(__file__).parents[2] / "examples" / "frameworks"
heat = body("lightning_heat")
lightning = heat.lightning


def test_automatic_optimization_ends_below_adam() -> None:
    by_adam = heat.solve(torch.optim.Adam, 200, lr=1e-3)
    assert heat.solve(KFACPINN, 60) < by_adam / 100
    assert heat.solve(KFACPINN, 20, exact=Affordable(0)) < by_adam / 10


class Manual(heat.Heat):
    """The same with the three calls written out: no closure."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.automatic_optimization = False

    def training_step(self, batch: list[Tensor], index: int) -> None:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, index))
        optimizer.step()


def fitted(model: Any, steps: int, resume: str | None = None, **options: Any) -> Any:
    """The model after so many steps."""
    heat.trainer(steps, **options).fit(model, heat.points(), ckpt_path=resume)
    return model


@pytest.mark.parametrize("kind", [KFACPINN, GaussNewton])
def test_manual_optimization(kind: type[Optimizer]) -> None:
    lightning.seed_everything(0)
    assert fitted(Manual(kind), 60).error() < 0.1  # Adam's is 0.43 after 200 steps


@pytest.mark.parametrize("kind", [KFACPINN, GaussNewton])
def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(kind: type[Optimizer]) -> None:
    every = lightning.pytorch.callbacks.ModelCheckpoint(
        dirpath=".", filename="{epoch}", save_top_k=-1
    )
    lightning.seed_everything(0)
    whole = fitted(heat.Heat(kind), 6, enable_checkpointing=True, callbacks=[every])
    lightning.seed_everything(0)
    resumed = fitted(heat.Heat(kind), 6, resume="epoch=3.ckpt")
    for found, expected in zip(resumed.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_a_schedule_that_watches_a_logged_loss() -> None:
    class Plateau(heat.Heat):
        def configure_optimizers(self) -> Any:
            optimizer = super().configure_optimizers()
            schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(
                optimizer, patience=0, threshold=1.0, factor=0.5
            )
            return {
                "optimizer": optimizer,
                "lr_scheduler": {"scheduler": schedule, "monitor": "equation"},
            }

    model = fitted(Plateau(KFACPINN), 4)
    assert model.optimizers().param_groups[0]["lr"] < 1


def test_a_skipped_batch_is_no_step() -> None:
    class Skips(heat.Heat):
        def training_step(self, batch: list[Tensor], index: int) -> Tensor | None:
            return None if self.current_epoch == 1 else super().training_step(batch, index)

    assert fitted(Skips(KFACPINN), 10).error() < 1


def test_clipping_is_named_where_it_has_no_effect() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fitted(heat.Heat(KFACPINN), 3, gradient_clip_val=1e-6)
    assert sum("clip" in str(w.message) for w in caught) == 1


def test_the_trainer_counts_one_step_a_step() -> None:
    trainer = heat.trainer(5)
    trainer.fit(heat.Heat(KFACPINN), heat.points())
    assert trainer.global_step == 5
    assert set(trainer.logged_metrics) == {"equation", "conditions"}


def test_data_parallel_is_the_run_of_one_process() -> None:
    """Lightning's DDP strategy, two processes with half of the points each (gloo)."""
    script = str(BODIES / "lightning_processes.py")
    norms = []
    for processes in ("1", "2"):
        run = subprocess.run(
            [sys.executable, script, processes],
            capture_output=True,
            text=True,
            timeout=300,
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": str(BODIES.parents[1]),
                "PYTHONUNBUFFERED": "1",  # lines of two processes would mix
            },
        )
        found = re.findall(r"in each process: (.*)", run.stdout)
        assert len(found) == 1, run.stderr  # one process prints
        each = found[0].split()
        assert len(each) == int(processes)
        assert len(set(each)) == 1  # they agree in all digits
        norms.append(float(each[0]))
    assert norms[1] == pytest.approx(norms[0], rel=1e-7)  # 2e-10 was seen


def of_batches(count: int) -> Any:
    """Some of the points in so many batches of equal size."""
    inside, border = (points[:, :60] for points in next(iter(heat.points())))
    parts = list(zip(inside.chunk(count, 1), border.chunk(count, 1), strict=True))
    return torch.utils.data.DataLoader(parts, batch_size=None)


def test_accumulated_batches_are_one_step() -> None:
    """accumulate_grad_batches: the trainer divides each loss, and `step` reads them all."""

    def after(batches: int, **options: Any) -> Any:
        lightning.seed_everything(0)
        model = heat.Heat(GaussNewton, search=OneEvaluation())
        trainer = heat.trainer(4, precision="64-true", **options)
        trainer.fit(model, of_batches(batches))
        assert trainer.global_step == 4
        return model

    parts, whole = after(3, accumulate_grad_batches=3), after(1)
    for found, expected in zip(parts.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


class Two(heat.Heat):
    """Two networks with an optimizer each, of different kinds."""

    def __init__(self) -> None:
        super().__init__(KFACPINN)
        self.automatic_optimization = False
        self.second = type(self.net)(*(copy.deepcopy(module) for module in self.net))

    def configure_optimizers(self) -> Any:
        first, second = self.net.parameters(), self.second.parameters()
        return [KFACPINN(first), torch.optim.Adam(second, lr=1e-3)]

    def training_step(self, batch: list[Tensor], index: int) -> None:
        """One loss of both; each optimizer sees its own parameters only."""
        for optimizer in self.optimizers():
            self.toggle_optimizer(optimizer)
            optimizer.zero_grad()
            loss = super().training_step(batch, index)
            self.manual_backward(loss + self.second(batch[1]).square().mean())
            optimizer.step()
            self.untoggle_optimizer(optimizer)


def test_several_optimizers_of_one_module() -> None:
    lightning.seed_everything(0)
    model = fitted(Two(), 20)
    assert model.error() < 0.5  # Adam's is 0.43 after 200 steps
    assert [type(o.optimizer) for o in model.optimizers()] == [KFACPINN, torch.optim.Adam]


@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed"])
def test_mixed_precision_is_named(precision: str) -> None:
    with pytest.raises(RuntimeError, match=r"(?s)GradScaler|autocast.*float32"):
        fitted(heat.Heat(KFACPINN), 2, precision=precision)


def test_the_learning_rate_is_monitored_and_scheduled() -> None:
    class Scheduled(heat.Heat):
        def configure_optimizers(self) -> Any:
            optimizer = super().configure_optimizers()
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)]

    watch = lightning.pytorch.callbacks.LearningRateMonitor(logging_interval="epoch")
    logger = lightning.pytorch.loggers.CSVLogger(".")
    fitted(Scheduled(KFACPINN), 3, callbacks=[watch], logger=logger)
    assert watch.lrs["lr-KFACPINN"] == [1.0, 0.5, 0.25]


def test_early_stopping_reads_the_logged_losses() -> None:
    # One term may rise for some steps while the loss falls
    early = lightning.pytorch.callbacks.EarlyStopping
    stop = early("equation", patience=120, stopping_threshold=1e-2)
    model = heat.Heat(KFACPINN)
    trainer = heat.trainer(120, callbacks=[stop])
    trainer.fit(model, heat.points())
    assert trainer.current_epoch < 120
    assert trainer.logged_metrics["equation"] < 1e-2
