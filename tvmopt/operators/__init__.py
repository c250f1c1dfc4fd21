"""WHAT is computed: TE definitions of the operators tvmopt lowers itself, one file an operator and strategy.

How they are computed is in `schedules/`. The block that does an operator's arithmetic, its *anchor*, bears the
operator's name (`conv2d_direct`, `dense`, ...) and carries the number of useful operations as an annotation.
"""

FLOPS_ATTR = "tvmopt.flops"
"""Annotation of an anchor block: multiplications and additions of the operator as the user wrote it."""

OFFSETS_ATTR = "tvmopt.offsets"
"""Annotation of an anchor block that is given offsets: the grid they are of, as `count x step, ...` of its axes."""

GEOMETRY_ATTR = "tvmopt.geometry"
"""Annotation of the anchor block of a convolution or a sparse product: its sizes as text (`Conv2d.geometry`,
`Dense.geometry`); what is kept of the weights is among them where the kernel is sparse."""

GPU_PRODUCTS = ("gemm", "batch_gemm", "conv2d_implicit_gemm")
"""Anchors that are matrix products on a GPU, in half precision the work of its tensor cores."""

ANCHORS = (
    "conv2d_direct", "conv2d_pointwise", "conv2d_gemm", "conv2d_winograd", "conv2d_depthwise", "dense", "batch_matmul",
    "softmax", "layer_norm", "attention",
    "conv2d_sparse", "conv2d_sparse_pointwise", "dense_sparse",
    "conv2d_unstructured", "dense_unstructured", "dense_unstructured_rows",
    # For GPUs.
    *GPU_PRODUCTS, "conv2d_depthwise_nhwc", "conv2d_winograd_nhwc",
)  # fmt: skip
"""The names of anchor blocks, which schedule rules look for."""
