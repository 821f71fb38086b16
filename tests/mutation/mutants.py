"""Mutants: all places of a package where one operator, number or condition can be changed."""

from __future__ import annotations

import ast
import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

# What crashes at once on numbers and tensors says nothing about the tests.
BITS = ("BitAnd", "BitOr", "BitXor", "LShift", "RShift")
IDENTITY = ("Is", "IsNot")


@dataclass(frozen=True)
class Mutant:
    """One change.

    Attributes:
        path: of the file, from the root of the repository.
        first, last: the lines that it changes.
        column: where it begins.
        operator, occurrence: by which Cosmic Ray finds it again.
    """

    path: str
    first: int
    last: int
    column: int
    operator: str
    occurrence: int

    @property
    def place(self) -> tuple[str, int, int, str]:
        """Where, and what kind of change; there may be several variants."""
        return self.path, self.first, self.column, self.operator.split("_")[0]

    def applied(self, source: str) -> str | None:
        """The file's text with the change."""
        found = mutate_code(source, get_operator(self.operator)(), self.occurrence)
        return None if found is None or found == source else found


def sample(root: Path, package: str, size: int, seed: int) -> list[Mutant]:
    """So many mutants of a package, at different places, chosen at random by the seed."""
    files = sorted((root / package).rglob("*.py"))
    every = [m for file in files for m in mutants(root, file)]
    every.sort(key=lambda m: (*m.place, m.operator, m.occurrence))
    places = [list(group) for _, group in itertools.groupby(every, lambda m: m.place)]
    generator = random.Random(f"{package} {seed}")
    generator.shuffle(places)
    return [generator.choice(variants) for variants in places[:size]]


def mutants(root: Path, file: Path) -> Iterator[Mutant]:
    """All of one file, annotations and imports for type checkers aside."""
    source = file.read_text()
    nodes, silent = list(ast_nodes(get_ast(source))), unexecuted(source)
    for name in sorted(filter(meaningful, operator_names())):
        operator, occurrences = get_operator(name)(), itertools.count()
        for node in nodes:
            for (line, column), (last, _) in operator.mutation_positions(node):
                occurrence = next(occurrences)
                if not any(start <= (line, column) < end for start, end in silent):
                    path = file.relative_to(root).as_posix()
                    yield Mutant(path, line, last, column, name, occurrence)


def meaningful(operator: str) -> bool:
    """Whether a change can leave a program that runs."""
    if get_operator(operator).arguments():  # works on names that it is told
        return False
    kind, *names = operator.removeprefix("core/").split("_")
    if kind == "ReplaceBinaryOperator":
        return names[1] not in BITS or names[0] in BITS
    if kind == "ReplaceComparisonOperator":
        return names[1] not in IDENTITY or names[0] in IDENTITY
    return True


def unexecuted(source: str) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """The places of annotations, and of what only a type checker reads."""
    found: list[ast.AST | None] = []
    for node in ast.walk(ast.parse(source)):
        found += [getattr(node, "annotation", None), getattr(node, "returns", None)]
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            found.append(node)
    return [
        ((n.lineno, n.col_offset), (n.end_lineno or 0, n.end_col_offset or 0))  # type: ignore[attr-defined]
        for n in found
        if n is not None
    ]
