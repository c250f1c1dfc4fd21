"""PyTorch eager on a GPU with weights and images in channels-last memory, which tensor cores take without copies."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import Prepared
from .cuda import prepare_module

if TYPE_CHECKING:
    from tvmopt.model import Model


def prepare(model: Model, threads: int) -> Prepared:
    """The module in channels-last memory."""
    return prepare_module(model, threads, channels_last=True)
