"""PyTorch as it comes, on a GPU: eager mode, cuDNN and cuBLAS underneath."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import Prepared
from .cuda import prepare_module

if TYPE_CHECKING:
    from tvmopt.model import Model


def prepare(model: Model, threads: int) -> Prepared:
    """The module itself."""
    return prepare_module(model, threads)
