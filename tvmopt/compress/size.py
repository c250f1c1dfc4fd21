"""How big a network is once it is pruned: parameters, zeros, bytes in several forms."""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tvmopt.compress.layers import layers_with_weights

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Size:
    """Of all parameters and buffers. dense_bytes: as they are; compressed_bytes: each in the smallest of the sparse
    forms of `compressed_bytes`; zipped_bytes: their values deflated (zlib, level 9), as a zipped file holds them."""

    params: int
    nonzero: int
    dense_bytes: int
    compressed_bytes: int
    zipped_bytes: int

    @property
    def sparsity(self) -> float:
        """Share of zeros among all parameters, layers left alone included."""
        return 1 - self.nonzero / max(self.params, 1)


@dataclass(frozen=True)
class Layer:
    """One weight: the name of its layer, or its own where it is not the weight of one, its shape, number of values, and
    how many are not zero."""

    name: str
    shape: tuple[int, ...]
    params: int
    nonzero: int

    @property
    def sparsity(self) -> float:
        """Share of zeros in 0..1."""
        return 1 - self.nonzero / max(self.params, 1)


def size_of(module: nn.Module) -> Size:
    """The size of a network without masks."""
    import torch

    parameters = list(module.parameters())
    stored = [tensor.detach().cpu() for tensor in (*parameters, *module.buffers())]
    raw = b"".join(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes() for tensor in stored)
    return Size(
        sum(p.numel() for p in parameters),
        sum(int(p.count_nonzero()) for p in parameters),
        len(raw),
        sum(compressed_bytes(tensor) for tensor in stored),
        len(zlib.compress(raw, 9)),
    )


def layer_sizes(module: nn.Module) -> list[Layer]:
    """Every convolution's and linear layer's weight, and every other parameter of two dimensions or more, in order.

    The others are what no method prunes, such as the projections of attention layers and embeddings.
    """
    layers = layers_with_weights(module)
    known = {id(layer.weight) for layer in layers.values()}
    found: dict[str, Tensor] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        owner, _, own = name.rpartition(".")
        if own == "weight" and owner in layers:
            found[owner] = parameter
        elif parameter.dim() >= 2 and id(parameter) not in known:
            known.add(id(parameter))
            found[name.removesuffix(".weight")] = parameter
    return [
        Layer(name, tuple(weight.shape), weight.numel(), int(weight.count_nonzero())) for name, weight in found.items()
    ]


def compressed_bytes(tensor: Tensor) -> int:
    """Bytes of a tensor in the smallest of three forms.

    Dense; a bitmap of the non-zeros (one bit a value) and their values; or row pointers (int32), column indices
    (int16 up to 65,536 columns, else int32) and values, rows being the first dimension.
    """
    item = tensor.element_size()
    count, nonzero = tensor.numel(), int(tensor.count_nonzero())
    rows = tensor.shape[0] if tensor.dim() else 1
    index = 2 if count <= rows * 65536 else 4
    bitmap = math.ceil(count / 8) + nonzero * item
    csr = (rows + 1) * 4 + nonzero * (item + index)
    return min(count * item, bitmap, csr)
