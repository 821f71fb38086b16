"""A plain LightningModule: automatic and manual optimization, logs, schedules, checkpoints."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from installed import body
from torch import Tensor
from torch.optim import Optimizer

from kfac_pinn import KFACPINN, GaussNewton

heat = body("lightning_heat")
lightning = heat.lightning


def test_automatic_optimization_ends_below_adam() -> None:
    assert heat.solve(KFACPINN, 20) < heat.solve(torch.optim.Adam, 200, lr=1e-3) / 10


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
