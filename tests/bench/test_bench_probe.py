"""The probe between turns: awake, each of its threads on a core of its own, and soon asleep again."""

from __future__ import annotations

import os
import statistics
import time
from pathlib import Path

import pytest

from bench.process import Worker, worker_command
from bench.quiet import Probe
from tvmopt.machine import available_cores, threads_environment

CORES = available_cores()
linux = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinities here")
several = pytest.mark.skipif(CORES < 2, reason="this process may use one CPU only")


@linux
@several
def test_each_thread_of_the_probe_has_a_core_of_its_own() -> None:
    probe = Probe(CORES)
    try:
        probe.start()
        probe.look()
        pid = probe._worker.pid
        affinities = [os.sched_getaffinity(int(task)) for task in os.listdir(f"/proc/{pid}/task")]
        alone = [tuple(cpus) for cpus in affinities if len(cpus) == 1]
        assert len(alone) == len(set(alone)) == CORES
    finally:
        probe.stop()


@linux
@several
@pytest.mark.slow
def test_a_probe_that_slept_measures_what_one_at_work_does() -> None:
    """Cores fresh from sleep run at a fraction of their speed for a millisecond: that is not a neighbour."""
    worker = Worker(CORES, worker_command("kernel_worker"))
    try:
        worker.ask({"do": "watch", "threads": CORES}, 120)

        def looks(pause_s: float) -> float:
            found = []
            for _ in range(30):
                time.sleep(pause_s)
                found.append(min(worker.ask({"do": "references"}, 60)["references"][:3]))
            return statistics.median(found)

        # In turns, so that a neighbour who stays for a while meets both.
        pairs = [(looks(0.0), looks(0.05)) for _ in range(2)]
        assert max(slept / awake for awake, slept in pairs) > 0.95
    finally:
        worker.stop()


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="thread times come from /proc")
@several
def test_the_pool_sleeps_soon_after_its_work() -> None:
    worker = Worker(CORES, worker_command("kernel_worker"))
    try:
        worker.ask({"do": "watch", "threads": CORES}, 120)
        took = []
        for _ in range(5):
            worker.ask({"do": "references"}, 60)
            began = time.monotonic()
            assert worker.settle()
            took.append(time.monotonic() - began)
        # TVM's own pool spins for 0.1 to 0.2 s, and every turn of every contender waited for that.
        assert min(took) < 0.1
    finally:
        worker.stop()


def test_a_spin_count_of_ones_own_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "TVM_THREAD_POOL_SPIN_COUNT"
    monkeypatch.delenv(name, raising=False)
    assert int(threads_environment(1)[name]) < 300_000
    monkeypatch.setenv(name, "300000")
    assert threads_environment(1)[name] == "300000"
