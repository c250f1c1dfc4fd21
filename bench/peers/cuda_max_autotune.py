"""torch.compile on a GPU with "max-autotune": Triton's products and convolutions tried against cuBLAS and cuDNN."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import Prepared, cuda_inductor

if TYPE_CHECKING:
    from tvmopt.model import Model


def prepare(model: Model, threads: int) -> Prepared:
    """As Inductor, after trying the alternatives of every product and convolution."""
    return cuda_inductor.prepare(model, threads, mode="max-autotune")
