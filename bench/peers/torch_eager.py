"""PyTorch as it comes: eager mode, NCHW."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from . import Prepared, module_bytes

if TYPE_CHECKING:
    from tvmopt.model import Model


def prepare(model: Model, threads: int) -> Prepared:
    """The module itself, under inference mode, which is faster than no_grad."""
    torch.set_num_threads(threads)
    module = model.module

    def run(*inputs: Any) -> Any:
        with torch.inference_mode():
            return module(*inputs)

    return Prepared(run, list, lambda outputs: outputs, module_bytes(module))
