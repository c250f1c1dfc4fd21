"""Covering arrays: few combinations of parameter values in which every pair (or triple) of values still occurs."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Row = dict[str, Any]


def covering(
    factors: Mapping[str, Sequence[Any]], strength: int, valid: Callable[[Row], bool], seed: int = 0, tries: int = 40
) -> list[Row]:
    """Rows of one value a factor so that every combination of `strength` values, where some valid row has it, occurs.

    Greedy: the next row is the one of `tries` random ones, grown round a combination still missing, that covers most
    missing combinations. Reproducible by `seed`.
    """
    generator = random.Random(seed)
    names = list(factors)

    def combinations(row: Row) -> set[tuple[tuple[str, Any], ...]]:
        return {tuple((n, row[n]) for n in chosen) for chosen in itertools.combinations(names, strength)}

    missing = {
        tuple(zip(chosen, values, strict=True))
        for chosen in itertools.combinations(names, strength)
        for values in itertools.product(*(factors[n] for n in chosen))
    }
    rows: list[Row] = []
    while missing:
        target = min(missing, key=repr)
        best: Row | None = None
        gain = 0
        for _ in range(tries):
            row = {n: generator.choice(list(factors[n])) for n in names} | dict(target)
            if valid(row):
                covered = len(missing & combinations(row))
                if covered > gain:
                    best, gain = row, covered
        if best is None:
            missing.discard(target)  # no valid row has this combination
            continue
        missing -= combinations(best)
        rows.append(best)
    return rows
