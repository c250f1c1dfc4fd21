"""Models that come from files: `path/to/file.py:factory` and `model.pt2`."""

from __future__ import annotations

import difflib
import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvmopt.errors import ModelError, one_line

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.export import ExportedProgram


def call_factory(path: str, factory: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Runs the file at `path`, calls its `factory` and returns the module and the example inputs that it gives.

    The file can import what stands beside it. Errors: `ModelError`, with the name of what the factory raised.
    """
    import torch

    file = Path(path)
    if not file.is_file():
        raise ModelError(f"{path}: no such file")
    name = f"_tvmopt_model_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ModelError(f"{path} is not a Python file")
    source = importlib.util.module_from_spec(spec)
    sys.modules[name] = source
    sys.path.insert(0, str(file.resolve().parent))
    try:
        try:
            spec.loader.exec_module(source)
        except (Exception, SystemExit) as error:
            raise ModelError(f"{path} raised {type(error).__name__}: {one_line(error, 200)}") from error
        function = getattr(source, factory, None)
        if not callable(function):
            functions = [key for key, value in vars(source).items() if callable(value) and not key.startswith("_")]
            near = difflib.get_close_matches(factory, functions, 3, 0.5)
            hint = f": did you mean {' or '.join(near)}?" if near else ""
            raise ModelError(f"{path} has no function {factory!r}{hint}")
        try:
            result: Any = function()
        except (Exception, SystemExit) as error:
            raise ModelError(f"{factory} of {path} raised {type(error).__name__}: {one_line(error, 200)}") from error
    finally:
        sys.path.remove(str(file.resolve().parent))
    if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[0], torch.nn.Module)):
        raise ModelError(f"{factory} of {path} must return (module, example_inputs), not {type(result).__name__}")
    module, inputs = result
    inputs = (inputs,) if isinstance(inputs, torch.Tensor) else tuple(inputs)
    return module, inputs


def _trains(program: ExportedProgram) -> bool:
    """Whether an operator of the program (batch norm, dropout) was exported in training mode."""
    for node in program.graph.nodes:
        schema = getattr(node.target, "_schema", None)
        if node.op == "call_function" and schema is not None:
            given = dict(zip((argument.name for argument in schema.arguments), node.args, strict=False)) | node.kwargs
            if given.get("training") is True or given.get("train") is True:
                return True
    return False


def open_exported(path: str) -> tuple[nn.Module, tuple[Tensor, ...], ExportedProgram, dict[str, str]]:
    """Returns the archive's module, example inputs (drawn where none were saved), program and extra files.

    The module is a graph: `.train()` and `.eval()` are not for it. Errors: `ModelError`, also for a program that was
    exported in training mode or that takes keyword inputs.
    """
    import torch

    from tvmopt.models.random_weights import random_inputs
    from tvmopt.pt2 import load_exported

    program, extra = load_exported(path)
    signature = program.graph_signature
    if signature.buffers_to_mutate or _trains(program):
        raise ModelError(f"{path} was exported in training mode: call module.eval() before torch.export.export")
    positional, keywords = program.example_inputs or ((), {})
    user_inputs = set(signature.user_inputs)
    values = [node.meta["val"] for node in program.graph.nodes if node.op == "placeholder" and node.name in user_inputs]
    if keywords or not values or not all(isinstance(value, torch.Tensor) for value in values):
        raise ModelError(f"{path} must take tensors as positional inputs only: export it so")
    inputs = tuple(positional)
    if not inputs:
        drawn = random_inputs([value.shape for value in values], seed=0)
        inputs = tuple(
            tensor if value.dtype == tensor.dtype else torch.zeros(value.shape, dtype=value.dtype)
            for tensor, value in zip(drawn, values, strict=True)
        )
    # The program's own guards would be written out as source; static shapes are checked by tvmopt itself.
    return program.module(check_guards=False), inputs, program, extra
