"""The harness measured by experiments whose right answer is known, here on made-up turns."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import numpy as np
import pytest

from bench import selftest
from bench.kernel_measure import Turns
from tvmopt.errors import UsageError
from tvmopt.options import run


def turns(seconds: float, seed: int, busy: float = 0.0) -> Turns:
    """Thirty turns with half a per cent of noise; in a share `busy` of them a neighbour doubles the time."""
    rng = np.random.default_rng(seed)
    made = Turns()
    for number in range(30):
        disturbed = bool(rng.random() < busy)
        reference = (300.0, 180.0 if disturbed else 298.0)
        made.seconds.append(seconds * (1 + disturbed) * float(rng.normal(1, 0.005)))
        made.before.append(reference)
        made.after.append(reference)
        made.interruptions.append(0)
        made.rounds.append(number)
    return made


def verdicts(ratio: float, busy: float) -> list[str]:
    return [selftest.differ(turns(ratio, seed, busy), turns(1.0, 1000 + seed, busy))[0] for seed in range(40)]


@pytest.mark.parametrize("busy", [0.0, 0.4])
def test_a_build_is_no_different_from_itself_and_three_percent_are_found(busy: float) -> None:
    assert verdicts(1.0, busy).count("no difference") >= 36
    assert verdicts(1.03, busy).count("slower") >= 36


def test_without_the_neighbours_seen_three_percent_are_lost() -> None:
    """Why only quiet turns count: with all of them the same figures hide the difference."""
    lost = 0
    for seed in range(20):
        new, old = turns(1.03, seed, 0.4), turns(1.0, 1000 + seed, 0.4)
        new.before = old.before = new.after = old.after = [(300.0, 298.0)] * 30
        lost += selftest.differ(new, old)[0] != "slower"
    assert lost > 5


def test_a_neighbour_that_stays_for_a_whole_run_makes_no_difference() -> None:
    """Every turn of the new run was disturbed and took twice as long, and so did the references."""
    found = [selftest.differ(turns(1.0, seed, 1.0), turns(1.0, 1000 + seed))[0] for seed in range(10)]
    # 298 / 180 explains 1.66 of the 2.0.
    assert found == ["slower"] * 10
    for seed in range(10):
        new = turns(0.8, seed, 1.0)
        assert selftest.differ(new, turns(1.0, 1000 + seed))[0] == "no difference"


def test_the_timer_is_set_beside_a_native_loop(tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    status = selftest.main(["timer", "--repeats", "5", "--json", str(file)])
    (finding,) = json.loads(file.read_text())["findings"]
    assert status == (0 if finding["passed"] else 1)
    assert len(finding["details"]) == 5
    # The median: any one of them may have met a neighbour in one of its two halves.
    assert 0.95 < statistics.median(finding["details"]) < 1.05


def test_an_unknown_experiment_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError):
        selftest.main(["speed"])
    assert run(selftest.main, ["speed"]) == 2
    assert "choose from timer, among, same, more" in capsys.readouterr().err
