"""How big a network is: parameters, bytes, operations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tvmopt.compress.size import compressed_bytes

if TYPE_CHECKING:
    from torch import nn


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


def flops(module: nn.Module, inputs: Sequence[Any]) -> int | None:
    """Operations of convolutions, matrix products and attention (a multiply-add is two); None where uncountable."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    try:
        # The CPU's own operator for attention is one that the counter does not know.
        with counter, attention_by_layers(), sdpa_kernel(SDPBackend.MATH), torch.no_grad():
            module(*inputs)
    except Exception:
        # The counter hooks into torch's dispatch, which some exported programs do not take; the figure is only shown.
        return None
    return int(counter.get_total_flops())


@contextmanager
def attention_by_layers() -> Iterator[None]:
    """Where multi-head attention runs layer by layer, and not in eval mode's one operator, which hides them."""
    import torch

    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
