"""Opens a `torch.export` archive (.pt2) without ever running code that stands in it.

`torch.export.load` is not for files from elsewhere: where `weights_only=True` refuses a pickle it falls back to
`weights_only=False`, it unpickles custom objects, loads compiled libraries, evaluates symbolic sizes and guards as
Python, and writes the graph's names into source code that it then executes. So here
 1. every record is looked at first: only plain tensors, static sizes and names that are plain identifiers pass;
 2. the archive is then loaded with `torch.load` held to `weights_only=True`, so that the fall-back raises.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import pickle
import re
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvmopt.errors import ModelError, one_line

if TYPE_CHECKING:
    from torch import nn
    from torch.export import ExportedProgram

_lock = threading.Lock()
_PROGRAM = "models/model.json"
# Names, operator targets, dtypes, devices and versions need no more. No bracket, quote, blank or line end can pass
# into the source code that torch.fx generates.
_PLAIN = re.compile(r"[\w.:+\-]*")
# The pytree specs are JSON inside a string.
_TREE = re.compile(r"[\w\s.,:\"\\\[\]{}]*")
_TARGET = re.compile(r"torch\.ops\.(?!higher_order\.triton)[\w.]+|_operator\.(getitem|add|sub|mul|floordiv|neg)")
# Free text that torch keeps but never executes, or (as_string) writes with repr().
_FREE_TEXT = {"metadata", "as_string", "as_strings"}


def duplicate(module: nn.Module) -> nn.Module:
    """A deep copy of any module. Of an exported program's, torch would say that its own code uses a deprecated name."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)
        return copy.deepcopy(module)


def load_exported(path: str | os.PathLike[str]) -> tuple[ExportedProgram, dict[str, str]]:
    """Returns the program in the archive at `path` and its extra files (name -> text).

    Errors: `ModelError` where there is no such file, where it is not an archive of one exported program, where it
    holds anything that would have to be executed to be loaded, or sizes that are not static.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}") from error
    try:
        _inspect(path, content)
        with _weights_only():
            return _load(content)
    except ModelError:
        raise
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{path} refused: it holds pickled objects that weights_only=True does not load; "
            "unpickling them could run any code"
        ) from error
    except Exception as error:
        import torch

        raise ModelError(
            f"{path} cannot be loaded by torch {torch.__version__} ({one_line(error, 150)}): "
            "save it anew with torch.export.save"
        ) from error


def _load(content: bytes) -> tuple[ExportedProgram, dict[str, str]]:
    # Not torch.export.load: where this fails it tries the format of torch 2.7, which nobody has inspected.
    from torch.export.pt2_archive._package import load_pt2

    archive = load_pt2(io.BytesIO(content))
    return archive.exported_programs["model"], dict(archive.extra_files)


@contextlib.contextmanager
def _weights_only() -> Iterator[None]:
    """Holds every `torch.load` of the process to `weights_only=True` for the time being.

    A patch of the module because torch leaves no other way to refuse its fall-back; another thread's load is held to
    it too, which errs on the safe side.
    """
    import torch

    with _lock:
        original = torch.load

        def load(*args: Any, **options: Any) -> Any:
            return original(*args, **{**options, "weights_only": True, "pickle_module": None})

        torch.load = load
        try:
            yield
        finally:
            torch.load = original


def _inspect(path: Path, content: bytes) -> None:
    """Raises `ModelError` unless the archive holds one program, plain data, and nothing that loading would execute."""
    import torch

    try:
        # torch's own reader: what is inspected is what will be loaded.
        reader = torch._C.PyTorchFileReader(io.BytesIO(content))
        names = reader.get_all_records()
        is_archive = "archive_format" in names and reader.get_record("archive_format") == b"pt2"
    except Exception:
        # Of several kinds: a half-written file even makes it seek to before the start.
        names, is_archive = [], False
    if not is_archive:
        raise ModelError(f"{path} is not a whole torch.export archive: write it with torch.export.save(program, path)")
    programs = [name for name in names if name.startswith("models/")]
    if programs != [_PROGRAM]:
        raise ModelError(f"{path} must hold one exported program named 'model', not {len(programs)} ({programs[:3]})")
    for name in names:
        if name.startswith("data/aotinductor/"):
            raise ModelError(f"{path} refused: it holds a compiled library ({name}), which loading would execute")
        if name.rpartition("/")[2].startswith(("custom_obj_", "opaque_obj_")):
            raise ModelError(f"{path} refused: it holds a pickled custom object ({name})")
        if name.startswith(("data/weights/", "data/constants/")) and name.endswith(".json"):
            for payload in json.loads(reader.get_record(name))["config"].values():
                if not re.fullmatch(r"(weight|tensor)_\d+", payload["path_name"]):
                    raise ModelError(f"{path} refused: {name} names a record that is not a tensor")
    _inspect_program(path, json.loads(reader.get_record(_PROGRAM)))


def _inspect_program(path: Path, program: dict[str, Any]) -> None:
    if program.get("range_constraints") or program.get("guards_code"):
        raise ModelError(f"{path} has dynamic sizes: export it with static ones (no dynamic_shapes)")

    def walk(node: Any, key: str) -> None:
        if isinstance(node, dict):
            for name, value in node.items():
                if name in ("as_expr", "expr_str"):
                    raise ModelError(f"{path} has dynamic sizes: export it with static ones (no dynamic_shapes)")
                walk(name, "")
                if name not in _FREE_TEXT:
                    walk(value, name)
        elif isinstance(node, list):
            for value in node:
                walk(value, key)
        elif isinstance(node, str):
            pattern = {"in_spec": _TREE, "out_spec": _TREE, "target": _TARGET}.get(key, _PLAIN)
            if not pattern.fullmatch(node) or "__enum__" in node:
                raise ModelError(f"{path} refused: {node[:60]!r} in its program could be executed as code")

    graph_module = dict(program["graph_module"])
    # The signature's "target" is the name of a weight, not an operator.
    walk(graph_module.pop("signature", None), "name")
    walk(graph_module.pop("graph", None), "graph")
    walk(graph_module, "")
