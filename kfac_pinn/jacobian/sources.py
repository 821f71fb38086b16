"""Where a residual's Jacobian comes from: the first of three sources that is exact.

    calls     layers seen by the mode, jets among them: fewest positions, one backward pass
    graph     readers of the autograd graph: any derivative, any way to write a matrix product
    autograd  products with J and J^T by autograd: always exact, never in factors

A source is compared with autograd (`check`) where a program is new, and whenever the caller asks;
one that fails is not tried again for that residual of that program.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Mapping, Sequence

import torch
from torch import Tensor

from kfac_pinn.jacobian.assembly import Assembly
from kfac_pinn.jacobian.capture import Capture
from kfac_pinn.jacobian.check import mismatch
from kfac_pinn.jacobian.dense_rows import MixedError
from kfac_pinn.jacobian.graph_assembly import GraphAssembly
from kfac_pinn.jacobian.linearization import Linearization
from kfac_pinn.jacobian.matrix_free import AutogradJacobian
from kfac_pinn.jacobian.partition import Pair, Partition
from kfac_pinn.jacobian.residual_graph import ProgramMemory
from kfac_pinn.jacobian.term_jacobian import TermJacobian
from kfac_pinn.notices import NOTICES

__all__ = ["Source"]

COST = (
    "the points of {names} are mixed (a mean over them, BatchNorm, attention, a matrix times the "
    "values), or something hides how they are read (a hook, an autograd.Function, a complex "
    "matrix; compiled code outside of a closure: call step(closure) there), so part of the "
    "Jacobian is left to autograd. Products with it are exact and cost a backward pass each, its "
    "rows (GaussNewton, ENGD, SPRING) one a residual; Kronecker factors of these layers are "
    "estimated by a random cotangent"
)
CALLS, GRAPH, AUTOGRAD = range(3)  # from the cheapest to the one that is always exact
# A run has a few programs; a process that goes on making closures must not keep them all.
PROGRAMS = 64
REMEMBERED: OrderedDict[Hashable, ProgramMemory] = OrderedDict()

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

    def terms(self, triples: Sequence[Triple]) -> list[TermJacobian]:
        """One for the name, the tensor (N,) with its graph, and the value of every residual.

        Raises:
            RuntimeError: for a residual that depends on none of the parameters.
        """
        known = self.memory.levels
        # A closure that returns more or fewer terms than last time is as good as new
        levels = list(known) if len(known) == len(triples) else [self._start()] * len(triples)
        due = self.check or (self.new and levels != known)
        # Ends: levels only rise, and the last is always exact
        while True:
            found, wrong = self._read(triples, levels)
            refuse_independent(found)
            wrong = wrong or (self._wrong(found, triples, levels) if due else [])
            if not wrong:
                break
            # What replaces a source that failed has not been compared yet
            due = self.new
            for k in wrong:
                levels[k] += 1
        self.memory.levels = levels
        self._say_what_it_costs(found)
        return found

    def _start(self) -> int:
        """Where to begin: where no jets were seen, the mode is of no use to code it cannot see."""
        if self.capture is None:
            return GRAPH
        # e = 0 marks a derivative, and only jets have any
        jets = any(not call.unit.all() for call in self.capture.calls)
        return GRAPH if self.capture.unseen and not (jets and self.new) else CALLS

    def _read(
        self, triples: Sequence[Triple], levels: Sequence[int]
    ) -> tuple[list[TermJacobian], list[int]]:
        """The terms, each at its level, and those whose calls do not tell their rows apart."""
        outputs = {k: triples[k][1] for k, level in enumerate(levels) if level == GRAPH}
        graph = GraphAssembly(self.names, outputs, self.memory)
        calls = self.capture.calls if self.capture is not None and CALLS in levels else []
        pairs = [Pair(call.weight, call.bias) for call in calls]
        partition = Partition(self.names, [*pairs, *graph.pairs], graph.alone())
        graph.partition = partition
        seen = None if self.capture is None else Assembly(partition, self.capture)
        found, mixed = [], []
        for k, (level, triple) in enumerate(zip(levels, triples, strict=True)):
            try:
                if level == CALLS and seen is not None:
                    found.append(seen.term(*triple))
                elif level == GRAPH:
                    found.append(graph.term(k, triple[0], triple[2]))
                else:
                    found.append(by_autograd(partition, *triple))
            except MixedError:
                mixed.append(k)
        return found, mixed

    def _wrong(
        self, found: list[TermJacobian], triples: Sequence[Triple], levels: Sequence[int]
    ) -> list[int]:
        """Terms that differ from autograd, those at the last level excepted."""
        outputs = [output for _, output, _ in triples]
        # All at once first: one backward pass where nothing is wrong, which is nearly always
        if self._agree(found, outputs):
            return []
        return [
            k
            for k, (term, output) in enumerate(zip(found, outputs, strict=True))
            if levels[k] < AUTOGRAD and not self._agree([term], [output])
        ]

    def _agree(self, terms: list[TermJacobian], outputs: list[Tensor]) -> bool:
        result = Linearization(list(self.names), terms, 0.0)
        return mismatch(result, outputs, self.names) is None

    def _say_what_it_costs(self, terms: list[TermJacobian]) -> None:
        """Once for these parameters."""
        names = [term.name for term in terms if term.rest is not None]
        if names:
            message = COST.format(names=", ".join(names))
            NOTICES.once_of(next(iter(self.names)), "cost", message)


def by_autograd(partition: Partition, name: str, output: Tensor, value: Tensor) -> TermJacobian:
    """Products alone."""
    parameters = list(partition.names)
    reached = torch.autograd.grad(output.sum(), parameters, retain_graph=True, allow_unused=True)
    pairs = zip(parameters, reached, strict=True)
    blocks = dict.fromkeys(partition.block(id(p)) for p, slope in pairs if slope is not None)
    return TermJacobian(name, value, {}, AutogradJacobian(output, list(blocks)) if blocks else None)


def refuse_independent(terms: Sequence[TermJacobian]) -> None:
    """A residual that reads nothing trained is a mistake."""
    for term in terms:
        if not term.depends_on:
            raise RuntimeError(
                f"{term.name} depends on none of the optimizer's parameters. Pass the parameters "
                "of the model that the residual evaluates"
            )


def remembered(key: Hashable) -> ProgramMemory:
    """What was found of a program: a guess for the next time, which is compared."""
    memory = REMEMBERED.setdefault(key, ProgramMemory())
    # Least recently used goes first
    REMEMBERED.move_to_end(key)
    while len(REMEMBERED) > PROGRAMS:
        REMEMBERED.popitem(last=False)
    return memory
