"""Kernels by their indices: which a user names, and the list of what there is."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tvmopt.errors import UsageError

if TYPE_CHECKING:
    from tvmopt.graph.kernels import Kernel


def selection(text: str) -> set[int]:
    """Kernel indices from `0,3-5`."""
    chosen: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        if match is None or (match[2] and int(match[2]) < int(match[1])):
            raise argparse.ArgumentTypeError(f"{text!r} is not a list of kernels like 0,3-5")
        chosen |= set(range(int(match[1]), int(match[2] or match[1]) + 1))
    return chosen


def check_selection(selected: set[int] | None, kernels: Sequence[Kernel]) -> None:
    """Raises UsageError for a kernel that does not exist."""
    beyond = sorted(index for index in selected or () if index >= len(kernels))
    if beyond:
        raise UsageError(f"--kernels: there is no kernel {beyond[0]}; this model's are 0 to {len(kernels) - 1}")


def kernel_lines(kernels: Sequence[Kernel]) -> list[str]:
    """A line a kernel: its index, operator, calls in a run of the network, operations and shapes."""
    return [
        f"{index:3d}  {kernel.op:<18} x{kernel.calls:<3d} {kernel.flops / 1e6:9.2f} MFLOP  {kernel.shape}"
        for index, kernel in enumerate(kernels)
    ]
