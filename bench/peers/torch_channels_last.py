"""PyTorch eager with weights and images in channels-last memory, which PyTorch recommends for convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from . import Prepared, module_bytes

if TYPE_CHECKING:
    from tvmopt.model import Model


def prepare(model: Model, threads: int) -> Prepared:
    """The module in channels-last memory; its inputs are converted before timing."""
    torch.set_num_threads(threads)
    module = model.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def run(*inputs: Any) -> Any:
        with torch.inference_mode():
            return module(*inputs)

    return Prepared(run, _channels_last, lambda outputs: outputs, module_bytes(module))


def _channels_last(inputs: Sequence[Any]) -> Sequence[Any]:
    return [x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x for x in inputs]
