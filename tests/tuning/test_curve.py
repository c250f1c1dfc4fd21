"""The curve of a search, from its trials."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tvmopt.errors import LogError
from tvmopt.tuning.curve import curve
from tvmopt.tuning.lines import RECORDS, TRIALS, WORKLOADS, Trial, read


def trial(kernel: str, ratio: float | None, elapsed: float | None = None, version: int | None = 1) -> Trial:
    status = "ok" if ratio else "crash"
    seconds = None if ratio is None else ratio * 2e-6
    return Trial(kernel, "template", f"{ratio}", status, seconds, ratio, "r", version, elapsed_s=elapsed)


def test_only_improvements_are_kept() -> None:
    trials = [
        trial("a", 1.1, 1.0), trial("b", 0.9, 2.0), trial("a", 0.8, 3.0), trial("a", None, 3.5),
        trial("a", 0.85, 4.0), trial("a", 0.5, 5.0), trial("gone", 0.1, 6.0),
    ]  # fmt: skip
    made = curve(trials, {"a": "conv", "b": "dense", "c": "never tuned"})
    assert made["trials"] == 7 and made["elapsed_s"] == 6.0
    conv, dense = made["kernels"]
    assert conv["kernel"] == "conv" and conv["tried"] == 5
    assert conv["points"] == [[3, 3.0, 0.8], [6, 5.0, 0.5]]
    assert conv["manual_s"] == pytest.approx(2e-6)
    assert dense["points"] == [[2, 2.0, 0.9]]
    json.dumps(made)


def test_an_older_rule_had_another_manual_schedule() -> None:
    (found,) = curve([trial("a", 0.3, version=1), trial("a", 0.9, version=2)], {"a": "conv"})["kernels"]
    assert found["points"] == [[2, None, 0.9]]


def test_lines_of_older_versions_are_read_and_wrong_times_are_not(tmp_path: Path) -> None:
    for name in (WORKLOADS, RECORDS):
        (tmp_path / name).touch()
    line = {"kernel": "a", "source": "template", "candidate": "c", "status": "ok", "seconds": 1e-6, "ratio": 0.9}
    (tmp_path / TRIALS).write_text(json.dumps(line) + "\n" + json.dumps({**line, "elapsed_s": 2.5}) + "\n")
    assert [trial.elapsed_s for trial in read(tmp_path).trials] == [None, 2.5]
    (tmp_path / TRIALS).write_text(json.dumps({**line, "elapsed_s": "soon"}) + "\n")
    with pytest.raises(LogError, match=r"trials.jsonl:1: a trial's elapsed_s"):
        read(tmp_path)
