"""Rules for CPUs, from the most special to the most general: the first that does not decline schedules a kernel."""

from . import (
    attention,
    batch_matmul,
    conv2d_depthwise,
    conv2d_direct,
    conv2d_gemm,
    conv2d_sparse,
    conv2d_winograd,
    dense,
    dense_sparse,
    fallback,
    pointwise,
    pointwise_sparse,
    pool,
    product,
    rows,
    sparse_nest,
)

RULES = [
    ("conv2d_direct", 4, conv2d_direct.rule),
    ("conv2d_pointwise", 3, pointwise.rule),
    ("conv2d_gemm", 3, conv2d_gemm.rule),
    ("conv2d_sparse", 1, conv2d_sparse.rule),
    ("conv2d_sparse_pointwise", 1, pointwise_sparse.rule),
    ("conv2d_winograd", 1, conv2d_winograd.rule),
    ("conv2d_depthwise", 3, conv2d_depthwise.rule),
    ("dense", 3, dense.rule),
    ("dense_sparse", 2, dense_sparse.rule),
    ("batch_matmul", 4, batch_matmul.rule),
    ("attention", 2, attention.rule),
    ("rows", 2, rows.rule),
    ("pool", 2, pool.rule),
    ("fallback", 2, fallback.rule),
]

# What each rule's steps buy, one after the other (python -m bench.kernels --ladder).
LADDERS = {
    "conv2d_direct": conv2d_direct.LADDER,
    "conv2d_pointwise": product.LADDER,
    "conv2d_gemm": product.LADDER,
    "conv2d_winograd": conv2d_winograd.LADDER,
    "conv2d_depthwise": conv2d_depthwise.LADDER,
    "conv2d_sparse": conv2d_sparse.LADDER,
    "conv2d_sparse_pointwise": sparse_nest.LADDER,
    "dense_sparse": sparse_nest.LADDER,
    "dense": product.LADDER,
    "batch_matmul": batch_matmul.LADDER,
    "attention": attention.LADDER,
    "rows": rows.LADDER,
    "pool": pool.LADDER,
}
