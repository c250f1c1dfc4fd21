"""torch.compile with Inductor, weights frozen into the code: PyTorch's own compiler at its best for inference."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

# Before torch is imported: with worker processes, Inductor would go on starting them beside the others' turns.
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")

import torch

from . import Prepared, module_bytes

if TYPE_CHECKING:
    from tvmopt.model import Model


def prepare(model: Model, threads: int) -> Prepared:
    """Compiles on the example inputs; freezing needs no_grad (inference mode keeps it from happening)."""
    import torch._inductor.config as settings

    torch.set_num_threads(threads)
    # Freezing folds constants, packs weights for oneDNN and chooses channels-last where that pays.
    settings.freezing = True
    # A cached artifact of an earlier run would hide the compile time.
    settings.force_disable_caches = True
    module = model.module
    compiled = torch.compile(module, dynamic=False)

    def run(*inputs: Any) -> Any:
        with torch.no_grad():
            return compiled(*inputs)

    run(*model.example_inputs)
    return Prepared(run, list, lambda outputs: outputs, module_bytes(module))
