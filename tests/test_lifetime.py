"""A command that is told to end takes its workers along; one that is killed leaves none behind."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tvmopt.lifetime import ended_by_sigterm
from tvmopt.tuning.process import Process

LIMIT_S = 60.0
_PARENT = """
import sys
from tvmopt.options import run

def main(argv):
    if sys.argv[1] == "tuning":
        from tvmopt.tuning.process import Process
        worker = Process("tests.hanging_worker", {})
        end, pid = worker.close, worker._process.pid
        worker.ask("there", limit_s=60)
        ask = lambda: worker.ask("hang", limit_s=1000)
    else:
        from bench.process import Worker
        worker = Worker(1, [sys.executable, "-m", "tests.hanging_worker", "bench"])
        end, pid = worker.stop, worker.pid
        ask = lambda: worker.ask({}, 1000)
    try:
        print(pid, flush=True)
        ask()
    finally:
        end()
        print("ended it", flush=True)

sys.exit(run(main))
"""


def gone(pid: int) -> bool:
    """Whether a process has ended, collected by whoever took it over or not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc")
@pytest.mark.parametrize("kind", ["tuning", "bench"])
@pytest.mark.parametrize("number, status, said", [
    (signal.SIGTERM, 128 + signal.SIGTERM, "ended it\n"), (signal.SIGKILL, -signal.SIGKILL, ""),
])  # fmt: skip
def test_no_worker_is_left(kind: str, number: int, status: int, said: str) -> None:
    parent = subprocess.Popen([sys.executable, "-c", _PARENT, kind], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    # By now a bench worker may still be on its way to its first request, which is no different.
    time.sleep(1.0)
    parent.send_signal(number)
    rest = parent.stdout.read()
    assert (parent.wait(timeout=LIMIT_S), rest) == (status, said)
    deadline = time.monotonic() + LIMIT_S
    while not gone(pid):
        assert time.monotonic() < deadline, "the worker is still there"
        time.sleep(0.1)


def test_a_worker_outlives_the_thread_that_started_it() -> None:
    started: list[Process] = []
    thread = threading.Thread(target=lambda: started.append(Process("tests.hanging_worker", {})))
    thread.start()
    thread.join()
    (process,) = started
    try:
        for _ in range(2):
            assert process.ask("there", limit_s=LIMIT_S) == "yes"
            time.sleep(0.3)
    finally:
        process.close()


def test_sigterm_is_as_it_was_afterwards() -> None:
    with pytest.raises(SystemExit) as ended, ended_by_sigterm():
        signal.raise_signal(signal.SIGTERM)
    assert ended.value.code == 143 and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL

    def own(number: int, frame: object) -> None:
        """Somebody's own handler."""

    before = signal.signal(signal.SIGTERM, own)
    try:
        with ended_by_sigterm():
            assert signal.getsignal(signal.SIGTERM) is own
    finally:
        signal.signal(signal.SIGTERM, before)
