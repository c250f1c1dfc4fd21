"""What a user would run instead. One file a peer, each with one function:

    prepare(model, threads) -> Prepared      built, with `threads` threads, not yet warmed up

A peer gets the settings its own documentation recommends for the lowest latency, and nothing that slows it down.
Its inputs are converted to its own kind before timing, and its outputs back after it: the time is the peer's alone.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tvmopt.errors import UsageError
from tvmopt.pt2 import duplicate

if TYPE_CHECKING:
    from tvmopt.model import Model


@dataclass(frozen=True)
class Prepared:
    """A contender ready to run.

    `to_native` turns the model's input tensors into what `run` takes, `run(*native)` is what is timed, and
    `to_torch` turns what it returned into torch tensors (copies, where `run` reuses its outputs) structured like
    the model's own outputs or flat in the same order. `size_bytes` is what would be shipped: weights and code.
    """

    run: Callable[..., Any]
    to_native: Callable[[Sequence[Any]], Sequence[Any]]
    to_torch: Callable[[Any], Any]
    size_bytes: int | None = None


# Name -> (the file here, the packages it needs beside torch).
PEERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "torch": ("torch_eager", ()),
    "torch-channels-last": ("torch_channels_last", ()),
    "inductor": ("inductor", ()),
    "onnxruntime": ("onnxruntime", ("onnxruntime", "onnx", "onnxscript")),
    "openvino": ("openvino", ("openvino",)),
}
DEFAULT = ("torch", "inductor", "onnxruntime", "openvino")
# Those on a GPU, all of them measured by default.
GPU_PEERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "torch": ("cuda_eager", ()),
    "torch-channels-last": ("cuda_channels_last", ()),
    "inductor": ("cuda_inductor", ("triton",)),
    "inductor-max-autotune": ("cuda_max_autotune", ("triton",)),
}


def installed(wanted: Sequence[str], kind: str = "llvm") -> tuple[list[str], list[str]]:
    """The wanted peers that can be used, and one line about each that cannot; UsageError for an unknown name.

    On a GPU (`kind` is "cuda") those that are wanted by default are that machine's.
    """
    if kind == "cuda":
        return _installed(tuple(GPU_PEERS) if tuple(wanted) == DEFAULT else wanted, GPU_PEERS)
    return _installed(wanted, PEERS)


def _installed(wanted: Sequence[str], known: dict[str, tuple[str, tuple[str, ...]]]) -> tuple[list[str], list[str]]:
    here: list[str] = []
    skipped: list[str] = []
    for name in wanted:
        if name not in known:
            raise UsageError(f"--peers {name}: unknown; choose from {', '.join(known)}")
        missing = [package for package in known[name][1] if importlib.util.find_spec(package) is None]
        if missing:
            skipped.append(f'{name}: skipped, {", ".join(missing)} not installed (pip install "tvmopt[peers]")')
        else:
            here.append(name)
    return here, skipped


def load(name: str, kind: str = "llvm") -> None:
    """Imports what the peer `name` needs, without building anything."""
    file, packages = (GPU_PEERS if kind == "cuda" else PEERS)[name]
    for package in (f".{file}", *packages):
        importlib.import_module(package, __package__)


def prepare(name: str, model: Model, threads: int, kind: str = "llvm") -> Prepared:
    """Builds the peer `name` for `model`."""
    file, _ = (GPU_PEERS if kind == "cuda" else PEERS)[name]
    module = importlib.import_module(f".{file}", __package__)
    return module.prepare(model, threads)  # type: ignore[no-any-return]


def in_dtype(model: Model) -> Model:
    """The model with its weights and example inputs in the dtype it is to be computed in, as a peer takes it."""
    if model.dtype == "float32":
        return model

    import torch

    module = duplicate(model.module).to(getattr(torch, model.dtype))
    inputs = tuple(cast(model.example_inputs, model.dtype))
    return dataclasses.replace(model, module=module, example_inputs=inputs, exported=None)


def cast(inputs: Sequence[Any], dtype: str) -> list[Any]:
    """Floating tensors in `dtype`, others as they are."""
    import torch

    return [x.to(getattr(torch, dtype)) if x.dtype.is_floating_point else x for x in inputs]


def module_bytes(module: Any) -> int:
    """Bytes of a module's parameters and buffers."""
    return sum(t.numel() * t.element_size() for t in [*module.parameters(), *module.buffers()])
