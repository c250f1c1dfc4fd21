"""tune and replay as commands: good input, bad input, Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tvmopt import replay, tune
from tvmopt.tuning.lines import MANIFEST, RECORDS
from tvmopt.tuning.log import Log
from tvmopt.tuning.manifest import read_manifest

Refused = Callable[..., tuple[int, str]]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=240)


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--trials", "0"], 2, "--trials"),
        (["--search", "luck"], 2, "--search"),
        (["--time-budget", "soon"], 2, "--time-budget"),
        (["--kernels", "3-1"], 2, "--kernels"),
        (["--log-dir", "/proc/nowhere"], 1, "--log-dir"),
        (["--target", "abacus"], 1, "abacus"),
        (["--sparsity", "1.5"], 2, "--sparsity"),
        (["--sparsity", "0.5", "--method", "ice"], 2, "ice"),
    ],
)
def test_bad_input_to_tune_is_one_line(refused: Refused, arguments: list[str], status: int, said: str) -> None:
    ended, line = refused(tune.main, *arguments)
    assert ended == status and said in line, line


def test_bad_input_to_replay_is_one_line(tmp_path: Path, written: Path, refused: Refused) -> None:
    assert refused(replay.main, str(tmp_path / "nowhere"))[0] == 1
    (written / MANIFEST).write_text("{")
    broken = run("tvmopt.replay", str(written))
    assert broken.returncode == 1 and len(broken.stderr.strip().splitlines()) == 1, broken.stderr
    assert "Traceback" not in broken.stderr


@pytest.mark.slow
def test_ctrl_c_leaves_a_log_that_replays(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tvmopt.tune", "--kernels", "1", "--trials", "500", "--log-dir", str(tmp_path)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "COLUMNS": "200"})
    deadline = time.monotonic() + 120
    while not (logs := [p for p in tmp_path.glob(f"*/*/{RECORDS}") if p.read_text().count("\n") >= 3]):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "the same command goes on from it" in said and "Traceback" not in said
    path = logs[0].parent
    log, manifest = Log.read(path), read_manifest(path)
    assert manifest.status == "interrupted" and manifest.trials <= len(log.trials)
    assert len(log.records) >= 3

    # On what claims to be another machine it replays, and says so.
    data = json.loads((path / MANIFEST).read_text())
    data["machine"]["name"] = "Some other CPU"
    (path / MANIFEST).write_text(json.dumps(data))
    done = run("tvmopt.replay", str(path), "--strict", "--json", str(tmp_path / "replay.json"))
    assert done.returncode == 0, done.stderr
    assert "Some other CPU in the log" in done.stderr
    found = json.loads((tmp_path / "replay.json").read_text())
    assert {kernel["status"] for kernel in found["kernels"]} <= {"hit", "manual", "original"}
    assert found["replayed_ms"] > 0
