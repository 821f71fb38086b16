"""Where a closure's Jacobian comes from: the first of three sources that is exact.

    calls     layers seen by the mode, jets among them: fewest positions, one backward pass
    graph     readers of the autograd graph: any derivative, any way to write a matrix product
    autograd  products with J and J^T by autograd: always exact, never in factors

A source is compared with autograd (`check`) where a program is new, and whenever the caller asks;
one that fails is not tried again for that program.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Hashable, Mapping, Sequence

import torch
from torch import Tensor

from kfac_pinn.jacobian.assembly import Assembly, MixedError
from kfac_pinn.jacobian.capture import Capture
from kfac_pinn.jacobian.check import mismatch
from kfac_pinn.jacobian.graph_assembly import GraphAssembly, Memory
from kfac_pinn.jacobian.linearization import Linearization, TermJacobian
from kfac_pinn.jacobian.matrix_free import AutogradJacobian
from kfac_pinn.jacobian.partition import Partition

__all__ = ["Source"]

COST = (
    "the points of {names} are mixed (a mean over them, BatchNorm, attention, a matrix times the "
    "values, ...), so part of the Jacobian is left to autograd. Products with it are exact and "
    "cost a backward pass each, its rows (GaussNewton, ENGD, SPRING) one a residual; Kronecker "
    "factors of these layers are estimated by a random cotangent"
)
PROGRAMS = 64
REMEMBERED: OrderedDict[Hashable, Memory] = OrderedDict()

Triple = tuple[str, Tensor, Tensor]


class Source:
    """Reads the Jacobians of one evaluation of a closure.

    Args:
        names: of the parameters, which are in the order of the flat vector.
        capture: what the mode saw, None if no closure ran under it.
        check: whether to compare with autograd now.
        new: whether to compare a program that was not seen before.
    """

    def __init__(
        self, names: Mapping[Tensor, str], capture: Capture | None, check: bool, new: bool = True
    ) -> None:
        self.names, self.capture, self.check, self.new = names, capture, check, new
        program = () if capture is None else tuple(capture.program)
        self.ids = frozenset(map(id, names))
        self.memory = remembered((self.ids, hash(program)))
        self.is_new = not self.memory

    def terms(self, triples: Sequence[Triple]) -> list[TermJacobian]:
        """One for the name, the tensor (N,) with its graph, and the value of every residual.

        Raises:
            RuntimeError: for a residual that depends on none of the parameters.
        """
        sources = [self._calls, self._graph, self._autograd]
        unseen = self.capture is None or self.capture.unseen
        for number in range(self.memory.get("source", int(unseen)), len(sources)):
            try:
                found = sources[number](triples)
            except MixedError:
                continue
            refuse_independent(found)
            due = self.check or (self.new and self.memory.get("source") != number)
            if not due or self._agrees(found, triples) or number == len(sources) - 1:
                self.memory["source"] = number
                self._say_what_it_costs(found)
                return found
        raise AssertionError("the last source is always taken")

    def _calls(self, triples: Sequence[Triple]) -> list[TermJacobian]:
        assert self.capture is not None
        assembly = Assembly(self.names, self.capture)
        return [assembly.term(*triple) for triple in triples]

    def _graph(self, triples: Sequence[Triple]) -> list[TermJacobian]:
        outputs = [output for _, output, _ in triples]
        assembly = GraphAssembly(self.names, outputs, self.memory)
        return [assembly.term(k, name, value) for k, (name, _, value) in enumerate(triples)]

    def _autograd(self, triples: Sequence[Triple]) -> list[TermJacobian]:
        partition = Partition(self.names, [])
        found = []
        for name, output, value in triples:
            reached = torch.autograd.grad(
                output.sum(), list(self.names), retain_graph=True, allow_unused=True
            )
            pairs = zip(self.names, reached, strict=True)
            leaves = [partition.block(id(p)) for p, gradient in pairs if gradient is not None]
            rest = AutogradJacobian(output, leaves) if leaves else None
            found.append(TermJacobian(name, value, {}, rest))
        return found

    def _say_what_it_costs(self, terms: list[TermJacobian]) -> None:
        """Once for these parameters."""
        names = [term.name for term in terms if term.rest is not None]
        known = remembered(self.ids)
        if names and not known:
            known["said"] = True
            warnings.warn(COST.format(names=", ".join(names)), stacklevel=2)

    def _agrees(self, terms: list[TermJacobian], triples: Sequence[Triple]) -> bool:
        result = Linearization(list(self.names), terms, 0.0)
        return mismatch(result, [output for _, output, _ in triples], self.names) is None


def refuse_independent(terms: Sequence[TermJacobian]) -> None:
    """A residual that reads nothing trained is a mistake."""
    for term in terms:
        if not term.depends_on:
            raise RuntimeError(
                f"{term.name} depends on none of the optimizer's parameters. Pass the parameters "
                "of the model that the residual evaluates"
            )


def remembered(key: Hashable) -> Memory:
    """What was found of a program: a guess for the next time, which is compared."""
    memory = REMEMBERED.setdefault(key, {})
    REMEMBERED.move_to_end(key)
    while len(REMEMBERED) > PROGRAMS:
        REMEMBERED.popitem(last=False)
    return memory
