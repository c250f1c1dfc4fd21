"""What is going on, on standard error: drawn between turns only, because drawing takes CPU from who is timed."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bars


class Progress:
    """One line a contender. Where standard error is no terminal, one plain line for each thing that happens."""

    def __init__(self, title: str, contenders: Sequence[str], samples: int) -> None:
        self._console = Console(stderr=True, emoji=False)
        self._bars = Bars(
            TextColumn("{task.description:<22}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[text]}"),
            console=self._console, auto_refresh=False, transient=True,
        )  # fmt: skip
        self._title = title
        self._tasks = {
            name: self._bars.add_task(name, total=samples, text="waiting") for name in ("reference", *contenders)
        }

    def __enter__(self) -> Progress:
        if self._console.is_terminal:
            self._bars.start()
        return self

    def __exit__(self, kind: type | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if self._console.is_terminal:
            self._bars.stop()

    def report(self, name: str, text: str) -> None:
        """Shows that contender `name` is at `text`; "12 samples" moves its bar."""
        samples = int(text.split()[0]) if text.endswith(" samples") else None
        if not self._console.is_terminal:
            # Every sample would be a line.
            if samples is None:
                self._console.print(f"{self._title}: {name}: {text}", markup=False, highlight=False, soft_wrap=True)
            return
        task = self._tasks[name]
        if samples is not None:
            total = self._bars.tasks[task].total or 0
            self._bars.update(task, completed=samples, total=max(total, samples))
        self._bars.update(task, text=text)
        self._bars.refresh()
