"""OpenVINO on the CPU, tuned for latency, computing in the model's own precision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from . import Prepared, module_bytes

if TYPE_CHECKING:
    from tvmopt.model import Model

# OpenVINO otherwise takes bf16 wherever the CPU has it, and would be compared with fp32.
_PRECISION = {"torch.float32": "f32", "torch.float16": "f16", "torch.bfloat16": "bf16"}


def prepare(model: Model, threads: int) -> Prepared:
    """Converts and compiles; inputs and outputs are shared with numpy, so that no copies are timed."""
    import openvino

    torch.set_num_threads(threads)
    with torch.no_grad():
        exported = model.exported or torch.export.export(model.module, tuple(model.example_inputs))
        converted = openvino.convert_model(exported)
    dtype = next((str(p.dtype) for p in model.module.parameters()), "torch.float32")
    compiled = openvino.Core().compile_model(
        converted,
        "CPU",
        {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "INFERENCE_PRECISION_HINT": _PRECISION.get(dtype, "f32"),
        },
    )
    request = compiled.create_infer_request()

    def run(*arrays: Any) -> Any:
        return request.infer(arrays, share_inputs=True, share_outputs=True)

    def to_torch(outputs: Any) -> Any:
        # Shared outputs are overwritten by the next call.
        return [torch.from_numpy(outputs[port].copy()) for port in compiled.outputs]

    return Prepared(run, _to_numpy, to_torch, module_bytes(model.module))


def _to_numpy(inputs: Sequence[Any]) -> Sequence[Any]:
    return [x.contiguous().numpy() for x in inputs]
