"""How a command and its worker processes end: together, also where the command is told to by a signal, or killed."""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_LOOK_S = 0.1


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Inside of it SIGTERM (`timeout`, a scheduler) raises SystemExit, so that whoever started workers ends them.

    A handler that is there already stays. Only the main thread gets signals.
    """
    in_charge = threading.current_thread() is threading.main_thread()
    if not in_charge or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _raise)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _raise(number: int, frame: FrameType | None) -> None:
    # What the shell says of a process that a signal has ended.
    sys.exit(128 + number)


def end_with_parent() -> None:
    """Has this process, and what it started, end when its parent is gone, whatever it is busy with then.

    Its standard input is a pipe from the parent, which shows that without a look now and then, in the middle of which
    somebody may be timed. Linux's PR_SET_PDEATHSIG will not do: it goes by the thread that started the process, and
    tuning starts workers from threads that end before them.
    """
    threading.Thread(target=_watch, args=(os.getppid(),), daemon=True).start()


def _watch(parent: int) -> None:
    poller = select.poll()
    # Asks for nothing, so that only the other end's closing is told.
    poller.register(0, 0)
    poller.poll()
    # A parent that is there still may close the pipe and wait for the last answers.
    while os.getppid() == parent:
        time.sleep(_LOOK_S)
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)
