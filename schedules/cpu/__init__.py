"""Rules for CPUs, from the most special to the most general: the first that does not decline schedules a kernel."""

from . import batch_matmul, conv2d_depthwise, conv2d_direct, conv2d_gemm, dense, fallback, pointwise

RULES = [
    ("conv2d_direct", 1, conv2d_direct.rule),
    ("conv2d_pointwise", 1, pointwise.rule),
    ("conv2d_gemm", 1, conv2d_gemm.rule),
    ("conv2d_depthwise", 1, conv2d_depthwise.rule),
    ("dense", 1, dense.rule),
    ("batch_matmul", 1, batch_matmul.rule),
    ("fallback", 1, fallback.rule),
]
