"""Phase 1: what inference does not need is folded away (batch norms, constants, unused results)."""

from __future__ import annotations

import tvm
from tvm import relax


def simplify_passes() -> list[tvm.transform.Pass]:
    """Batch norm into the convolution before it, what is left of it into arithmetic, constants evaluated."""
    transform = relax.transform
    return [
        transform.CanonicalizeBindings(),
        transform.FoldBatchnormToConv2D(),
        transform.DecomposeOpsForInference(),
        transform.CanonicalizeBindings(),
        transform.FoldConstant(),
        transform.DeadCodeElimination(["main"]),
    ]
