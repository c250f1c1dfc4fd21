"""How big a network is: parameters, bytes, operations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn


def sizes(module: nn.Module, inputs: Sequence[Any]) -> dict[str, int | None]:
    """`params`, `nonzero_params`, `size_bytes` (parameters and buffers), `size_compressed_bytes`, `flops`."""
    parameters = list(module.parameters())
    stored = [*parameters, *module.buffers()]
    return {
        "params": sum(p.numel() for p in parameters),
        "nonzero_params": sum(int(p.count_nonzero()) for p in parameters),
        "size_bytes": sum(t.numel() * t.element_size() for t in stored),
        "size_compressed_bytes": sum(compressed_bytes(t) for t in stored),
        "flops": flops(module, inputs),
    }


def compressed_bytes(tensor: Tensor) -> int:
    """Bytes of a tensor in the smallest of three forms.

    Dense; a bitmap of the non-zeros (one bit a value) and their values; or row pointers (int32), column indices
    (int16 up to 65,536 columns, else int32) and values, rows being the first dimension.
    """
    import math

    item = tensor.element_size()
    count, nonzero = tensor.numel(), int(tensor.count_nonzero())
    rows = tensor.shape[0] if tensor.dim() else 1
    index = 2 if count <= rows * 65536 else 4
    bitmap = math.ceil(count / 8) + nonzero * item
    csr = (rows + 1) * 4 + nonzero * (item + index)
    return min(count * item, bitmap, csr)


def flops(module: nn.Module, inputs: Sequence[Any]) -> int | None:
    """Operations of convolutions, matrix products and attention (a multiply-add is two); None where uncountable."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    try:
        with counter, torch.no_grad():
            module(*inputs)
    except Exception:
        # The counter hooks into torch's dispatch, which some exported programs do not take; the figure is only shown.
        return None
    return int(counter.get_total_flops())
