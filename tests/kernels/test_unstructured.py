"""Convolutions and products with unstructured weights over boundary shapes, against the masked layer in PyTorch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bench.covering import Row, covering
from tests.kernels.support import avx2, compiled, failures, side_by_side, some_or_all
from tests.kernels.test_sparse import Residual, _valid
from tvmopt.graph.pipeline import lower_model
from tvmopt.machine import detect
from tvmopt.operators.conv2d import Conv2d
from tvmopt.operators.conv2d_unstructured import pack_unstructured_weight, planes_of
from tvmopt.operators.dense_unstructured import pack_columns, pack_rows
from tvmopt.operators.unstructured import describe_rows, random_rows, scattered

STRATEGY = {"conv2d": "unstructured", "dense": "unstructured"}
FACTORS: dict[str, list[Any]] = {
    "in": [1, 3, 15, 16, 17, 48],
    "out": [1, 3, 16, 17, 48],
    "height": [1, 3, 7, 8, 13, 29],
    "width": [1, 5, 7, 14, 16, 31, 65],
    "kernel": [1, 3, 5],
    "stride": [1, 2, 3],
    "padding": [0, 1, 2],
    "dilation": [1, 2],
    "batch": [1, 3],
    "kept": ["few", "some", "none", "all", "one row"],
    "after": ["nothing", "relu", "residual", "flatten"],
}
PER_NETWORK = 10


def thin(layer: nn.Module, kept: str, seed: int) -> None:
    """Zeroes weights of the layer at random: at different numbers in different rows."""
    generator = torch.Generator().manual_seed(seed)
    for module in layer.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            weight = module.weight
            share = {"few": 0.03, "some": 0.3, "none": 0.0, "all": 1.0, "one row": 0.0}[kept]
            mask = torch.rand(weight.shape, generator=generator) < share
            if kept == "one row":
                mask[-1] = True
            with torch.no_grad():
                weight.mul_(mask)


def _layer(row: Row) -> nn.Module:
    conv = nn.Conv2d(row["in"], row["out"], row["kernel"], row["stride"], row["padding"], row["dilation"])
    after = {"nothing": [], "relu": [nn.ReLU()], "flatten": [nn.Flatten(), nn.ReLU()]}
    return Residual(conv) if row["after"] == "residual" else nn.Sequential(conv, *after[row["after"]])


def _run(rows: list[Row], machine: Any = None) -> None:
    wrong: list[str] = []
    for start in range(0, len(rows), PER_NETWORK):
        some = rows[start : start + PER_NETWORK]
        shapes = [(row["batch"], row["in"], row["height"], row["width"]) for row in some]
        model = side_by_side([_layer(row) for row in some], shapes)
        for index, row in enumerate(some):
            thin(model.module.layers[index], row["kept"], start + index)  # type: ignore[index, union-attr]
        built, lowered = compiled(model, machine, STRATEGY)
        assert sum(kernel.calls for kernel in lowered.kernels if kernel.op == "conv2d_unstructured") == len(some)
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


def test_products() -> None:
    sizes = [
        (1, 512, 1000), (1, 1, 1), (2, 17, 16), (3, 31, 15), (5, 64, 33), (6, 20, 17), (16, 16, 16), (17, 33, 40),
        (64, 64, 40), (57, 33, 17), (131, 96, 48), (449, 16, 16),
    ]  # fmt: skip
    layers: list[nn.Module] = [nn.Linear(k, n) for _, k, n in sizes]
    layers += [nn.Sequential(nn.Linear(24, 40, bias=False), nn.ReLU()), nn.Linear(16, 16)]
    shapes = [(m, k) for m, k, _ in sizes] + [(2, 13, 24), (3, 2, 2, 16)]
    kinds = ["few", "some", "none", "all", "one row"] * 3
    model = side_by_side(layers, shapes)
    for index, layer in enumerate(layers):
        thin(layer, kinds[index], index)
    built, lowered = compiled(model, None, STRATEGY)
    ops = [kernel.op for kernel in lowered.kernels for _ in range(kernel.calls)]
    assert ops.count("dense_unstructured") == 5
    assert ops.count("dense_unstructured_rows") == len(layers) - 5
    assert not failures(model, built, list(zip(shapes, kinds, strict=False)), STRATEGY)


def test_a_pruned_network_takes_what_its_zeros_are() -> None:
    """Of its own accord: unstructured where single weights are left, blocks where blocks are, dense where few are."""
    layers = [nn.Sequential(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU()) for _ in range(3)] + [nn.Linear(256, 256)]
    model = side_by_side(layers, [(1, 32, 28, 28)] * 3 + [(1, 256)])
    generator = torch.Generator().manual_seed(0)
    masks = [
        torch.rand((64, 32, 3, 3), generator=generator) < 0.05,
        (torch.rand((4, 32, 3, 3), generator=generator) < 0.1).repeat_interleave(16, 0),
        torch.rand((64, 32, 3, 3), generator=generator) < 0.7,
    ]
    with torch.no_grad():
        for layer, mask in zip(layers, masks, strict=False):
            layer[0].weight.mul_(mask)  # type: ignore[index, operator]
        layers[3].weight.mul_(torch.rand((256, 256), generator=generator) < 0.02)  # type: ignore[operator]
    built, lowered = compiled(model)
    ways = [decision.way for decision in lowered.decided.values()]
    assert ways[:2] == ["unstructured", "sparse"] and ways[2] not in ("unstructured", "sparse")
    assert any(kernel.op == "dense_unstructured" for kernel in lowered.kernels)
    assert not failures(model, built, ["unstructured", "blocks", "dense", "product"])


def test_convolutions_that_follow_one_another_stay_in_planes() -> None:
    layer = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 1), nn.ReLU())
    model = side_by_side([layer], [(1, 3, 16, 16)])
    thin(layer, "few", 0)
    kernels = lower_model(model, detect(), STRATEGY).kernels
    assert [kernel.op for kernel in kernels] == ["conv2d_unstructured"] * 2


def test_patterns_share_a_kernel() -> None:
    """Shape and the number of weights make a kernel, and so a tuning record; which they are is data."""

    def keys(seed: int, kept: int) -> list[str]:
        layers: list[nn.Module] = [nn.Conv2d(16, 16, 3, padding=1), nn.Linear(64, 32)]
        model = side_by_side(layers, [(1, 16, 9, 9), (7, 64)])
        for layer in layers:
            weight = layer.weight
            assert isinstance(weight, torch.Tensor)
            chosen = torch.randperm(weight.numel(), generator=torch.Generator().manual_seed(seed))[:kept]
            with torch.no_grad():
                weight.mul_(torch.zeros(weight.numel()).index_fill(0, chosen, 1.0).view_as(weight))
        return [kernel.key for kernel in lower_model(model, detect(), STRATEGY).kernels]

    first, second, denser = keys(0, 90), keys(1, 90), keys(0, 91)
    assert len(first) == 2 and first == second and not set(first) & set(denser)


def test_rows_are_the_matrix() -> None:
    generator = np.random.default_rng(0)
    weight = generator.standard_normal((33, 40)).astype(np.float32)
    weight[generator.random(weight.shape) < 0.9] = 0
    panels, again = pack_columns(weight, 16), np.zeros((33, 48), np.float32)
    for panel, (begin, end) in enumerate(panels.ranges):
        for k in range(begin, end):
            again[panels.offsets[k], panel * 16 + np.arange(16)] += panels.values[k]
    assert np.array_equal(again[:, :40], weight) and not again[:, 40:].any()
    rows, again = pack_rows(weight), np.zeros_like(weight)
    for column, (begin, end) in enumerate(rows.ranges):
        again[rows.offsets[begin:end], column] = rows.values[begin:end]
    assert np.array_equal(again, weight) and len(rows.values) == np.count_nonzero(weight)


def test_no_weights_are_an_empty_row_each() -> None:
    conv = Conv2d(1, 16, 32, (8, 8), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1, 16)
    for rows in (
        pack_unstructured_weight(np.zeros((32, 16, 3, 3), np.float32), conv),
        pack_columns(np.zeros((16, 32), np.float32), 16),
        pack_rows(np.zeros((16, 32), np.float32)),
    ):
        assert len(rows.values) == len(rows.offsets) == 1 and not rows.values.any() and not rows.ranges.any()


def test_wide_images_are_declined() -> None:
    assert planes_of(Conv2d(1, 3, 16, (4, 449), (1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1, 16)) is None
    assert planes_of(Conv2d(1, 3, 16, (4, 448), (1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1, 16)) is not None


def test_scattered_is_what_blocks_hold_badly() -> None:
    weight = np.zeros((32, 8), np.float32)
    weight[:16, :2] = 1
    assert scattered(weight, 16) is None
    weight[:] = np.eye(32, 8)
    assert scattered(weight, 16) == 8


def test_drawn_integers_are_within_the_planes() -> None:
    generator = np.random.default_rng(0)
    described = describe_rows(4, 100, 20, 33)
    offsets = random_rows(described, (33,), generator)
    assert (offsets // 100 < 4).all() and (offsets % 100 <= 20).all()
    ranges = random_rows(described, (7, 2), generator)
    assert ranges[0, 0] == 0 and ranges[-1, 1] == 33 and (ranges[1:, 0] == ranges[:-1, 1]).all()
