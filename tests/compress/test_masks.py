"""What each method keeps, counted by hand; masks held in training; which layers are taken."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from tvmopt.compress.layers import chosen_layers
from tvmopt.compress.masked import Masked
from tvmopt.compress.masks import block_mask, masks, pattern_mask
from tvmopt.compress.methods import METHODS, check_sparsity, method_of
from tvmopt.compress.norms import batch_norm_scales, norms_behind
from tvmopt.compress.pruning import prune
from tvmopt.compress.size import layer_sizes
from tvmopt.errors import ModelError, UsageError

IMAGE = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(0))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1, groups=32),
        nn.Conv2d(32, 48, 1), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(192, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip


def one(name: str, weight: torch.Tensor, sparsity: float) -> torch.Tensor:
    return masks(method_of(name), {"a": weight}, {"a": sparsity}, {})["a"]


def test_the_smallest_weights_go() -> None:
    weight = torch.tensor([[0.1, -5.0, 0.2], [3.0, -0.05, 4.0]])
    assert one("unstructured", weight, 0.5).tolist() == [[0, 1, 0], [1, 0, 1]]
    both = masks(method_of("global"), {"a": weight, "b": weight / 1000}, {"a": 0.5, "b": 0.5}, {})
    assert both["a"].sum() == 6 and both["b"].sum() == 0


def test_channels_last_weights_are_masked_by_value() -> None:
    weight = torch.randn(32, 16, 3, 3)
    for name in ("unstructured", "global", "filter-l1", "block", "2:4"):
        mask = one(name, weight.to(memory_format=torch.channels_last), 0.5)
        assert torch.equal(mask, one(name, weight, 0.5)), name


def test_units_and_filters_go_whole() -> None:
    weight = torch.tensor([[1.0, 1.0], [0.1, 9.0], [3.0, 3.0], [0.0, 0.5]])
    # Norms: 1.41, 9.00, 4.24, 0.5; by L1: 2, 9.1, 6, 0.5.
    assert one("unit", weight, 0.5).tolist() == [[0, 0], [1, 1], [1, 1], [0, 0]]
    filters = torch.cat([torch.full((1, 4, 1, 1), 0.5), torch.tensor([1.5, 0, 0, 0]).view(1, 4, 1, 1)])
    assert one("filter-l1", filters, 0.5)[:, 0, 0, 0].tolist() == [1, 0]
    assert one("filter-l2", filters, 0.5)[:, 0, 0, 0].tolist() == [0, 1]
    # At least one is left.
    assert one("unit", weight, 0.99).sum() == 2


@pytest.mark.parametrize(("columns", "inputs", "kernel"), [(1, 5, (3, 3)), (4, 12, (1, 1)), (4, 8, ())])
def test_blocks_are_balanced_and_the_largest(columns: int, inputs: int, kernel: tuple[int, ...]) -> None:
    weight = torch.randn(48, inputs, *kernel, generator=torch.Generator().manual_seed(1))
    mask = block_mask(weight, 0.7, 16, columns)
    assert mask.shape == weight.shape
    positions = inputs // columns * (kernel[0] * kernel[1] if kernel else 1)
    for row in range(3):
        norms, kept = [], []
        rows = slice(16 * row, 16 * row + 16)
        flat, chosen = weight[rows].reshape(16, inputs, -1), mask[rows].reshape(16, inputs, -1)
        for start in range(0, inputs, columns):
            for at in range(flat.shape[2]):
                block = chosen[:, start : start + columns, at]
                assert block.min() == block.max()
                kept.append(bool(block.max()))
                norms.append(float(flat[:, start : start + columns, at].norm()))
        count = sum(kept)
        assert count == max(1, round(0.3 * positions))
        best = sorted(norms, reverse=True)[:count]
        assert sorted((n for n, k in zip(norms, kept, strict=True) if k), reverse=True) == best


def test_patterns_keep_n_of_m_along_the_inputs() -> None:
    weight = torch.randn(6, 16, 3, 3, generator=torch.Generator().manual_seed(2))
    for keep, of in ((2, 4), (4, 8), (1, 4)):
        mask = pattern_mask(weight, keep, of)
        groups = mask.reshape(6, 16 // of, of, 9)
        assert torch.equal(groups.sum(2), torch.full_like(groups.sum(2), keep))
        smallest_kept = torch.where(mask > 0, weight.abs(), torch.inf).reshape(groups.shape).amin(2)
        largest_gone = (weight.abs() * (1 - mask)).reshape(groups.shape).amax(2)
        assert bool((smallest_kept >= largest_gone).all())


def test_equal_weights_still_give_the_sparsity() -> None:
    assert one("block", torch.ones(16, 10), 0.8).sum() == 32
    assert one("global", torch.ones(16, 10), 0.8).sum() == 32


def test_layers_that_do_not_fit_are_left_alone() -> None:
    net = network()
    taken = {name: list(chosen_layers(net, method_of(name))) for name in METHODS}
    assert taken["unstructured"] == ["0", "3", "4", "7", "9"]
    assert taken["unit"] == ["7"] and taken["filter-l2"] == ["0", "3", "4"]
    assert taken["block-16x1"] == taken["2:4"][:3] == ["0", "4", "7"]
    stem = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3))
    assert list(chosen_layers(stem, method_of("block"))) == ["1"]
    assert list(chosen_layers(stem, method_of("block"), only=["0"])) == ["0"]
    assert list(chosen_layers(stem, method_of("unstructured"), skip=["0"])) == ["1"]


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("block", {"only": ["9"]}, "10 outputs are not a multiple of 16"),
        ("block", {"only": ["3"]}, "grouped or depthwise"),
        ("2:4", {"only": ["3"]}, "not a multiple of 4"),
        ("unit", {"only": ["0"]}, "take filter-l2"),
        ("filter-l2", {"only": ["7"]}, "take unit"),
        ("unstructured", {"only": ["1"]}, "BatchNorm2d has no weights to prune"),
        ("unit", {"skip": ["7"]}, "no layer of the model can be pruned by unit"),
    ],
)
def test_a_layer_that_cannot_be_pruned_is_refused(method: str, options: dict[str, list[str]], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        chosen_layers(network(), method_of(method), **options)


def test_bad_names_and_sparsities_are_refused() -> None:
    with pytest.raises(UsageError, match="no layer 'conv'"):
        chosen_layers(network(), method_of("unstructured"), only=["conv"])
    with pytest.raises(UsageError, match="did you mean block"):
        method_of("blok")
    with pytest.raises(UsageError, match="keeps N of M"):
        method_of("4:4")
    for sparsity in (-0.1, 1.0, float("nan")):
        with pytest.raises(UsageError, match="less than 1"):
            check_sparsity(method_of("block"), sparsity)
    with pytest.raises(UsageError, match=r"is always 0\.5"):
        check_sparsity(method_of("2:4"), 0.8)
    with pytest.raises(UsageError, match="needs a --sparsity"):
        check_sparsity(method_of("block"), None)
    assert check_sparsity(method_of("1:4"), None) == 0.75


def test_attention_is_left_alone() -> None:
    layer = nn.TransformerEncoderLayer(32, 2, 64)
    assert list(chosen_layers(layer, method_of("unstructured"))) == ["linear1", "linear2"]
    with pytest.raises(ModelError, match="attention"):
        chosen_layers(layer, method_of("unstructured"), only=["self_attn.out_proj"])


def test_what_attention_holds_is_listed_among_what_was_left_alone() -> None:
    net = nn.Sequential(nn.TransformerEncoderLayer(32, 2, 64), nn.Embedding(5, 32), nn.ConvTranspose1d(4, 4, 3))
    prune(net, "unstructured", 0.5, [], only=["0.linear1"])
    zeros = {layer.name: layer.sparsity for layer in layer_sizes(net)}
    assert list(zeros) == ["0.self_attn.in_proj_weight", "0.self_attn.out_proj", "0.linear1", "0.linear2", "1", "2"]
    assert zeros.pop("0.linear1") == 0.5 and set(zeros.values()) == {0.0}
    tied = nn.Sequential(nn.Embedding(8, 8), nn.Linear(8, 8), nn.Linear(8, 8))
    tied[0].weight = tied[2].weight = tied[1].weight
    # A layer is listed whoever else has its weight.
    assert [layer.name for layer in layer_sizes(tied)] == ["1", "2"]
    assert [layer.name for layer in layer_sizes(nn.Linear(2, 3))] == [""]


def test_batch_norm_scales_are_those_behind_the_convolution() -> None:
    net = network()
    net[1].weight.data = torch.arange(32.0) - 16
    scales = batch_norm_scales(net, ["0"], [IMAGE])
    assert torch.equal(scales["0"], (torch.arange(32.0) - 16).abs())
    prune(net, "filter-bn", 0.25, [IMAGE], only=["0"])
    gone = net[0].weight.flatten(1).abs().sum(1) == 0
    assert gone.nonzero().flatten().tolist() == list(range(12, 20)) or gone.sum() == 8
    with pytest.raises(ModelError, match="no batch norm takes its output"):
        batch_norm_scales(net, ["4"], [IMAGE])


def test_masks_hold_while_training_and_a_whole_filter_takes_its_bias() -> None:
    net = network()
    masked = Masked(net, method_of("filter-l2"), [IMAGE], only=["0"])
    masked.prune(0.5)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        net(IMAGE).square().sum().backward()
        optimizer.step()
    masked.bake()
    gone = net[0].weight.flatten(1).abs().sum(1) == 0
    assert gone.sum() == 16 and bool((net[0].bias[gone] == 0).all()) and bool((net[0].bias[~gone] != 0).all())
    assert not hasattr(net[0], "weight_mask") and list(net[0]._parameters) != []


@pytest.mark.parametrize("name", METHODS)
def test_every_method_leaves_a_network_that_runs(name: str) -> None:
    net = network()
    before = sum(p.numel() for p in net.parameters())
    only = ["0"] if name == "filter-bn" else []
    skip = ["4"] if name == "structural-bn" else []
    prune(net, name, None if ":" in name else 0.5, [IMAGE], only=only, skip=skip)
    assert net(IMAGE).shape == (2, 10)
    kept = sum(int(p.count_nonzero()) for p in net.parameters())
    assert kept < 0.95 * before


class Parting(nn.Module):
    """Of its convolutions one feeds more than its batch norm, and two share one."""

    def __init__(self) -> None:
        super().__init__()
        self.plain, self.parted, self.left, self.right = (nn.Conv2d(16, 16, 1) for _ in range(4))
        self.norms = nn.ModuleList(nn.BatchNorm2d(16) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norms[0](self.plain(x)))
        y = self.parted(x)
        x = self.norms[1](y) + y
        return self.norms[2](self.left(x)) + self.norms[2](self.right(x))


def test_a_masked_filter_takes_its_batch_norm_unless_something_else_reads_it() -> None:
    net = Parting()
    for norm in net.norms:
        nn.init.ones_(norm.bias)
    behind = norms_behind(net, ["plain", "parted", "left", "right"], [IMAGE])
    assert {name: found.norm is net.norms[0] for name, found in behind.items() if found.alone} == {"plain": True}
    assert behind["parted"].norm is net.norms[1]
    prune(net, "filter-l2", 0.5, [IMAGE])
    gone = net.plain.weight.flatten(1).abs().sum(1) == 0
    assert gone.sum() == 8
    assert torch.equal(net.norms[0].weight == 0, gone) and torch.equal(net.norms[0].bias == 0, gone)
    for norm in net.norms[1:]:
        assert bool((norm.weight == 1).all() and (norm.bias == 1).all())


@pytest.mark.parametrize("name", ["filter-l1", "filter-l2", "filter-bn"])
def test_a_network_with_masked_filters_computes_what_one_without_them_does(name: str) -> None:
    """Also after training under the masks, in which the batch norm behind would go on giving a constant."""
    tp = pytest.importorskip("torch_pruning")
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 8, 3), nn.BatchNorm2d(8),
        nn.Flatten(), nn.Linear(288, 10),
    )  # fmt: skip
    for norm in (net[1], net[4]):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    masked = Masked(net, method_of(name), [IMAGE], only=["0", "3"])
    masked.prune(0.5)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        net(IMAGE).square().mean().backward()
        optimizer.step()
    masked.bake()
    small = copy.deepcopy(net).eval()
    graph = tp.DependencyGraph().build_dependency(small, (IMAGE,))
    for at in ("0", "3"):
        layer = small.get_submodule(at)
        gone = (layer.weight.flatten(1).abs().sum(1) == 0).nonzero().flatten().tolist()
        assert len(gone) == len(layer.weight) // 2
        graph.get_pruning_group(layer, tp.prune_conv_out_channels, gone).prune()
    assert small[4].num_features == 4
    torch.testing.assert_close(small(IMAGE), net.eval()(IMAGE), rtol=1e-4, atol=1e-5)


def test_a_filter_that_comes_back_has_its_batch_norm_back() -> None:
    net = network()
    scale = net[1].weight.detach().clone().uniform_(1, 2)
    net[1].weight.data = scale.clone()
    masked = Masked(net, method_of("filter-bn"), [IMAGE], only=["0"])
    for share in (0.9, 0.5):
        masked.prune(share)
    masked.bake()
    assert torch.equal(net[1].weight != 0, scale >= scale.median().nextafter(torch.tensor(9.0)))
    torch.testing.assert_close(net[1].weight[net[1].weight != 0], scale[net[1].weight != 0])
