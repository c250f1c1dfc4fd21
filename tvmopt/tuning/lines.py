"""The lines of a tuning log, read and checked in Python before TVM sees any of them.

TVM's own loader segfaults on a blank line or a `{}`, and refuses a whole log for one torn line. So every line is
checked here, and what is wrong with one is said in one line: file, line number, what, and how to mend it.

The two database files are MetaSchedule's (`JSONDatabase`): a workload line is `[hash, base64 of the module]`, a record
line `[workload's line index, [trace, seconds, target, arguments]]`. A third file of ours, `trials.jsonl`, has one small
object for each candidate that was tried, failed ones included: a resumed search skips those.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from tvmopt.errors import LogError, one_line

WORKLOADS = "database_workload.json"
RECORDS = "database_tuning_record.json"
TRIALS = "trials.jsonl"
MANIFEST = "manifest.json"

_MEND = "restore the file, or tune again with --fresh"
# A module is serialised as an 8-byte little-endian length and that many bytes of JSON.
_HEADER = 8


@dataclass(frozen=True)
class Workload:
    """A kernel as the database holds it: `hash` (decimal), `module` as base64, and its line number from 1."""

    line: int
    hash: str
    module: str


@dataclass(frozen=True)
class Record:
    """A schedule for workload number `workload` (from 0); `body` is `[trace, seconds, target, arguments]`."""

    line: int
    workload: int
    body: list[Any]

    @property
    def seconds(self) -> float:
        """The mean time of the record's runs."""
        return float(sum(self.body[1]) / len(self.body[1]))


@dataclass(frozen=True)
class Trial:
    """One tried candidate.

    `kernel` is the kernel's key, `candidate` names the candidate within it, `status` is `ok` or why it failed;
    `seconds` and `ratio` (to manual's schedule, measured alternately with it) are there when it is `ok`. `elapsed_s` is
    how long the model had been searched by then, earlier runs included; logs of older versions do not have it.
    """

    kernel: str
    source: str
    candidate: str
    status: str
    seconds: float | None = None
    ratio: float | None = None
    rule: str | None = None
    version: int | None = None
    choices: dict[str, Any] = field(default_factory=dict)
    message: str = ""
    elapsed_s: float | None = None


@dataclass
class Contents:
    """All lines of a log. `torn` names the files whose last line was cut off in mid-write, and dropped."""

    workloads: list[Workload] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    trials: list[Trial] = field(default_factory=list)
    torn: list[str] = field(default_factory=list)


_Line = TypeVar("_Line")


def read(path: Path, *, repair: bool = False) -> Contents:
    """Reads and checks the log directory `path`.

    With `repair`, a last line that a killed process left half-written is cut off the file; anything else that is
    wrong is still an error.

    Raises:
        LogError: a file that is missing or damaged, named with the line.
    """
    if not path.is_dir():
        raise LogError(f"{path}: no tuning log here (tune the model first: python -m tvmopt.tune)")
    for name in (WORKLOADS, RECORDS):
        if not (path / name).is_file():
            raise LogError(f"{path / name}: missing from the tuning log; {_MEND}")
    contents = Contents()
    contents.workloads = _read_file(path / WORKLOADS, _workload, repair, contents.torn)
    count = len(contents.workloads)
    contents.records = _read_file(path / RECORDS, lambda n, o, w: _record(n, o, w, count), repair, contents.torn)
    if (path / TRIALS).is_file():
        contents.trials = _read_file(path / TRIALS, _trial, repair, contents.torn)
    return contents


def _read_file(path: Path, parse: Callable[[int, Any, Path], _Line], repair: bool, torn: list[str]) -> list[_Line]:
    data = path.read_bytes()
    parsed: list[_Line] = []
    start = 0
    for number, raw in enumerate(data.splitlines(keepends=True), 1):
        last = start + len(raw) == len(data)
        try:
            if last and not raw.endswith(b"\n"):
                raise LogError(f"{path}:{number}: the last line was cut off in mid-write; tuning again mends it")
            parsed.append(parse(number, _json(path, number, raw), path))
        except LogError:
            if not (repair and last and not raw.endswith(b"\n")):
                raise
            with path.open("r+b") as file:
                file.truncate(start)
            torn.append(path.name)
        start += len(raw)
    return parsed


def _json(path: Path, number: int, raw: bytes) -> Any:
    text = raw.decode("utf-8", errors="replace").strip()
    if not text:
        raise _wrong(path, number, "a blank line")
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise _wrong(path, number, f"not JSON ({error.msg} at column {error.colno})") from None


def _wrong(path: Path, number: int, what: str) -> LogError:
    return LogError(f"{path}:{number}: {what}; {_MEND}")


def _workload(number: int, value: Any, path: Path) -> Workload:
    if not (isinstance(value, list) and len(value) == 2 and all(isinstance(item, str) for item in value)):
        raise _wrong(path, number, "not a workload ([hash, module])")
    if not value[0].isdigit():
        raise _wrong(path, number, "the workload's hash is not a number")
    try:
        graph = json.loads(module_text(value[1]))
    except ValueError as error:
        raise _wrong(path, number, f"the workload's module is damaged ({one_line(error, 80)})") from None
    if not (isinstance(graph, dict) and isinstance(graph.get("nodes"), list) and "root_index" in graph):
        raise _wrong(path, number, "the workload's module is not a serialised one")
    return Workload(number, value[0], value[1])


def _record(number: int, value: Any, path: Path, workloads: int) -> Record:
    if not (isinstance(value, list) and len(value) == 2 and isinstance(value[1], list) and len(value[1]) == 4):
        raise _wrong(path, number, "not a tuning record ([workload, [trace, seconds, target, arguments]])")
    index, body = value
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < workloads:
        raise _wrong(path, number, f"names workload {index!r}, but {WORKLOADS} has {workloads} (0 to {workloads - 1})")
    trace, seconds, target, arguments = body
    if not _is_trace(trace):
        raise _wrong(path, number, "the record's trace is not [instructions, decisions]")
    if not (isinstance(seconds, list) and seconds and all(_is_time(item) for item in seconds)):
        raise _wrong(path, number, "the record has no valid run times")
    if not (isinstance(target, dict) and isinstance(target.get("kind"), str)):
        raise _wrong(path, number, "the record names no target")
    if not (isinstance(arguments, list) and all(_is_argument(item) for item in arguments)):
        raise _wrong(path, number, "the record's arguments are not [kind, dtype, shape] each")
    return Record(number, index, body)


def _is_trace(trace: Any) -> bool:
    if not (isinstance(trace, list) and len(trace) == 2 and all(isinstance(part, list) for part in trace)):
        return False
    instructions = all(
        isinstance(step, list) and len(step) == 4 and isinstance(step[0], str)
        and all(isinstance(part, list) for part in step[1:])
        for step in trace[0]
    )  # fmt: skip
    return instructions and all(isinstance(d, list) and len(d) == 2 and isinstance(d[0], int) for d in trace[1])


def _is_time(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value > 0


def _is_argument(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and isinstance(value[0], str) and isinstance(value[2], list)


def _trial(number: int, value: Any, path: Path) -> Trial:
    try:
        trial = Trial(**value)
    except TypeError:
        raise _wrong(path, number, "not a trial") from None
    texts = (trial.kernel, trial.source, trial.candidate, trial.status)
    if not all(isinstance(text, str) for text in texts) or not isinstance(trial.choices, dict):
        raise _wrong(path, number, "not a trial")
    if trial.status == "ok" and not (_is_time(trial.seconds) and _is_time(trial.ratio)):
        raise _wrong(path, number, "a trial that went well has no times")
    if trial.elapsed_s is not None and not _is_time(trial.elapsed_s):
        raise _wrong(path, number, "a trial's elapsed_s is not a number of seconds")
    return trial


def module_text(encoded: str) -> str:
    """The JSON text of a workload's module; raises ValueError where it is not one."""
    try:
        data = base64.b64decode(encoded, validate=True)
    except binascii.Error as error:
        raise ValueError(str(error)) from None
    if int.from_bytes(data[:_HEADER], "little") != len(data) - _HEADER:
        raise ValueError("its length is wrong")
    return data[_HEADER:].decode()


def encode_module(text: str) -> str:
    """A module's JSON as a workload line holds it, without the white space TVM writes: half the size."""
    data = json.dumps(json.loads(text), separators=(",", ":")).encode()
    return base64.b64encode(len(data).to_bytes(_HEADER, "little") + data).decode()
