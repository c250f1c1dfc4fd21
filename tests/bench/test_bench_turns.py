"""Workers that crash, hang, answer with errors or spin; who gets how many turns."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bench.process import Worker, WorkerError, cpu_seconds
from bench.turns import Contender, Settings, take_turns

_WORKER = """
import json, os, signal, sys, threading, time
for line in sys.stdin:
    do = json.loads(line)["do"]
    if do == "crash":
        print("last words", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGSEGV)
    if do == "leave":
        sys.exit(3)
    if do == "hang":
        time.sleep(60)
    if do == "spin":
        def work(until=time.monotonic() + 0.8):
            while time.monotonic() < until:
                pass
        threading.Thread(target=work).start()
    print(json.dumps({"error": "no good", "exit_code": 2} if do == "fail" else {"ok": True}), flush=True)
"""


@pytest.fixture
def worker(tmp_path: Path) -> Any:
    script = tmp_path / "fake.py"
    script.write_text(_WORKER)
    made = Worker(1, [sys.executable, str(script)])
    yield made
    made.stop()


def test_answers_and_errors(worker: Worker) -> None:
    assert worker.ask({"do": "well"}, 10)["ok"]
    with pytest.raises(WorkerError, match="no good") as caught:
        worker.ask({"do": "fail"}, 10)
    assert caught.value.exit_code == 2
    assert worker.ask({"do": "well"}, 10)["ok"]


@pytest.mark.parametrize(("do", "message"), [("crash", "SIGSEGV: last words"), ("leave", "status 3")])
def test_a_death_is_told_in_one_line(worker: Worker, do: str, message: str) -> None:
    with pytest.raises(WorkerError, match=message):
        worker.ask({"do": do}, 10)
    with pytest.raises(WorkerError):
        worker.ask({"do": "well"}, 10)


def test_no_answer_in_time_ends_the_process(worker: Worker) -> None:
    with pytest.raises(WorkerError, match="no answer"):
        worker.ask({"do": "hang"}, 0.3)
    assert not os.path.exists(f"/proc/{worker.pid}/cmdline") or cpu_seconds(worker.pid) == 0


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="thread times come from /proc")
def test_settle_waits_for_a_spinning_pool(worker: Worker) -> None:
    worker.ask({"do": "well"}, 10)
    assert worker.settle()
    worker.ask({"do": "spin"}, 10)
    assert worker.settle()
    asleep = cpu_seconds(worker.pid)
    time.sleep(0.2)
    assert cpu_seconds(worker.pid) - asleep < 0.01


class Fake:
    """A worker in this process: `seconds` a call, dying at turn `dies`."""

    running: list[str]

    def __init__(self, name: str, log: list[str], seconds: float = 0.01, noise: float = 0.0, dies: int = -1) -> None:
        self.name, self.log, self.seconds, self.noise, self.dies = name, log, seconds, noise, dies
        self.turns = 0
        self.stopped = False

    def ask(self, request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        self.log.append(self.name)
        if self.turns == self.dies:
            raise WorkerError("the process was ended by SIGSEGV")
        self.turns += 1
        factor = 1 + self.noise * (self.turns % 2)
        count = request["samples"] if self.seconds < request["budget_s"] else 1
        time.sleep(min(self.seconds, 0.02))
        return {"samples": [self.seconds * factor] * count}

    def settle(self) -> bool:
        return True

    def stop(self) -> None:
        self.stopped = True


def test_turns_are_mixed_and_a_death_ends_one_row_only() -> None:
    log: list[str] = []
    workers = {name: Fake(name, log, dies=2 if name == "b" else -1) for name in "abc"}
    contenders = [Contender(name, worker) for name, worker in workers.items()]
    take_turns(contenders, Settings(), lambda name, text: None)
    a, b, c = contenders
    assert len(a.samples) == len(c.samples) == 30
    assert a.rounds == [n // 3 for n in range(30)]
    assert b.error == "the process was ended by SIGSEGV"
    assert workers["b"].stopped
    orders = {tuple(log[i : i + 3]) for i in range(0, 9, 3)}
    assert len(orders) > 1
    assert all(sorted(order) == ["a", "b", "c"] for order in orders)


def test_noise_ends_with_the_time_limit_and_a_slow_call_gets_three_samples() -> None:
    noisy = Contender("noisy", Fake("noisy", [], seconds=0.001, noise=0.5))
    slow = Contender("slow", Fake("slow", [], seconds=1.0))
    settings = Settings(time_limit_s=0.6)
    take_turns([noisy, slow], settings, lambda name, text: None)
    assert len(noisy.samples) > 30
    assert not noisy.precise(settings)
    assert len(slow.samples) >= 3
    assert len(set(slow.rounds)) == len(slow.samples)
