"""A Python process of our own that answers requests, with time limits: both ends of the pipe.

A request is `(method, arguments)`; its answer is `("ok", value)`, `("error", one line)`, or, from a process that ends
with it, `("broken", one line)`; each is pickled with its length in front. The process gets its threads' environment
before TVM is loaded, a session of its own (so that Ctrl-C reaches only us, who then end it), and ends by itself when
our end of its pipe closes, or at once when we are gone.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from tvmopt.errors import TvmoptError
from tvmopt.lifetime import end_with_parent

# The status of a process that says itself that it is of no use any more.
BROKEN = 71


class WorkerError(TvmoptError):
    """A request that failed inside the process, which lives on."""


class WorkerDied(WorkerError):
    """The process crashed while it worked on a request; it is gone."""


class WorkerBroken(WorkerError):
    """A request that failed and left the process unfit for others; it is ended, and another one may serve."""


class WorkerTimeout(WorkerError):
    """The process took longer than it was given, and was ended."""


class Process:
    """A process running `module`, and one request at a time to it."""

    def __init__(self, module: str, environment: dict[str, str], *, start_limit_s: float = 120.0) -> None:
        import tvmopt

        # The package may come from a checkout that is only on this process's path.
        root = str(Path(tvmopt.__file__).resolve().parent.parent)
        paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
        env = {**os.environ, **environment, "PYTHONPATH": os.pathsep.join(paths)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if os.environ.get("TVMOPT_WORKER_STDERR") else subprocess.DEVNULL,
            env=env,
            start_new_session=True,
        )
        self._fresh_limit = start_limit_s

    def ask(self, method: str, *arguments: Any, limit_s: float) -> Any:
        """The answer to one request.

        Raises:
            WorkerError: the request failed. WorkerBroken, WorkerDied, WorkerTimeout: so did the process.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        # The first request also waits for the process to start.
        limit_s, self._fresh_limit = limit_s + self._fresh_limit, 0.0
        try:
            send(stdin, (method, arguments))
            status, value = _receive_within(stdout, limit_s)
        except TimeoutError:
            self.close()
            raise WorkerTimeout(f"no answer within {limit_s:.0f} s") from None
        except (EOFError, OSError):
            code = self._process.wait()
            self.close()
            raise WorkerDied(f"the process ended with {_ending(code)}") from None
        if status == "broken":
            self.close()
            raise WorkerBroken(value)
        if status != "ok":
            raise WorkerError(value)
        return value

    @property
    def alive(self) -> bool:
        """Whether it can still be asked."""
        return self._process.poll() is None

    def close(self) -> None:
        """Ends the process at once."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()


def serve(handler: Any, is_sound: Callable[[], bool] = lambda: True) -> None:
    """The process's side: calls `handler`'s methods as asked until the other end closes the pipe.

    After a request that failed, `is_sound` says whether the process is fit for another one; it ends where not.
    What TVM or LLVM print goes to standard error, as standard output carries the answers.
    """
    end_with_parent()
    outgoing = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    while True:
        try:
            method, arguments = _receive(sys.stdin.buffer)
        except EOFError:
            return
        try:
            answer = ("ok", getattr(handler, method)(*arguments))
        except Exception as error:  # whatever a request does wrong is told to who asked, in one line
            from tvmopt.errors import one_line

            answer = ("error" if is_sound() else "broken", f"{type(error).__name__}: {one_line(error)}")
        send(outgoing, answer)
        if answer[0] == "broken":
            # At once: taking down what no longer answers may take for ever.
            sys.stderr.flush()
            os._exit(BROKEN)


def send(stream: Any, value: Any) -> None:
    """Writes one message."""
    data = pickle.dumps(value)
    stream.write(struct.pack("<Q", len(data)) + data)
    stream.flush()


def _receive(stream: BinaryIO) -> Any:
    (length,) = struct.unpack("<Q", _read(stream, 8))
    return pickle.loads(_read(stream, length))


def _read(stream: BinaryIO, count: int) -> bytes:
    data = stream.read(count)
    if len(data) < count:
        raise EOFError
    return data


def _receive_within(stream: Any, limit_s: float) -> Any:
    """`_receive` from a pipe, giving up after `limit_s`."""
    deadline = time.monotonic() + limit_s
    data = b""
    wanted = 8
    while len(data) < wanted:
        ready, _, _ = select.select([stream], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            raise TimeoutError
        more = os.read(stream.fileno(), 1 << 16)
        if not more:
            raise EOFError
        data += more
        if len(data) >= 8:
            wanted = 8 + struct.unpack("<Q", data[:8])[0]
    return pickle.loads(data[8:])


def _ending(code: int) -> str:
    import signal

    return signal.Signals(-code).name if code < 0 else f"status {code}"
