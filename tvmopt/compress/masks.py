"""Which weights stay: masks of 1 (kept) and 0, of a weight's shape and dtype, by method and sparsity.

Unstructured, units and filters are torch.nn.utils.prune's; blocks, N:M patterns and batch-norm scales are here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from tvmopt.compress.methods import Method

if TYPE_CHECKING:
    from torch import Tensor


def masks(
    method: Method, weights: Mapping[str, Tensor], sparsities: Mapping[str, float], scales: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Layer -> its mask.

    weights: layer -> its weight (outputs, inputs, *kernel). sparsities: layer -> share of zeros, in [0, 1). scales:
    convolution -> |gamma| (outputs,) of the batch norm behind it, for filter-bn.
    """
    if method.name == "unstructured-global":
        return _global(weights, sparsities)
    return {name: _mask(method, weights[name], sparsities[name], scales.get(name)) for name in weights}


def _mask(method: Method, weight: Tensor, sparsity: float, scale: Tensor | None) -> Tensor:
    import torch
    from torch.nn.utils import prune

    # torch.nn.utils.prune looks at weights as they lie in memory, which in training is not as they are indexed.
    weight = weight.detach().contiguous()
    ones = torch.ones_like(weight)
    if sparsity == 0:
        return ones
    if method.kind == "unstructured":
        # A count and not a share: torch's share of 0.5 means something else than 1 does.
        return prune.L1Unstructured(round(sparsity * weight.numel())).compute_mask(weight, ones)
    if method.kind == "block":
        return block_mask(weight, sparsity, method.rows, method.columns)
    if method.kind == "pattern":
        return pattern_mask(weight, method.keep, method.of)
    # One output is always left, for a network that can still answer.
    removed = min(round(sparsity * len(weight)), len(weight) - 1)
    if method.detail == "bn":
        assert scale is not None
        shape = (-1, *[1] * (weight.dim() - 1))
        return ones * _largest(scale, len(weight) - removed).view(shape)
    norm = 1 if method.detail == "l1" else 2
    return prune.LnStructured(removed, norm, dim=0).compute_mask(weight, ones)


def _global(weights: Mapping[str, Tensor], sparsities: Mapping[str, float]) -> dict[str, Tensor]:
    """One threshold for all layers: together they have the zeros that their `sparsities` add up to."""
    import torch

    flat = torch.cat([weight.detach().abs().flatten() for weight in weights.values()])
    zeros = round(sum(sparsities[name] * weight.numel() for name, weight in weights.items()))
    kept = _largest(flat, len(flat) - zeros)
    parts = kept.split([weight.numel() for weight in weights.values()])
    return {
        name: part.view_as(weight).to(weight) for (name, weight), part in zip(weights.items(), parts, strict=True)
    }


def block_mask(weight: Tensor, sparsity: float, rows: int, columns: int) -> Tensor:
    """Keeps, of each `rows` consecutive outputs, the same number of blocks: those of the largest L2 norm.

    weight: (outputs, inputs, *kernel), outputs a multiple of `rows` and inputs of `columns`. A block is `rows` outputs
    x `columns` consecutive inputs at one kernel position. At least one block a row is kept.
    """
    outputs, inputs = weight.shape[:2]
    blocks = weight.detach().reshape(outputs // rows, rows, inputs // columns, columns, -1)
    norms = blocks.pow(2).sum((1, 3))
    flat = norms.flatten(1)
    kept = max(1, round((1 - sparsity) * flat.shape[1]))
    mask = _largest(flat, kept).view(len(norms), 1, norms.shape[1], 1, norms.shape[2])
    return mask.expand_as(blocks).reshape(weight.shape).to(weight)


def pattern_mask(weight: Tensor, keep: int, of: int) -> Tensor:
    """Keeps the `keep` largest of each `of` consecutive inputs. weight: (outputs, inputs, *kernel), of | inputs."""
    # Inputs last, as the hardware that knows 2:4 reads them.
    last = weight.detach().abs().movedim(1, -1)
    mask = _largest(last.reshape(-1, of), keep).view(last.shape)
    return mask.movedim(-1, 1).to(weight)


def _largest(values: Tensor, count: int) -> Tensor:
    """1.0 at the `count` largest along the last axis, 0.0 elsewhere; exactly so many, also among equals."""
    import torch

    chosen = values.topk(count, dim=-1).indices
    return torch.zeros(values.shape, device=values.device).scatter_(-1, chosen, 1.0)
