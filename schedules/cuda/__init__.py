"""Rules for NVIDIA GPUs, from the most special to the most general: the first that does not decline schedules a kernel.

What none of them takes gets dlight's default (tvmopt/graph).
"""

from . import (
    columns,
    depthwise,
    elementwise,
    pool,
    product,
    rows,
    sparse,
    split_k,
    tensor_core,
    ways,
    wgmma,
    winograd,
)

RULES = [
    ("wgmma", 1, wgmma.rule),
    ("tensor_core", 2, tensor_core.rule),
    ("split_k", 2, ways.split_k),
    ("product", 3, ways.tiles),
    ("winograd", 1, winograd.rule),
    ("sparse", 3, sparse.rule),
    ("depthwise", 1, depthwise.rule),
    ("pool", 1, pool.rule),
    ("rows", 1, rows.rule),
    ("columns", 1, columns.rule),
    ("elementwise", 1, elementwise.rule),
]

# The steps of each rule, one after the other (tests/cuda build and run every rung).
LADDERS = {
    "wgmma": wgmma.LADDER,
    "tensor_core": tensor_core.LADDER,
    "split_k": split_k.LADDER,
    "product": product.LADDER,
    "winograd": winograd.LADDER,
    "sparse": sparse.LADDER,
    "depthwise": depthwise.LADDER,
    "pool": pool.LADDER,
    "rows": rows.LADDER,
    "columns": columns.LADDER,
    "elementwise": elementwise.LADDER,
}

# Of kernels that no schedule primitive leads to: a scheduled function to the one that takes its place, None for others.
WRITTEN = [wgmma.written]
