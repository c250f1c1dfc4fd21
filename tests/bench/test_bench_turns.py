"""Workers that crash, hang, answer with errors or spin; who gets how many turns."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.measure import quiet_for_all
from bench.process import Worker, WorkerError, cpu_seconds
from bench.quiet import Surroundings
from bench.results import counted
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
        return {"samples": [self.seconds * factor] * count, "waited": 0.0}

    def tell(self, request: dict[str, Any]) -> None:
        self.log.append(f"{self.name} told")

    def await_told(self, timeout_s: float) -> None:
        pass

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
    assert len(a.samples.seconds) == len(c.samples.seconds) == 30
    assert a.samples.rounds == [n // 3 for n in range(30)]
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
    assert len(noisy.samples.seconds) > 30
    assert not noisy.precise(settings)
    assert len(slow.samples.seconds) >= 3
    assert len(set(slow.samples.rounds)) == len(slow.samples.seconds)


class Weather:
    """A probe that sees neighbours in every second look from the third on, and a contender that suffers from them."""

    best: tuple[float, ...] = ()

    def __init__(self) -> None:
        self.looks = 0

    def look(self) -> tuple[float, float]:
        self.looks += 1
        self.best = (300.0, 300.0)
        return (300.0, 180.0) if self.busy() else (300.0, 296.0)

    def busy(self) -> bool:
        return self.looks % 8 in (5, 6)


class Disturbed(Fake):
    def __init__(self, weather: Weather) -> None:
        super().__init__("disturbed", [], seconds=0.001)
        self.weather = weather

    def ask(self, request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        answer = super().ask(request, timeout_s)
        if self.weather.busy():
            answer["samples"] = [2 * s for s in answer["samples"]]
        elif self.turns % 8 == 1:
            # A process of this machine, which the probe did not see: the system counts what was waited for it.
            answer["samples"] = [5 * s for s in answer["samples"]]
            answer["waited"] = 0.5
        return answer


def test_turns_in_which_others_used_the_cores_do_not_count() -> None:
    weather = Weather()
    contender = Contender("disturbed", Disturbed(weather))
    take_turns([contender], Settings(), lambda name, text: None, weather)
    counted, enough = contender.counted(contender.samples, weather.best)
    assert enough
    assert len(counted.seconds) >= 30
    assert set(counted.seconds) == {0.001}
    assert max(contender.samples.seconds) == 0.005  # kept, beside those that count
    assert contender.precise(Settings(), weather.best)
    # Without the probe the same samples are not precise, and nobody could say why.
    assert not contender.precise(Settings(), ())


def test_where_hardly_any_turn_is_quiet_all_count_and_nothing_is_precise() -> None:
    weather = Weather()
    contender = Contender("disturbed", Disturbed(weather))
    take_turns([contender], Settings(time_limit_s=0.2), lambda name, text: None, weather)
    counted, enough = contender.counted(contender.samples, (400.0, 400.0))
    assert not enough
    assert counted == contender.samples
    assert not contender.precise(Settings(), (400.0, 400.0))


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="waiting times come from /proc")
def test_waiting_for_a_core_is_seen() -> None:
    """More spinning processes than cores: some of them wait; one alone on the machine hardly does."""
    from bench.process import run_delay

    code = "while True: pass"
    spinning = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2 * len(os.sched_getaffinity(0)))]
    try:
        time.sleep(0.3)
        before = [run_delay(one.pid) for one in spinning]
        time.sleep(1.0)
        waited = [run_delay(one.pid) - start for one, start in zip(spinning, before, strict=True)]
    finally:
        for one in spinning:
            one.kill()
            one.wait()
    assert sum(waited) > 0.5 * len(os.sched_getaffinity(0))
    assert run_delay(spinning[0].pid) == 0.0


def test_cold_calls_find_nothing_in_the_caches() -> None:
    from bench.cold import Flush, take_cold
    from tvmopt.machine import detect

    machine = detect(1)
    data = np.ones(machine.l2 // 8)
    flush = Flush(1, (machine.l1, machine.l2, machine.l3))
    warm = []
    for _ in range(50):
        start = time.perf_counter()
        data.sum()
        warm.append(time.perf_counter() - start)
    cold = take_cold(data.sum, flush, 10, budget_s=30)
    assert len(cold) == 10
    assert min(cold) > 1.2 * min(warm)
    assert len(take_cold(data.sum, flush, 10, budget_s=0.0)) == 1


def test_quiet_turns_count_for_all_or_for_none() -> None:
    """The quiet turns of one beside all turns of another would compare the neighbours."""
    weather = Weather()
    seen, unseen, slow = (Contender(name, Disturbed(weather)) for name in ("seen", "unseen", "slow"))
    take_turns([seen], Settings(), lambda name, text: None, weather)
    take_turns([unseen], Settings(), lambda name, text: None, weather)
    assert quiet_for_all([seen, unseen], weather.best)
    busy = Surroundings((300.0, 150.0), (300.0, 150.0), 0.0)
    unseen.surroundings = dict.fromkeys(unseen.surroundings, busy)
    assert not quiet_for_all([seen, unseen], weather.best)
    # A contender of three turns of seconds each has no say.
    slow.samples.add([1.0], 0)
    slow.surroundings = {0: busy}
    assert quiet_for_all([seen, slow], weather.best)
    rows = [
        {"samples_ms": [1.0, 9.0] * 6, "rounds": list(range(12)), "quiet": [True, False] * 6},
        {"samples_ms": [2.0, 8.0] * 6, "rounds": list(range(12)), "quiet": [False] * 12},
    ]
    assert counted(rows[0])[0][0] == [1.0] * 6
    assert [len(samples) for samples, _ in counted(*rows)] == [12, 12]
