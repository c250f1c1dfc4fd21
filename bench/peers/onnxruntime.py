"""ONNX Runtime on the CPU, from the model's ONNX export, all graph optimisations on."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import Prepared

if TYPE_CHECKING:
    from tvmopt.model import Model


def prepare(model: Model, threads: int) -> Prepared:
    """Exports to ONNX, then loads the file as a user would; numpy arrays in and out, as its Python API has them."""
    import torch

    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory(prefix="tvmopt-onnx-") as directory:
        path = Path(directory) / "model.onnx"
        export(model, path)
        session = open_session(path, threads)
        size = sum(file.stat().st_size for file in Path(directory).iterdir())
    input_names = [node.name for node in session.get_inputs()]

    def run(*arrays: Any) -> Any:
        return session.run(None, dict(zip(input_names, arrays, strict=True)))

    return Prepared(run, _to_numpy, _to_torch, size)


def export(model: Model, path: Path) -> None:
    """Writes the model's ONNX; weights of large models in files beside `path`."""
    import torch

    with torch.no_grad():
        torch.onnx.export(model.module, tuple(model.example_inputs), str(path), dynamo=True, verbose=False)


def open_session(path: Path, threads: int) -> Any:
    """An InferenceSession of `threads` threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _to_numpy(inputs: Sequence[Any]) -> Sequence[Any]:
    return [x.contiguous().numpy() for x in inputs]


def _to_torch(outputs: Any) -> Any:
    import torch

    return [torch.from_numpy(array) for array in outputs]
