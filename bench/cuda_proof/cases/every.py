"""The cases of all rules: shapes that networks have, and boundary values."""

from __future__ import annotations

import random
from collections.abc import Callable

from . import columns, depthwise, elementwise, pool, product, rows, sparse, split_k, tensor_core, wgmma, winograd
from .base import Case

# By the rule they are meant for; which rule takes a shape is the rules' own decision.
CASES: dict[str, tuple[Callable[[], list[Case]], Callable[[], list[Case]]]] = {
    "wgmma": (wgmma.typical, wgmma.boundary),
    "tensor_core": (tensor_core.typical, tensor_core.boundary),
    "split_k": (split_k.typical, split_k.boundary),
    "product": (product.typical, product.boundary),
    "winograd": (winograd.typical, winograd.boundary),
    "sparse": (sparse.typical, sparse.boundary),
    "depthwise": (depthwise.typical, depthwise.boundary),
    "pool": (pool.typical, pool.boundary),
    "rows": (rows.typical, rows.boundary),
    "columns": (columns.typical, columns.boundary),
    "elementwise": (elementwise.typical, elementwise.boundary),
}


def chosen(rule: str, limit: int | None) -> list[Case]:
    """The cases of a rule: all, or `limit`, half of them networks' and a seeded sample of the others."""
    typical, boundary = (make() for make in CASES[rule])
    if limit is None:
        return typical + boundary
    kept = typical[: -(-limit // 2)]
    left = min(limit - len(kept), len(boundary))
    return kept + random.Random(0).sample(boundary, left)
