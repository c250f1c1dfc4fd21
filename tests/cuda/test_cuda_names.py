"""What is marked `cuda` runs on a GPU only: here, that every name such a test uses is there, and every argument's name.

A name that was removed would else be found on a rented machine, where minutes are dear.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
UNKNOWN = object()


def marked() -> dict[str, tuple[str, ast.FunctionDef]]:
    """Of every test marked `cuda`: its module and its text, by what pytest calls it."""
    found = {}
    for file in sorted((ROOT / "tests").rglob("test_*.py")):
        text = file.read_text()
        if "pytest.mark.cuda" not in text:
            continue
        module = ".".join(file.relative_to(ROOT).with_suffix("").parts)
        for node in ast.parse(text).body:
            if isinstance(node, ast.FunctionDef) and "pytest.mark.cuda" in map(ast.unparse, node.decorator_list):
                found[f"{file.name}::{node.name}"] = module, node
    return found


def imported(function: ast.FunctionDef) -> Iterator[tuple[str, Any]]:
    """What the function imports itself; raises where that is not there."""
    for node in ast.walk(function):
        if isinstance(node, ast.Import):
            for alias in node.names:
                module = importlib.import_module(alias.name)
                top = importlib.import_module(alias.name.split(".")[0])
                yield (alias.asname, module) if alias.asname else (top.__name__, top)
        elif isinstance(node, ast.ImportFrom):
            source = importlib.import_module(str(node.module))
            for alias in node.names:
                yield alias.asname or alias.name, getattr(source, alias.name)


def missing(module: ModuleType, function: ast.FunctionDef) -> list[str]:
    """Names, attributes of modules and classes, and arguments of functions that are not there."""
    stored = {node.id for node in ast.walk(function) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    arguments = {argument.arg for argument in ast.walk(function) if isinstance(argument, ast.arg)}
    here = vars(builtins) | vars(module) | dict(imported(function))
    known = {name: value for name, value in here.items() if name not in stored | arguments}
    wrong: list[str] = []

    def value_of(node: ast.AST) -> Any:
        if isinstance(node, ast.Name):
            return known.get(node.id, UNKNOWN)
        if isinstance(node, ast.Attribute):
            owner = value_of(node.value)
            if isinstance(owner, (ModuleType, type)):
                return getattr(owner, node.attr, UNKNOWN)
        return UNKNOWN

    for node in ast.walk(function):
        if isinstance(node, ast.Name) and node.id not in known and node.id not in stored | arguments:
            wrong.append(node.id)
        elif isinstance(node, ast.Attribute):
            owner = value_of(node.value)
            if isinstance(owner, (ModuleType, type)) and not hasattr(owner, node.attr):
                wrong.append(ast.unparse(node))
        elif isinstance(node, ast.Call) and inspect.isfunction(called := value_of(node.func)):
            names = inspect.signature(called).parameters
            if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in names.values()):
                wrong += [f"{ast.unparse(node.func)}({k.arg}=)" for k in node.keywords if k.arg and k.arg not in names]
    return wrong


MARKED = marked()


@pytest.mark.parametrize("name", MARKED)
def test_cuda_names_are_there(name: str) -> None:
    module, function = MARKED[name]
    assert not missing(importlib.import_module(module), function)


def test_cuda_what_is_missing_is_found() -> None:
    text = "def test():\n    from tvmopt.machine import detect_gpu\n    math.nothing; gone(1); detect_gpu(a=2); math.pi"
    function = ast.parse(text).body[0]
    assert isinstance(function, ast.FunctionDef)
    module = ModuleType("made")
    vars(module)["math"] = importlib.import_module("math")
    assert sorted(missing(module, function)) == ["detect_gpu(a=)", "gone", "math.nothing"]
