"""How a tuning session goes: a live table on a terminal, plain lines elsewhere. On standard error."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.table import Table

if TYPE_CHECKING:
    from tvmopt.tuning.manifest import Manifest
    from tvmopt.tuning.session import Session
    from tvmopt.tuning.task import Task


class Progress:
    """The table of a session. Drawn between batches only: drawing takes CPU from who is timed."""

    def __init__(self, title: str) -> None:
        self._console = Console(stderr=True, emoji=False)
        self._title = title
        self._live = Live(console=self._console, auto_refresh=False, transient=False)

    def __enter__(self) -> Progress:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, kind: type | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def show(self, session: Session) -> None:
        """Draws the table anew; a plain line where there is no terminal."""
        if self._console.is_terminal:
            self._live.update(table(session, self._title), refresh=True)
        else:
            self.note(summary(session))

    def note(self, text: str) -> None:
        """A line above the table."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


def summary(session: Session) -> str:
    """One line: how far, how long, how long still."""
    if session.deciding_since is None:
        text = f"{session.measured} of at most {session.planned} candidates, {session.elapsed:.0f} s"
    else:
        text = f"{session.measured} candidates, {session.elapsed:.0f} s, the best of each once more against manual: "
        text += f"{session.decided} of {len(session.tasks)} kernels"
    left = eta(session)
    return text + (f", about {left:.0f} s to go" if left is not None else "")


def eta(session: Session) -> float | None:
    """Seconds until the first of trials and time budget is reached, or all kernels decided, by the pace so far."""
    if session.deciding_since is not None:
        pace = (session.elapsed - session.deciding_since) / session.decided if session.decided else None
        return pace and pace * (len(session.tasks) - session.decided)
    if not session.measured:
        return None
    left = session.elapsed / session.measured * max(0, session.planned - session.measured)
    budget = session.settings.time_budget
    return left if budget is None else max(0.0, min(left, budget - session.elapsed))


def table(session: Session, title: str) -> Table:
    """Every kernel of the session: what it is, what was tried, the best against manual."""
    drawn = Table(title=title, caption=summary(session), title_justify="left", caption_justify="left", box=None)
    for heading in ("", "kernel", "shapes", "calls", "tried", "manual", "best", "GFLOP/s", "speedup"):
        right = heading not in ("kernel", "shapes")
        drawn.add_column(heading, justify="right" if right else "left", no_wrap=heading != "shapes")
    for task in session.tasks:
        drawn.add_row(*_row(task))
    return drawn


def _row(task: Task) -> list[str]:
    kernel = task.kernel
    tried = str(task.measured)
    if task.failures:
        tried += f" ({sum(task.failures.values())} failed)"
    cells = [str(task.index), kernel.op, kernel.shape, str(kernel.calls), tried]
    if task.broken:
        return [*cells, task.broken[:40], "", "", ""]
    if task.baseline is None or task.ratio is None:
        return [*cells, "", "", "", ""]
    best = task.baseline * task.ratio
    return [
        *cells, f"{task.baseline * 1e6:.1f} us", f"{best * 1e6:.1f} us",
        f"{kernel.flops / best * 1e-9:.0f}" if kernel.flops else "", task.verdict or f"{1 / task.ratio:.2f}x",
    ]  # fmt: skip


def result_lines(manifest: Manifest) -> list[str]:
    """What a search came to: a line a kernel, and the whole network beside manual's."""
    lines = []
    for index, kernel in enumerate(manifest.plan):
        seconds, manual = kernel.seconds, kernel.baseline_seconds
        times = f"{seconds * 1e6:9.1f} us, manual {manual * 1e6:9.1f} us" if seconds and manual else "not measured"
        lines.append(f"{index:3d}  {kernel.name[:44]:<44} {kernel.source:<12} {times}")
    network = manifest.network
    if "ratio" in network:
        lines.append(
            f"whole network: manual {network['manual_ms']:.3f} ms, auto {network['auto_ms']:.3f} ms, "
            f"{1 / network['ratio']:.2f}x turn by turn"
        )
    if network.get("kept") == "manual":
        lines.append("auto is not faster: manual's plan is kept")
    return lines
