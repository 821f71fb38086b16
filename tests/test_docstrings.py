"""Every public name says what it is: a sentence, its arguments, and the errors that it raises.

What cannot be read off the code (formula, shapes, source) is for people to look at; that an
argument is never named, or that a `raise` stands in a body whose docstring has no "Raises", is
found here.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator
from enum import Enum
from typing import Any

import pytest

import hyperlora_ext
import kfac_pinn

PUBLIC = {
    f"{package.__name__}.{name}": getattr(package, name)
    for package in (kfac_pinn, hyperlora_ext)
    for name in package.__all__
}
FUNCTIONS = {name: value for name, value in PUBLIC.items() if inspect.isfunction(value)}
CLASSES = {name: value for name, value in PUBLIC.items() if inspect.isclass(value)}
PROTOCOLS = [value for value in CLASSES.values() if getattr(value, "_is_protocol", False)]
# Methods that a protocol or a base class inside the package documents for all who have them.
INHERITED = {
    "forward": "nn.Module: the class says what it computes",
    "product": "Curvature",
    "weights": "Update",
    "factor": "Kernel, Gramian, Preconditioner",
    "update": "Gramian",
    "inputs": "Sharing",
    "gradients": "Sharing",
    "cotangents": "Fisher",
    **dict.fromkeys(("on_start", "on_step", "on_end", "state_dict", "load_state_dict"), "Callback"),
}


def raises(function: Any) -> bool:
    """Whether its own body raises an error; functions and classes inside do not count."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    return any(isinstance(node, ast.Raise) and node.exc for node in body_of(tree.body[0]))


def body_of(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, (ast.FunctionDef, ast.Lambda, ast.ClassDef)):
            yield child
            yield from body_of(child)


def unnamed(value: Any) -> list[str]:
    """Parameters that the docstring does not mention."""
    variadic = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    parameters = inspect.signature(value).parameters.values()
    names = [p.name for p in parameters if p.kind not in variadic]
    return [name for name in names if not re.search(rf"\b{name}\b", inspect.getdoc(value) or "")]


def methods(kind: type) -> Iterator[tuple[str, Any]]:
    """The public methods and properties that a class defines itself."""
    for name, value in vars(kind).items():
        function = value.fget if isinstance(value, property) else value
        function = getattr(function, "__func__", function)
        if not name.startswith("_") and inspect.isfunction(function):
            yield name, function


@pytest.mark.parametrize("name", [*FUNCTIONS, *CLASSES])
def test_a_docstring_opens_with_one_sentence(name: str) -> None:
    first = (inspect.getdoc(PUBLIC[name]) or "").partition("\n\n")[0]
    assert re.search(r"[.:]$", first), f"{name}: {first!r} is no sentence"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_names_its_arguments_and_errors(name: str) -> None:
    text = inspect.getdoc(FUNCTIONS[name]) or ""
    assert not unnamed(FUNCTIONS[name])
    assert "Raises:" in text or not raises(FUNCTIONS[name]), f"{name} raises, and does not say so"


@pytest.mark.parametrize("name", CLASSES)
def test_a_class_names_its_arguments_and_errors(name: str) -> None:
    kind = CLASSES[name]
    if kind in PROTOCOLS or issubclass(kind, Enum):
        return  # never called
    makers = [vars(kind)[m] for m in ("__init__", "__post_init__") if m in vars(kind)]
    makers = [each for each in makers if inspect.getsourcefile(each) == inspect.getsourcefile(kind)]
    assert not unnamed(kind)
    errors = any(map(raises, makers))
    assert "Raises" in (inspect.getdoc(kind) or "") or not errors, f"{name} does not say what fails"


@pytest.mark.parametrize("name", CLASSES)
def test_methods_say_what_they_do_and_raise(name: str) -> None:
    for method, function in methods(CLASSES[name]):
        text = inspect.getdoc(getattr(CLASSES[name], method)) or ""
        assert text or method in INHERITED or CLASSES[name] in PROTOCOLS, f"{name}.{method}"
        assert "Raise" in text or not raises(function), f"{name}.{method} does not say what fails"


SHAPE = re.compile(r"\([A-Za-z_]\w*(?: \+ 1)?(?:, ?\w+(?: \+ 1)?)*,?\)|\(\)|[Ss]hape|[Ss]calar")


def takes_tensors(function: Any) -> bool:
    return bool(re.search(r"\bTensor\b", str(inspect.signature(function))))


@pytest.mark.parametrize("name", [n for n in FUNCTIONS if takes_tensors(FUNCTIONS[n])])
def test_a_function_of_tensors_says_their_shapes(name: str) -> None:
    assert SHAPE.search(inspect.getdoc(FUNCTIONS[name]) or "")


@pytest.mark.parametrize("name", CLASSES)
def test_a_class_of_tensors_says_their_shapes(name: str) -> None:
    """In its docstring, that of a base, or that of the method."""
    kind = CLASSES[name]
    said = " ".join(inspect.getdoc(each) or "" for each in kind.__mro__ if each is not object)
    for method, function in methods(kind):
        if takes_tensors(function) and method not in INHERITED:
            text = inspect.getdoc(getattr(kind, method)) or ""
            assert SHAPE.search(said + text), f"{name}.{method}"
