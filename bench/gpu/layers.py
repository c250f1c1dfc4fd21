"""Single layers as models, for `python -m bench bench/gpu/layers.py:NAME --target cuda`: against cuBLAS and cuDNN."""

from __future__ import annotations

from typing import Any

import torch


def gemm_4096() -> tuple[Any, tuple[torch.Tensor]]:
    """A product of two 4096 x 4096 matrices."""
    return torch.nn.Linear(4096, 4096, bias=False), (torch.randn(4096, 4096),)


def gemm_1024() -> tuple[Any, tuple[torch.Tensor]]:
    """A product of two 1024 x 1024 matrices."""
    return torch.nn.Linear(1024, 1024, bias=False), (torch.randn(1024, 1024),)


def conv_64_56() -> tuple[Any, tuple[torch.Tensor]]:
    """3x3 with 64 channels on 56x56, batch 32."""
    return torch.nn.Conv2d(64, 64, 3, padding=1), (torch.randn(32, 64, 56, 56),)


def conv_256_14() -> tuple[Any, tuple[torch.Tensor]]:
    """3x3 with 256 channels on 14x14, batch 32."""
    return torch.nn.Conv2d(256, 256, 3, padding=1), (torch.randn(32, 256, 14, 14),)


def depthwise_96_56() -> tuple[Any, tuple[torch.Tensor]]:
    """Depthwise 3x3 with 96 channels on 56x56, batch 32."""
    return torch.nn.Conv2d(96, 96, 3, padding=1, groups=96), (torch.randn(32, 96, 56, 56),)
