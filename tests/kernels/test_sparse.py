"""Block-sparse convolutions and products over boundary shapes: every kernel against the masked layer in PyTorch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bench.covering import Row, covering
from tests.kernels.support import avx2, compiled, failures, side_by_side, some_or_all
from tvmopt.graph.pipeline import lower_model
from tvmopt.machine import detect
from tvmopt.model import Model
from tvmopt.operators.conv2d import Conv2d
from tvmopt.operators.conv2d_sparse import pack_sparse_weight
from tvmopt.operators.dense import pack_dense_weight
from tvmopt.operators.dense_sparse import pack_sparse_dense_weight
from tvmopt.operators.sparse import compress

STRATEGY = {"conv2d": "sparse", "dense": "sparse"}
FACTORS: dict[str, list[Any]] = {
    "in": [3, 15, 16, 17, 48],
    "out": [1, 16, 17, 48],
    "height": [3, 7, 8, 13, 29],
    "width": [5, 7, 14, 31],
    "kernel": [1, 3, 5],
    "stride": [1, 2],
    "padding": [0, 1, 2],
    "dilation": [1, 2],
    "batch": [1, 3],
    "zeros": ["blocks", "quads", "unstructured", "rows", "all", "none"],
    "after": ["nothing", "relu", "residual"],
}
PER_NETWORK = 10


class Residual(nn.Module):
    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        return torch.relu(y + y.mean((2, 3), keepdim=True))


def mask(shape: tuple[int, ...], zeros: str, seed: int = 0) -> torch.Tensor:
    """What is kept of a weight (O, I, ...): blocks of 16 outputs by 1 or 4 inputs, single values, whole rows, ..."""
    out, channels, *window = shape
    generator = torch.Generator().manual_seed(seed)
    groups = -(-channels // 4) if zeros == "quads" else channels
    kept = torch.rand((-(-out // 16), groups, *window), generator=generator) > 0.8
    if zeros == "rows":  # every other row of blocks is empty, the rest unequal
        kept[::2] = False
    if zeros in ("all", "none"):
        kept[:] = zeros == "none"
    blocks = kept.repeat_interleave(16, 0)[:out]
    if zeros == "quads":
        blocks = blocks.repeat_interleave(4, 1)[:, :channels]
    return torch.rand(shape, generator=generator) > 0.95 if zeros == "unstructured" else blocks


def masked(model: Model, zeros: list[str], seed: int = 0) -> Model:
    """`model`, a network of layers side by side, with the weights behind each layer's first masked."""
    for index, (layer, kind) in enumerate(zip(model.module.layers, zeros, strict=True)):  # type: ignore[arg-type, union-attr]
        weights = [m.weight for m in layer.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        with torch.no_grad():
            weights[-1].mul_(mask(tuple(weights[-1].shape), kind, seed + index))
    return model


def _layer(row: Row) -> nn.Module:
    # The first convolution brings the image into blocks, which this strategy needs.
    conv = nn.Sequential(
        nn.Conv2d(3, row["in"], 1),
        nn.Conv2d(row["in"], row["out"], row["kernel"], row["stride"], row["padding"], row["dilation"]),
    )
    return {"nothing": conv, "relu": nn.Sequential(conv, nn.ReLU()), "residual": Residual(conv)}[row["after"]]


def _valid(row: Row) -> bool:
    span = (row["kernel"] - 1) * row["dilation"] + 1
    return span <= min(row["height"], row["width"]) + 2 * row["padding"] and row["padding"] <= row["kernel"]


def _run(rows: list[Row], machine: Any = None) -> None:
    wrong: list[str] = []
    for start in range(0, len(rows), PER_NETWORK):
        some = rows[start : start + PER_NETWORK]
        shapes = [(row["batch"], 3, row["height"], row["width"]) for row in some]
        model = masked(side_by_side([_layer(row) for row in some], shapes), [row["zeros"] for row in some], start)
        built, lowered = compiled(model, machine, STRATEGY)
        assert any(kernel.op.startswith("conv2d_sparse") for kernel in lowered.kernels)
        wrong += failures(model, built, some, STRATEGY)
    assert not wrong, "\n".join(wrong)


@some_or_all
def test_every_pair_of_boundary_values(count: int | None) -> None:
    _run(covering(FACTORS, 2, _valid)[:count])


@pytest.mark.slow
def test_pairs_on_avx2() -> None:
    if detect().isa not in ("avx2", "avx512"):
        pytest.skip("this CPU has no AVX2")
    _run(covering(FACTORS, 2, _valid, seed=1)[:20], avx2(detect()))


def test_dense() -> None:
    sizes = [
        (1, 512, 1000), (1, 1, 1), (2, 17, 16), (3, 31, 15), (7, 64, 33), (29, 100, 32), (64, 64, 64), (57, 33, 17),
        (32, 256, 128), (131, 96, 48),
    ]  # fmt: skip
    layers = [nn.Linear(k, n) for _, k, n in sizes] + [nn.Linear(24, 40, bias=False), nn.Linear(16, 16)]
    shapes = [(m, k) for m, k, _ in sizes] + [(2, 13, 24), (3, 16)]
    kinds = ["blocks", "quads", "unstructured", "rows", "all", "none"] * 2
    model = masked(side_by_side(layers, shapes), kinds)
    built, lowered = compiled(model, None, STRATEGY)
    assert sum(kernel.op == "dense_sparse" for kernel in lowered.kernels) == len(layers)
    assert not failures(model, built, list(zip(shapes, kinds, strict=True)), STRATEGY)


def test_patterns_share_a_kernel() -> None:
    """Shape and blocks a row make a kernel, and so a tuning record; which blocks they are is data."""

    def kernels(seed: int, kept: int) -> list[str]:
        layers = [nn.Sequential(nn.Conv2d(3, 32, 1), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU()), nn.Linear(64, 32)]
        model = side_by_side(layers, [(1, 3, 9, 9), (1, 64)])
        order = torch.rand((2, 64 * 9), generator=torch.Generator().manual_seed(seed)).argsort(1)
        for layer in (layers[0][1], layers[1]):  # type: ignore[index]
            weight = layer.weight
            elements = weight[0].numel()
            rows = torch.stack([row[row < elements] for row in order])[:, :kept]
            with torch.no_grad():
                weight.mul_(torch.zeros(2, elements).scatter(1, rows, 1.0).repeat_interleave(16, 0).view_as(weight))
        lowered = lower_model(model, detect(), STRATEGY).kernels
        return [kernel.key for kernel in lowered if "sparse" in kernel.op]

    first, second, denser = kernels(0, 9), kernels(1, 9), kernels(0, 10)
    assert len(first) == 2 and first == second
    assert not set(first) & set(denser)


@pytest.mark.parametrize(("group", "width"), [(1, 1), (4, 4)])
def test_blocks_are_kept_as_they_were_pruned(group: int, width: int) -> None:
    weight = torch.randn(32, 16, 3, 3) * mask((32, 16, 3, 3), "quads" if width == 4 else "blocks")
    conv = Conv2d(1, 16, 32, (8, 8), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1, 16)
    pattern = pack_sparse_weight(weight.numpy(), conv)
    assert pattern.group == group
    assert np.count_nonzero(pattern.values) == int((weight != 0).sum())
    # Each offset ends in its tap, by which they are sorted: its row and its column, two bits each.
    order = pattern.offsets % 4 * 4 + pattern.offsets // 4 % 4
    assert (np.diff(order, axis=1) >= 0).all()


def test_operations_outside_of_the_image_are_none() -> None:
    """Of every tap kept, those with the border are left out: counted by a convolution of ones."""
    layer = nn.Conv2d(16, 16, 3, 2, 1, bias=False)
    model = side_by_side([nn.Sequential(nn.Conv2d(3, 16, 1), layer)], [(1, 3, 9, 7)])
    with torch.no_grad():
        layer.weight[:, 1:] = 0.0
    inside = nn.functional.conv2d(torch.ones(1, 1, 9, 7), torch.ones(1, 1, 3, 3), stride=2, padding=1).sum()
    (kernel,) = (one for one in lower_model(model, detect(), STRATEGY).kernels if one.op == "conv2d_sparse")
    assert kernel.flops == 2 * 16 * int(inside)


def test_a_pattern_is_the_matrix() -> None:
    weight = np.random.default_rng(0).standard_normal((40, 33)).astype(np.float32)
    weight[np.random.default_rng(1).random((40, 33)) < 0.9] = 0
    pattern = pack_sparse_dense_weight(weight, 16)
    again = np.zeros_like(pack_dense_weight(weight, 16))
    for panel, (offsets, values) in enumerate(zip(pattern.offsets, pattern.values, strict=True)):
        for offset, block in zip(offsets, values, strict=True):
            again[panel, offset : offset + len(block)] += block
    assert np.array_equal(again, pack_dense_weight(weight, 16))


def test_a_layer_of_zeros_keeps_one_block_of_them() -> None:
    pattern = compress(np.zeros((2, 4, 16), np.float32), (1,))
    assert pattern.kept == 1 and not pattern.values.any() and not pattern.offsets.any()
