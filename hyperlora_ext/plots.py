"""Fields and error maps of several networks on one task: the paper's Figures 2 to 4."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from hyperlora_ext.family import Family

__all__ = ["error_maps"]


def error_maps(
    family: Family, task: Tensor, networks: Mapping[str, Callable[[Any], Any]], field: int = 0
) -> Any:
    """A matplotlib figure: the reference, then each network's error log10 |u - u*|; the MSE is of
    the field that is shown.

    Args:
        networks: u by the name to be shown.
        field: which of the fields.
    """
    import matplotlib.pyplot as plt

    truth = family.reference(task)
    plane = family.grid[:, :-2].eq(family.grid[-1, :-2]).all(1)  # the last time, if there is one
    down, across = (len(family.grid[plane, i].unique()) for i in (-2, -1))
    figure, axes = plt.subplots(
        1, 1 + len(networks), figsize=(3.4 * (1 + len(networks)), 3), constrained_layout=True
    )
    image = truth[plane, field].view(down, across).T
    unit: dict[str, Any] = {"origin": "lower", "aspect": "auto", "extent": (0, 1, 0, 1)}
    figure.colorbar(axes[0].imshow(image, **unit), ax=axes[0])
    axes[0].set_title(family.name)
    for axis, (name, u) in zip(axes[1:], networks.items(), strict=True):
        with torch.no_grad():
            error = (u(family.grid[plane]) - truth[plane])[:, field]
        image = error.abs().clamp_min(1e-12).log10().view(down, across).T
        shown = axis.imshow(image, cmap="magma", vmin=-8, vmax=0, **unit)
        axis.set_title(f"{name}: MSE {float(error.square().mean()):.1e}")
    figure.colorbar(shown, ax=axes[-1], label=r"$\log_{10}$ error")
    return figure
