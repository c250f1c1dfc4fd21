"""Filters cut out through residuals, concatenations, groups, depthwise layers, and a flatten into a linear layer."""

from __future__ import annotations

import copy
import sys

import pytest
import torch
from torch import Tensor, nn

from tvmopt.compress.pruning import prune
from tvmopt.errors import ModelError, TvmoptError, UsageError
from tvmopt.model import load_model
from tvmopt.models.resnet20 import project_shortcuts, resnet20

IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Everything(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.residual = nn.Conv2d(16, 16, 3, padding=1)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.grouped = nn.Conv2d(16, 32, 1, groups=4)
        self.left = nn.Conv2d(32, 8, 1)
        self.right = nn.Conv2d(32, 24, 3, padding=1)
        self.mix = nn.Conv2d(32, 12, 1)
        self.hidden = nn.Linear(12 * 16, 40)
        self.head = nn.Linear(40, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(x + self.residual(x))
        x = self.grouped(torch.relu(self.depthwise(x)))
        x = self.mix(nn.functional.max_pool2d(torch.cat([self.left(x), self.right(x)], 1), 2))
        return self.head(torch.relu(self.hidden(x.flatten(1))))


class ByNumber(nn.Module):
    """Its forward has the number of channels written in."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, padding=1)
        self.head = nn.Linear(16 * 64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).view(2, 16 * 64))


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_everything_behind_a_filter_follows(norm: str) -> None:
    torch.manual_seed(0)
    net = Everything()
    prune(net, f"structural-{norm}", 0.5, [IMAGE])
    assert net(IMAGE).shape == (2, 10)
    assert net.stem.weight.shape[0] == net.norm.num_features == net.residual.weight.shape[0] == 8
    assert net.depthwise.groups == net.depthwise.weight.shape[0] == 8
    assert net.grouped.weight.shape[:2] == (16, 2)
    assert (net.left.weight.shape[0], net.right.weight.shape[0]) == (4, 12)
    assert net.mix.weight.shape[:2] == (6, 16)
    assert net.hidden.weight.shape == (20, 6 * 16) and net.head.weight.shape == (10, 20)


def test_removing_zero_filters_changes_nothing() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10)
    ).eval()
    gone = [1, 4, 5, 9, 10, 12, 13, 15]
    with torch.no_grad():
        net[0].weight[gone] = 0
        net[0].bias[gone] = 0
    small = copy.deepcopy(net)
    prune(small, "structural-l2", 0.5, [IMAGE], only=["0"])
    assert small[0].weight.shape[0] == 8 and small[2].weight.shape == (8, 8, 3, 3)
    torch.testing.assert_close(small(IMAGE), net(IMAGE))


def test_skipped_layers_keep_their_filters() -> None:
    net = Everything()
    prune(net, "structural-l2", 0.5, [IMAGE], skip=["hidden", "left"])
    assert net.hidden.weight.shape[0] == 40 and net.left.weight.shape[0] == 8 and net.right.weight.shape[0] == 12


def test_resnet20_loses_half_of_every_layer() -> None:
    torch.manual_seed(0)
    net, image = resnet20().eval(), torch.randn(1, 3, 32, 32)
    wanted = net(image)
    projected = copy.deepcopy(net)
    for _ in range(2):
        project_shortcuts(projected)
    torch.testing.assert_close(projected(image), wanted)
    # What removes filters does that by itself.
    prune(net, "structural", 0.5, [image])
    assert sum(p.numel() for p in net.parameters()) == 68690 and net(image).shape == (1, 10)


class FlatParts(nn.Module):
    """Concatenations, one in another, that are pooled and flattened into a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 24, 1), nn.Conv2d(3, 6, 1)
        self.head = nn.Linear(38 * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        parts = torch.relu(torch.cat([self.left(x), self.right(x)], 1))
        parts = torch.cat([parts, self.last(x)], 1)
        return self.head(nn.functional.max_pool2d(parts, 2).flatten(1))


def test_a_concatenation_is_followed_through_a_flatten() -> None:
    torch.manual_seed(0)
    net = FlatParts().eval()
    with torch.no_grad():
        for layer in (net.left, net.right, net.last):
            gone = torch.randperm(layer.out_channels)[: layer.out_channels // 2]
            layer.weight[gone] = 0
            layer.bias[gone] = 0
            columns = net.head.weight.view(10, 38, 16)
        # So that what is zero is what is smallest, the columns that read it are small.
        zero = torch.cat([layer.bias == 0 for layer in (net.left, net.right, net.last)])
        columns[:, zero] *= 1e-3
    small = copy.deepcopy(net)
    prune(small, "structural-l2", 0.5, [IMAGE])
    assert [len(layer.weight) for layer in (small.left, small.right, small.last)] == [4, 12, 3]
    assert small.head.weight.shape == (10, 19 * 16)
    torch.testing.assert_close(small(IMAGE), net(IMAGE))


class Shuffled(nn.Module):
    """A block of ShuffleNet: half of the channels pass, the others are computed anew, and both are shuffled."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.inner, self.outer = nn.Conv2d(8, 12, 1), nn.Conv2d(12, 8, 1)
        self.mix = nn.Conv2d(16, 20, 1)
        self.head = nn.Linear(20, 10)

    def forward(self, x: Tensor) -> Tensor:
        first, second = torch.relu(self.stem(x)).chunk(2, 1)
        x = torch.cat([first, self.outer(torch.relu(self.inner(second)))], 1)
        images, channels, height, width = x.shape
        x = x.view(images, 2, channels // 2, height, width).transpose(1, 2).reshape(images, channels, height, width)
        return self.head(torch.relu(self.mix(x)).mean([2, 3]))


def test_what_is_shuffled_keeps_its_filters_and_the_rest_goes() -> None:
    torch.manual_seed(0)
    net = Shuffled().eval()
    with torch.no_grad():
        for layer, reader, half in ((net.inner, net.outer, 6), (net.mix, net.head, 10)):
            layer.weight[:half] = 0
            layer.bias[:half] = 0
            reader.weight[:, :half] *= 1e-3
    small = copy.deepcopy(net)
    prune(small, "structural-l2", 0.5, [IMAGE])
    assert [len(layer.weight) for layer in (small.stem, small.inner, small.outer, small.mix)] == [16, 6, 8, 10]
    torch.testing.assert_close(small(IMAGE), net(IMAGE))


@pytest.mark.slow
def test_shufflenet_loses_filters() -> None:
    model = load_model("torchvision:shufflenet_v2_x1_0", input_shape=(3, 64, 64))
    before = sum(p.numel() for p in model.module.parameters())
    prune(model.module, "structural", 0.5, model.example_inputs)
    assert sum(p.numel() for p in model.module.parameters()) < 0.8 * before
    assert model.module(*model.example_inputs).shape == (1, 1000)


def test_what_cannot_be_cut_is_one_line() -> None:
    with pytest.raises(ModelError, match=r"does not run|cannot be followed"):
        prune(ByNumber(), "structural", 0.5, [IMAGE])
    with pytest.raises(ModelError, match="its outputs are the network's"):
        prune(Everything(), "structural", 0.5, [IMAGE], only=["head"])
    with pytest.raises(UsageError, match="no layer 'nope'"):
        prune(Everything(), "structural", 0.5, [IMAGE], skip=["nope"])
    with pytest.raises(ModelError, match="no batch norm takes its output"):
        prune(Everything(), "structural-bn", 0.5, [IMAGE])


def test_without_torch_pruning_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(TvmoptError, match=r"^structural removal needs Torch-Pruning: pip install torch-pruning$"):
        prune(Everything(), "structural", 0.5, [IMAGE])


@pytest.mark.parametrize("outputs", [2, 3, 10, 49, 100])
def test_of_every_layer_one_filter_stays(outputs: int) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, outputs, 3), nn.ReLU(), nn.Conv2d(outputs, 7, 3), nn.ReLU(), nn.Conv2d(7, 2, 1))
    prune(net, "structural-l2", 0.999, [IMAGE])
    assert [net[i].weight.shape[0] for i in (0, 2, 4)] == [1, 1, 2]
    # The largest is the one that is left, and the rest can't go.
    with pytest.raises(ModelError, match="can remove nothing"):
        prune(net, "structural-l2", 0.5, [IMAGE])
