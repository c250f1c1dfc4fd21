"""torch.compile on a GPU, weights frozen, launches captured in a CUDA graph ("reduce-overhead")."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from . import Prepared
from .cuda import prepare_module

if TYPE_CHECKING:
    from tvmopt.model import Model


def prepare(model: Model, threads: int, mode: str = "reduce-overhead") -> Prepared:
    """Compiles on the example inputs; outputs are copied, because a CUDA graph writes the same memory every time."""
    import torch._inductor.config as settings

    settings.freezing = True
    settings.force_disable_caches = True
    made = prepare_module(
        model, threads, lambda module: torch.compile(module, dynamic=False, mode=mode), channels_last=True
    )

    def copied(outputs: object) -> list[torch.Tensor]:
        from tvmopt.runtime.verify import flatten

        return [output.clone() for output in flatten(outputs)]  # type: ignore[attr-defined]

    return Prepared(made.run, made.to_native, copied, made.size_bytes)
