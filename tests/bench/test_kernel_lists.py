"""Lists of kernels: read off networks, named in one line where they cannot be, measured with a summary."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import kernel_lists, kernel_table, kernels, results
from bench.kernel_cases import layer
from tvmopt.errors import UsageError


def test_a_network_is_walked() -> None:
    found, left_out = kernel_lists.kernels_of(["resnet50"])
    assert not left_out
    assert len(found) == len(set(found))
    # He et al., 2015, table 1: the stem, a 3x3 convolution of the third stage and its strided one, the classifier.
    for wanted in (
        ("conv2d", "1x3x224x224,64,7,2,3,1"),
        ("conv2d", "1x128x28x28,128,3,1,1,1"),
        ("conv2d", "1x128x56x56,128,3,2,1,1"),
        ("gemm", "1x2048x1000"),
    ):
        assert wanted in found
    both, _ = kernel_lists.kernels_of(["torchvision:resnet50", "resnet50"])
    assert both == found


def test_depthwise_convolutions_and_attention_are_among_them() -> None:
    mobile, _ = kernel_lists.kernels_of(["mobilenet_v2"])
    assert ("conv2d", "1x144x56x56,144,3,1,1,144") in mobile
    vision, _ = kernel_lists.kernels_of(["vit_b_16"])
    # 196 patches and a class token, 12 heads of 64 (Dosovitskiy et al., 2020, table 1: Base).
    for wanted in (
        ("batch_matmul", "12x197x64x197"), ("batch_matmul", "12x197x197x64"), ("gemm", "197x768x2304"),
        ("gemm", "197x768x3072"),
    ):  # fmt: skip
        assert wanted in vision


def test_every_shape_found_can_be_built_and_computes_what_the_layer_does() -> None:
    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(6, 8, 3, stride=2, padding=1, groups=2)
            self.odd = torch.nn.Conv2d(8, 8, (1, 7), padding=(0, 3))
            self.attention = torch.nn.MultiheadAttention(8, 2)
            self.linear = torch.nn.Linear(8, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.odd(self.conv(x)).flatten(2).permute(2, 0, 1)
            return self.linear(self.attention(y, y, y, need_weights=False)[0])

    found, left_out = kernel_lists.walk(Network().eval(), (torch.zeros(3, 6, 9, 9),))
    assert found == [
        ("conv2d", "3x6x9x9,8,3,2,1,2"),
        ("gemm", "75x8x24"), ("batch_matmul", "6x25x4x25"), ("batch_matmul", "6x25x25x4"), ("gemm", "75x8x8"),
        ("gemm", "75x8x5"),
    ]  # fmt: skip
    assert len(left_out) == 1 and "of 1x7" in left_out[0]
    outputs = {}
    for op, shape in found:
        model = layer(op, shape)
        outputs[shape] = tuple(model.module(*model.example_inputs).shape)
    assert outputs["3x6x9x9,8,3,2,1,2"] == (3, 8, 5, 5)
    assert outputs["6x25x4x25"] == (6, 25, 25)


def test_all_is_every_list_once() -> None:
    found, left_out = kernel_lists.kernels_of(["all"])
    assert not left_out
    assert len(found) == len(set(found)) > 80
    assert {("gemm", f"{n}x{n}x{n}") for n in (256, 512, 1024, 2048, 4096)} < set(found)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(("--list", "resnet5"), "did you mean resnet50"), (("--list", "none"), "name a network, square or all"),
     (("--list", "square", "--op", "conv2d"), "no such kernel in --list square"),
     (("--list", "square", "--op", "gemm", "--shape", "2x2x2"), "give one of them")],
)  # fmt: skip
def test_bad_lists_are_named(arguments: tuple[str, ...], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        kernels.main(arguments)


def _row(op: str, shape: str, share: float, unstable: bool = False) -> dict[str, Any]:
    return {"variant": "manual", "op": op, "shape": shape, "peak_fraction": share, "unstable": unstable}


def test_the_summary_names_what_is_slow() -> None:
    shares = (("conv2d", "a", 0.95), ("conv2d", "b", 0.55), ("conv2d", "c", 0.91), ("gemm", "d", 0.4))
    rows = [_row(op, shape, share, unstable=op == "gemm") for op, shape, share in shares]
    (line,) = kernel_table.summary(rows)
    assert line == (
        "manual: median share of the roof 73% over 4 kernels (conv2d 91% over 3 kernels; gemm 40% over 1 kernel); "
        "2 under 60%: gemm d 40%, conv2d b 55%; 1 of 4 marked unstable"
    )


@pytest.mark.slow
def test_a_list_is_measured_within_its_limits(tmp_path: Path) -> None:
    factory = tmp_path / "net.py"
    factory.write_text(
        "import torch\n"
        "def make():\n"
        "    net = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3), torch.nn.Flatten(), torch.nn.Linear(16 * 36, 10))\n"
        "    return net, (torch.zeros(1, 3, 8, 8),)\n"
    )
    file = tmp_path / "k.json"
    done = subprocess.run(
        [sys.executable, "-m", "bench.kernels", "--list", f"{factory}:make", "--variants", "manual", "--rounds", "3",
         "--limit", "1", "--json", str(file)],
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("conv2d 1x3x8x8,16,3,1,0,1") and lines[1].startswith("gemm 1x576x10")
    assert lines[-1].startswith("manual: median share of the roof ")
    assert [row["op"] for row in results.read(file)["results"]] == ["conv2d", "gemm"]


@pytest.mark.slow
def test_original_is_left_out_where_it_takes_longer_than_the_limit(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench.kernels", "--op", "gemm", "--shape", "640x1024x1024", "--variants",
         "original,manual", "--rounds", "3", "--limit", "1"],
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "original: a call takes about 1 s; --limit 5 times it" in done.stdout
