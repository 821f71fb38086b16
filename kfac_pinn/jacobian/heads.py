"""Which nodes of a loss's graph are squares of residuals, or robust losses of them."""

from __future__ import annotations

from collections.abc import Callable

from kfac_pinn.jacobian.products import INNER, PRODUCTS, SQUARED
from kfac_pinn.jacobian.quadratic_forms import elementwise_form, gram, inner_form
from kfac_pinn.jacobian.robust_losses import ROBUST
from kfac_pinn.jacobian.squares import SQUARES, Head, Node

__all__ = ["head_of"]


def head_of(name: str, node: Node) -> Head | None:
    """What a node of that name takes the square or a robust loss of; None for any other node."""
    for table in TABLES:
        if name in table and (head := table[name](node)) is not None:
            return head
    return None


FORMS: dict[str, Callable[[Node], Head | None]] = {
    **{name: inner_form(factors) for name, factors in INNER.items()},
    **{name: elementwise_form(factors) for name, factors in PRODUCTS.items()},
}

GRAMS = {name: gram(factors) for name, factors in INNER.items() if name in ("Mm", "Bmm", "Addmm")}

# Squares first: r . r is r . M r with the identity
TABLES = (SQUARES, SQUARED, ROBUST, FORMS, GRAMS)
