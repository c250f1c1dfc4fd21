"""Products by tiles (product.py) or with their depth split among threads (split_k.py): two rules, one search space.

By hand a product whose tiles leave SMs idle takes the way that the estimate says is faster. No GPU has timed what the
estimate is made of, so in tuning the way is a choice like others, with the other way's numbers behind it.
"""

from __future__ import annotations

from typing import Any

from tvm.s_tir import Schedule

from tvmopt.machine import GpuMachine

from . import product
from .split_k import find_split, schedule_split

TILES, SHARES = "tiles", "shares"


def split_k(sch: Schedule, kernel: Any, machine: GpuMachine, choose: Any) -> Schedule | None:
    """Schedule a product that is faster with its depth split; declines any other."""
    split = find_split(sch, kernel, machine)
    if split is None or not split.is_faster(machine):
        return None
    if choose("way", [SHARES, TILES], SHARES) == TILES:
        return product.rule(sch, kernel, machine, choose)
    return schedule_split(sch, split, machine, choose)


def tiles(sch: Schedule, kernel: Any, machine: GpuMachine, choose: Any) -> Schedule | None:
    """Schedule any other product; declines what is none."""
    split = find_split(sch, kernel, machine)
    if split is not None and choose("way", [TILES, SHARES], TILES) == SHARES:
        return schedule_split(sch, split, machine, choose)
    return product.rule(sch, kernel, machine, choose)
