"""What commands do about a GPU, without one: refused options, a log made on one, a server's sessions."""

from __future__ import annotations

import argparse
import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tvmopt.machine
import tvmopt.prune
import tvmopt.replay
import tvmopt.tune
from tvmopt import replay
from tvmopt.errors import TargetError, UsageError
from tvmopt.machine import GpuMachine, named_gpu
from tvmopt.options import BuildOptions, add_build_options, build_options
from tvmopt.runtime import gpu
from tvmopt.tune import tune
from tvmopt.tuning.manifest import Manifest, _compared, target_dict, versions

HERE = dataclasses.replace(named_gpu("sm_86"), assumed=())


def parsed(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_build_options(parser)
    return parser.parse_args(arguments)


@pytest.mark.parametrize("option", ["--cuda-graphs", "--fast-math"])
def test_what_only_a_gpus_code_can_have_is_refused_for_a_cpu(option: str) -> None:
    name = option[2:].replace("-", "_")
    with pytest.raises(UsageError, match=f"^{option} .*--target cuda$"):
        build_options(parsed(option))
    # As tvmopt.compile makes them.
    with pytest.raises(UsageError, match=option):
        BuildOptions(**{name: True}).machine()
    asked = build_options(parsed(option, "--target", "cuda", "--arch", "sm_90"))
    assert getattr(asked, name) and isinstance(asked.machine(), GpuMachine)


@pytest.mark.parametrize("option", ["--cuda-graphs", "--fast-math"])
def test_what_does_nothing_is_no_option(option: str, refused: Callable[..., tuple[int, str]]) -> None:
    for command in (tvmopt.tune, tvmopt.replay, tvmopt.prune):
        assert refused(command.main, option, "x")[0] == 2
    with pytest.raises(UsageError, match=option[2:].replace("-", "_")):
        tune(options=BuildOptions(target="cuda", **{option[2:].replace("-", "_"): True}))


def log_of_a_gpu(path: Path) -> Path:
    """A tuning log made on a GPU of sm_90."""
    machine = named_gpu("sm_90")
    model = {"spec": "digits_cnn", "name": "digits_cnn", "digest": "0123456789abcdef"}
    path.mkdir()
    Manifest(model=model, target=target_dict(machine), machine=_compared(machine), versions=versions()).write(path)
    return path


def test_a_gpus_log_needs_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = log_of_a_gpu(tmp_path / "log")
    monkeypatch.setattr(tvmopt.machine, "detect_gpu", lambda cores: None)
    monkeypatch.setattr(gpu, "detect_gpu", lambda: None)
    with pytest.raises(TargetError, match=r"a log for a GPU \(sm_90\).*there is no CUDA GPU here$"):
        replay.main([str(path)])


def test_a_gpus_log_is_replayed_on_the_one_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = log_of_a_gpu(tmp_path / "log")
    monkeypatch.setattr(tvmopt.machine, "detect_gpu", lambda cores: HERE)
    monkeypatch.setattr(gpu, "runtime_missing", lambda: None)
    seen: list[Any] = []

    class Stop(Exception):
        """Far enough."""

    def open_log(path: Path, machine: Any, model: Any) -> Any:
        seen.append(machine)
        raise Stop

    monkeypatch.setattr("tvmopt.tuning.resolve.open_log", open_log)
    model: Any = object()
    with pytest.raises(Stop):
        replay.replay(path, model=model)
    assert seen == [HERE]


_SERVER = """
import torch
from tvmopt import serve
from tvmopt.tuning.fleet import Fleet

def is_available():
    raise SystemExit("CUDA is started in the server, and starts in no session any more")

torch.cuda.is_available = is_available
Fleet.summary = lambda self: {}
serve.serve = lambda *_: print("serves")
serve.main(["--tracker", "127.0.0.1:9190", "--key", "k", "--host", "127.0.0.1"])
"""


def test_a_server_leaves_cuda_to_its_sessions() -> None:
    done = subprocess.run([sys.executable, "-c", _SERVER], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "serves" in done.stdout, done.stderr
