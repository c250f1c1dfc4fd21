"""A worker as its parent sees it: a process that is asked and answers, may die, and sleeps when it is not asked."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tvmopt.errors import TvmoptError
from tvmopt.machine import threads_environment

# A sleeping process uses no CPU; 1% of an interval is left for timers that tick. Where the system says which threads
# want to run, and counts their time to the nanosecond, a short interval shows what one of a coarse clock's ticks does.
_QUIET_SHARE = 0.01
_QUIET_INTERVAL_S = 0.005 if os.path.isdir("/proc/self/task") else 0.02
_SPINNING_S = 0.001
_SETTLE_LIMIT_S = 3.0


class WorkerError(TvmoptError):
    """A worker that answered with an error, died, or did not answer in time; `status` is a command's for it."""

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.exit_code = status


# For memory in pages of 2 MiB, where the C library (glibc from 2.35) and the system offer them. Which pages of 4 KiB a
# process was given decides what of a kernel's data meets in L2: up to 10% of its time, for as long as it lives.
LARGE_PAGES = {
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=4294967296:"
    "glibc.malloc.trim_threshold=4294967296:glibc.malloc.top_pad=4194304"
}


def worker_command(module: str = "worker") -> list[str]:
    """How a worker is started, from a checkout (`bench`) and from a wheel (`tvmopt.bench`) alike."""
    return [sys.executable, "-m", f"{__package__}.{module}"]


class Worker:
    """One worker process with `threads` threads for every library it may load, and more to its environment if given."""

    def __init__(
        self, threads: int, command: Sequence[str] | None = None, environment: Mapping[str, str] | None = None
    ) -> None:
        # The top-level package this file is part of has to be found in the worker as it was here.
        top = sys.modules[__name__.partition(".")[0]]
        root = Path(str(top.__file__)).resolve().parents[1]
        path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
        self._log = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 (closed in stop)
        self._process = subprocess.Popen(
            list(command or worker_command()),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env={**(environment or {}), **os.environ, **threads_environment(threads), "PYTHONPATH": path},
            # A group of its own: what it starts ends with it, and Ctrl-C reaches the parent alone, which ends it.
            start_new_session=True,
        )
        self._buffer = b""
        self._owed = 0

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    def tell(self, request: dict[str, Any]) -> None:
        """Hands over a request and does not wait; `await_told` does."""
        self._send(request)
        self._owed += 1

    def await_told(self, timeout_s: float) -> None:
        """Waits until what was told is done; raises WorkerError where it failed."""
        while self._owed:
            self._owed -= 1
            self._answer(timeout_s)

    def ask(self, request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """The answer to a request; raises WorkerError, and ends the process, where there is none."""
        self.await_told(timeout_s)
        self._send(request)
        return self._answer(timeout_s)

    def _send(self, request: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except (OSError, ValueError):
            # The pipe is broken, or was closed by `stop`.
            raise self._died() from None

    def _answer(self, timeout_s: float) -> dict[str, Any]:
        answer = json.loads(self._read_line(timeout_s))
        if "error" in answer:
            raise WorkerError(answer["error"], int(answer.get("exit_code", 1)))
        return dict(answer)

    def _read_line(self, timeout_s: float) -> bytes:
        assert self._process.stdout is not None
        pipe, until = self._process.stdout.fileno(), time.monotonic() + timeout_s
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([pipe], [], [], max(0.0, until - time.monotonic()))
            if not ready:
                self.stop()
                raise WorkerError(f"no answer after {timeout_s:.0f} s, ended")
            part = os.read(pipe, 1 << 16)
            if not part:
                raise self._died()
            self._buffer += part
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _died(self) -> WorkerError:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=10)
        code = self._process.returncode
        if code is None:
            how = "closed its pipe"
        elif code < 0:
            how = f"was ended by {signal.Signals(-code).name}"
        else:
            how = f"ended with status {code}"
        last = self._last_words()
        self.stop()
        return WorkerError(f"the process {how}" + (f": {last}" if last else ""))

    def _last_words(self) -> str:
        if self._log.closed:
            return ""
        self._log.seek(0)
        lines = [line.strip() for line in self._log.read()[-5000:].splitlines() if line.strip()]
        return lines[-1][:200] if lines else ""

    def settle(self) -> bool:
        """Waits until no thread of the process runs any more; False where one still did after three seconds.

        Thread pools spin for a while after their work. Their settings are their own, so this waits them out.
        """
        until = time.monotonic() + _SETTLE_LIMIT_S
        while time.monotonic() < until:
            if _runnable(self.pid):
                time.sleep(_SPINNING_S)
                continue
            before = cpu_seconds(self.pid)
            time.sleep(_QUIET_INTERVAL_S)
            used = cpu_seconds(self.pid) - before
            if used <= _QUIET_SHARE * _QUIET_INTERVAL_S and not _runnable(self.pid):
                return True
        return False

    def stop(self) -> None:
        """Ends the process and whatever it started; harmless when it has ended."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=10)
        self._log.close()


def cpu_seconds(pid: int) -> float:
    """CPU time of all threads of a process so far, in nanosecond steps where the kernel counts them; 0 when gone."""
    total = 0
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{task}/schedstat") as stat:
                total += int(stat.read().split()[0])
        return total / 1e9
    except OSError:
        return _cpu_seconds_coarse(pid)


def run_delay(pid: int) -> float:
    """Seconds that threads of a process have waited for a core while they could have run; 0 where it isn't counted."""
    total = 0
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError, IndexError), open(f"/proc/{pid}/task/{task}/schedstat") as stat:
                total += int(stat.read().split()[1])
    except OSError:
        pass
    return total / 1e9


def thread_ids() -> set[int]:
    """The threads of this process; none where the system does not list them."""
    with contextlib.suppress(OSError):
        return {int(task) for task in os.listdir("/proc/self/task")}
    return set()


def pin(threads: Sequence[int]) -> None:
    """Gives each of some threads of this process a CPU of its own; does nothing where that cannot be."""
    if hasattr(os, "sched_setaffinity"):
        cpus = sorted(os.sched_getaffinity(0))
        if len(threads) <= len(cpus):
            for thread, cpu in zip(threads, cpus, strict=False):
                os.sched_setaffinity(thread, {cpu})


def _runnable(pid: int) -> bool:
    """Whether a thread wants to run: on a busy machine it may do so for a while without getting any CPU time."""
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{task}/stat") as stat:
                # The state is the field behind the name, which is in parentheses and may hold any character.
                if stat.read().rpartition(")")[2].split()[0] == "R":
                    return True
    except OSError:
        pass
    return False


def _cpu_seconds_coarse(pid: int) -> float:
    import psutil

    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.Error:
        return 0.0
    return float(times.user + times.system)
