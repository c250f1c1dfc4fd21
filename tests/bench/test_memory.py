"""`bench.memory`: what deployed networks hold, in processes that only load and call them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import memory
from tvmopt.errors import UsageError


@pytest.mark.slow
def test_a_network_holds_its_weights_and_no_compiler(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "memory.json"
    assert memory.main(["digits_cnn", "--contenders", "manual", "--json", str(file)]) == 0
    (row,) = json.loads(file.read_text())["environment"]["memory"]
    assert row["error"] is None
    assert 0 < row["imported"] <= row["loaded"] <= row["called"]
    own = row["called"] - row["imported"]
    # Its file is mapped, not copied, and a small network adds hardly anything else.
    assert row["file_bytes"] * 0.5 < own < row["file_bytes"] + 16 * 2**20
    assert "digits_cnn" in capsys.readouterr().out


@pytest.mark.slow
def test_what_fails_is_named_and_the_run_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert memory.main(["absent.pt2", "digits_cnn", "--contenders", "manual"]) == 1
    printed = capsys.readouterr()
    assert "absent.pt2, manual: absent.pt2: no such file\n" in printed.err
    assert "`digits_cnn`" in printed.out


def test_an_unknown_contender_is_named() -> None:
    with pytest.raises(UsageError, match="--contenders tensorrt: unknown"):
        memory.main(["--contenders", "tensorrt"])
