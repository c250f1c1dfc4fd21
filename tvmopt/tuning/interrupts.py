"""Ctrl-C that is not lost.

Python raises KeyboardInterrupt wherever it happens to be, and that may be inside a function that TVM called back: there
it becomes some error of TVM's, and is taken for a candidate's that failed. So that it was asked for is remembered too.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType


class Interrupts:
    """While in its `with`, `check` raises KeyboardInterrupt if Ctrl-C was pressed since."""

    def __init__(self) -> None:
        self.asked = False
        self._before: object = None

    def __enter__(self) -> Interrupts:
        # Signals reach the main thread only; elsewhere there is nothing to remember.
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, kind: type | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)  # type: ignore[arg-type]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        raise KeyboardInterrupt

    def check(self) -> None:
        """Raises what may have been lost."""
        if self.asked:
            raise KeyboardInterrupt
