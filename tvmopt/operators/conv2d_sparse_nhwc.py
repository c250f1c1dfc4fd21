"""Block-sparse 1x1 convolution for GPUs, images as NHWC: a block-sparse product over pixels (dense_sparse.py).

A convolution with a stride reads every so many pixels; nothing else tells it from one without.
"""

from __future__ import annotations

import numpy as np
from tvm import te

from tvmopt.operators.conv2d import Conv2d
from tvmopt.operators.dense_sparse import dense_sparse, pack_sparse_dense_weight
from tvmopt.operators.sparse import Pattern

# Output channels of a block, a convolution's and a dense layer's: as pruning zeroes them (compress/methods.py), and
# four 128-bit loads of weights.
SPARSE_BLOCK = 16


def fits_sparse_nhwc(conv: Conv2d, dtype: str) -> bool:
    """Whether the strategy is for this convolution: 1x1, of any stride, not padded, of one group; fp32.

    In half precision the dense product is tensor cores' work, which single blocks are too small for.
    """
    return conv.kernel == (1, 1) and not any(conv.padding) and conv.groups == 1 and dtype == "float32"


def pack_sparse_nhwc_weight(weight: np.ndarray) -> Pattern:
    """Weights (O, I, 1, 1) as the pattern of `conv2d_sparse_nhwc`: an offset is an input channel."""
    return pack_sparse_dense_weight(weight[:, :, 0, 0].T, SPARSE_BLOCK)


def conv2d_sparse_nhwc(data: te.Tensor, values: te.Tensor, offsets: te.Tensor, conv: Conv2d) -> te.Tensor:
    """(N, H, W, I) times the kept blocks (O/block, kept, group, block) -> (N, OH, OW, O).

    Stages: `picked` (N, OH, OW, I), where there is a stride, then `dense_sparse`'s, with pixels for rows.
    """
    down, across = conv.strides
    if conv.strides != (1, 1):
        shape = (conv.batch, *conv.out_size, conv.in_channels)
        data = te.compute(shape, lambda n, y, x, c: data[n, y * down, x * across, c], name="picked")
    return dense_sparse(data, values, offsets, columns=conv.out_channels, geometry=conv.geometry)
