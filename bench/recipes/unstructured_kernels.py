"""Kernels of unstructured weights over layers of ResNet-50 and three products, beside every dense strategy of the same.

As sparse_kernels.py, of which this is the table; each layer at each share of zeros by the faster of its two sparse
kernels, that of single weights or that of blocks, which hold few zeros of a pattern like this.
"""

from __future__ import annotations

from . import Settings
from .sparse_kernels import PRODUCTS, compare

SPARSITIES = (0.7, 0.8, 0.9, 0.95, 0.99)
# A convolution of every kind and size of image.
CONVOLUTIONS = (
    "1x64x56x56,64,1", "1x256x56x56,64,1", "1x64x56x56,64,3,1,1", "1x128x56x56,128,3,2,1", "1x512x28x28,128,1",
    "1x128x28x28,128,3,1,1", "1x1024x14x14,256,1", "1x256x14x14,256,3,1,1", "1x512x7x7,2048,1", "1x512x7x7,512,3,1,1",
)  # fmt: skip


def run(settings: Settings) -> int:
    """Measures layer by layer; raises as `sparse_kernels.run`."""
    layers = [("conv2d", shape) for shape in CONVOLUTIONS] + [("gemm", shape) for shape in PRODUCTS]
    chosen = [layers[2], layers[-2]] if settings.quick else layers
    return compare(chosen, (0.8, 0.95) if settings.quick else SPARSITIES, settings, "unstructured")
