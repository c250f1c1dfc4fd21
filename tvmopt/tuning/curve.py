"""How a search went: the best so far of every kernel, over candidates and over time, small enough for a result row."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from tvmopt.tuning.lines import Trial


def curve(trials: Sequence[Trial], names: Mapping[str, str]) -> dict[str, Any]:
    """The improvements in a log's trials, as plain JSON.

    Args:
        trials: all trials of a log, in the order they were made.
        names: kernel key -> what the kernel is called; kernels that are not in it are left out.

    Returns:
        `trials`: how many candidates were measured, failed ones included. `elapsed_s`: seconds of search, null where
        the log does not say. `kernels`: of each its name as `kernel`, manual's seconds a call as `manual_s`, how many
        candidates were `tried`, and `points`: `[trial from 1, elapsed_s or null, ratio to manual's schedule]`, one
        for each candidate that was better than manual's and all before it.
    """
    kernels = []
    for key, name in names.items():
        mine = [(number, trial) for number, trial in enumerate(trials, 1) if trial.kernel == key]
        # Candidates of an earlier version of a rule were set against that version's manual schedule.
        newest = max((trial.version or 0 for _, trial in mine), default=0)
        mine = [(number, trial) for number, trial in mine if trial.version in (None, newest)]
        best, points, manual = 1.0, [], []
        for number, trial in mine:
            if trial.ratio is None or trial.seconds is None:
                continue
            manual.append(trial.seconds / trial.ratio)
            if trial.ratio < best:
                best = trial.ratio
                points.append([number, trial.elapsed_s, round(best, 4)])
        if manual:
            kernels.append(
                {"kernel": name, "manual_s": statistics.median(manual), "tried": len(mine), "points": points}
            )
    elapsed = [trial.elapsed_s for trial in trials if trial.elapsed_s is not None]
    return {"trials": len(trials), "elapsed_s": max(elapsed, default=None), "kernels": kernels}
