"""Settings cannot be changed under an optimizer that took them: dataclasses are frozen.

What is computed step by step is no setting, and may be brought up to date in place.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from dataclasses import is_dataclass

import pytest

import kfac_pinn

COMPUTED = {
    *("KroneckerPair", "LayerFactors", "LeafGramian", "DenseInverse", "BlockCurvature"),
    *("KroneckerInverse", "Solution"),  # curvature and solves
    *("Product", "Factor", "Unknown", "Owners"),  # what is read from a graph
    *("ProgramMemory", "GraphMemory"),  # what earlier runs of a program left
    "StopAtError",  # a callback counts
    "StopAtLoss",
}


def dataclasses() -> Iterator[type]:
    for found in pkgutil.walk_packages(kfac_pinn.__path__, "kfac_pinn."):
        module = importlib.import_module(found.name)
        own = (c for c in vars(module).values() if inspect.isclass(c))
        yield from (c for c in own if c.__module__ == found.name and is_dataclass(c))


def choices() -> Iterator[type]:
    """What is handed to an optimizer, or to `fit`, and counts nothing."""
    others = "Callback", "Progress", "CheckSchedule", "Processes"  # the last needs some
    exported = [getattr(kfac_pinn, name) for name in kfac_pinn.__all__ if name not in others]
    for kind in filter(inspect.isclass, exported):
        parameters = inspect.signature(kind).parameters.values()
        if not inspect.isabstract(kind) and all(p.default is not p.empty for p in parameters):
            yield kind


@pytest.mark.parametrize("kind", list(choices()), ids=lambda c: c.__name__)
def test_choices_are_equal_if_their_settings_are(kind: type) -> None:
    assert kind() == kind()
    assert hash(kind()) == hash(kind())


@pytest.mark.parametrize("kind", list(dataclasses()), ids=lambda c: c.__name__)
def test_settings_are_frozen(kind: type) -> None:
    assert kind.__dataclass_params__.frozen == (kind.__name__ not in COMPUTED)  # type: ignore[attr-defined]
