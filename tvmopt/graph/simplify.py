"""Phase 1: what inference does not need is folded away (batch norms, constants, unused results)."""

from __future__ import annotations

import tvm
from tvm import relax

from tvmopt.graph.fold import Fold


def simplify_passes() -> list[tvm.transform.Pass]:
    """Our own folding first; TVM's passes then find what is left, which is rarely anything."""
    transform = relax.transform
    return [
        transform.CanonicalizeBindings(),
        Fold(),
        transform.DeadCodeElimination(["main"]),
        transform.DecomposeOpsForInference(),
        transform.CanonicalizeBindings(),
        transform.FoldConstant(),
        transform.DeadCodeElimination(["main"]),
    ]
