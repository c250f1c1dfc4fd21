"""WHAT is computed: TE definitions of the operators tvmopt lowers itself, one file an operator and strategy.

How they are computed is in `schedules/`. The block that does an operator's arithmetic, its *anchor*, bears the
operator's name (`conv2d_direct`, `dense`, ...) and carries the number of useful operations as an annotation.
"""

FLOPS_ATTR = "tvmopt.flops"
"""Annotation of an anchor block: multiplications and additions of the operator as the user wrote it."""

ANCHORS = (
    "conv2d_direct", "conv2d_pointwise", "conv2d_gemm", "conv2d_winograd", "conv2d_depthwise", "dense", "batch_matmul",
)  # fmt: skip
"""The names of anchor blocks, which schedule rules look for."""
