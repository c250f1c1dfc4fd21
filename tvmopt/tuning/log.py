"""The tuning log of one model on one machine: `tuning_logs/<machine>/<model>/`.

What was found is kept in MetaSchedule's two database files (see `lines`), and a kernel's schedule is looked up by
what the kernel computes: its PrimFunc without its name, compared structurally. Lines are appended as results come,
each flushed to disk, a workload before the records that name it: a killed run leaves a log that reads.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvmopt.errors import LogError, OutputError, one_line
from tvmopt.tuning import lines
from tvmopt.tuning.lines import RECORDS, TRIALS, WORKLOADS, Contents, Record, Trial, Workload

if TYPE_CHECKING:
    import tvm
    from tvm.s_tir import Schedule

    from tvmopt.graph.kernels import Kernel


class Log:
    """A log directory, read and checked. `torn` names files whose half-written last line was dropped."""

    def __init__(self, path: Path, contents: Contents) -> None:
        self.path = path
        self.trials = contents.trials
        self.torn = contents.torn
        self._workloads = contents.workloads
        self._records = contents.records
        self._by_hash: dict[int, list[int]] | None = None

    # --- reading ---

    @classmethod
    def read(cls, path: Path, *, repair: bool = False) -> Log:
        """The log at `path`; with `repair`, half-written last lines are cut off.

        Raises:
            LogError: missing or damaged, with file and line.
        """
        return cls(path, lines.read(path, repair=repair))

    @property
    def records(self) -> Sequence[Record]:
        """All records, in the order they were written."""
        return self._records

    def find(self, func: tvm.tirx.PrimFunc) -> Record | None:
        """The fastest record for what `func` computes, or None.

        Raises:
            LogError: a workload that does not match its hash.
        """
        index = self._index(key_module(func))
        found = [record for record in self._records if record.workload == index]
        return min(found, key=lambda record: record.seconds, default=None)

    def lookup(self, kernel: Kernel) -> Schedule | None:
        """The schedule of the fastest record for `kernel`, whose function is called `main`; None without a record.

        Raises:
            LogError: a record that does not apply, of another TVM version for instance.
        """
        record = self.find(kernel.func)
        return None if record is None else self.apply(record, kernel.func)

    def apply(self, record: Record, func: tvm.tirx.PrimFunc) -> Schedule:
        """`record`'s trace replayed on `func`."""
        import tvm
        from tvm.s_tir import Schedule, Trace
        from tvm.s_tir.schedule import InstructionKind, ScheduleError

        where = f"{self.path / RECORDS}:{record.line}"
        for name in dict.fromkeys(step[0] for step in record.body[0][0]):
            try:
                InstructionKind.get(name)
            except AttributeError:
                raise LogError(
                    f"{where}: instruction {name} is unknown to TVM {tvm.__version__}: the record was made with "
                    "another version; tune again with --fresh"
                ) from None
        schedule = Schedule(key_module(func))
        try:
            Trace.apply_json_to_schedule(record.body[0], schedule)
        except (ScheduleError, RuntimeError, ValueError, TypeError, AttributeError, IndexError) as error:
            raise LogError(
                f"{where}: the record's trace does not apply to its kernel ({one_line(error, 120)}); "
                "tune again with --fresh"
            ) from None
        return schedule

    def check_modules(self) -> None:
        """Loads every workload and compares it with its hash.

        Raises:
            LogError: the first that cannot be loaded, or has another hash.
        """
        self._hashes()

    def _index(self, module: tvm.IRModule) -> int | None:
        import tvm_ffi

        for index in self._hashes().get(structural_hash(module), []):
            if tvm_ffi.structural_equal(load_module(self._workloads[index].module), module):
                return index
        return None

    def _hashes(self) -> dict[int, list[int]]:
        # Loading a module takes about 10 ms, so all of them are loaded once.
        if self._by_hash is None:
            by_hash: dict[int, list[int]] = {}
            for index, workload in enumerate(self._workloads):
                where = f"{self.path / WORKLOADS}:{workload.line}"
                try:
                    value = structural_hash(load_module(workload.module))
                except Exception as error:  # whatever TVM's deserialiser makes of a damaged graph
                    raise LogError(
                        f"{where}: TVM cannot load the module ({one_line(error, 100)}); tune again with --fresh"
                    ) from None
                if str(value) != workload.hash:
                    raise LogError(
                        f"{where}: the module does not match its hash: it was edited, or written by another TVM; "
                        "restore the file, or tune again with --fresh"
                    )
                by_hash.setdefault(value, []).append(index)
            self._by_hash = by_hash
        return self._by_hash

    # --- writing ---

    @classmethod
    def start(cls, path: Path, *, fresh: bool = False) -> Log:
        """The log at `path` for writing: gone on with where there is one (repaired), begun otherwise or if `fresh`.

        Raises:
            OutputError: nothing can be written there.
            LogError: what is there is damaged beyond a half-written last line.
        """
        make_writable(path)
        if fresh:
            for name in (lines.MANIFEST, TRIALS, RECORDS, WORKLOADS):
                (path / name).unlink(missing_ok=True)
        for name in (WORKLOADS, RECORDS, TRIALS):
            (path / name).touch()
        log = cls.read(path, repair=True)
        log.check_modules()
        return log

    def add(self, func: tvm.tirx.PrimFunc, schedule: Schedule, seconds: float, target: tvm.target.Target) -> Record:
        """Appends a record of `schedule` for `func`, and its workload where it is new; both are on disk on return."""
        from tvm.s_tir.meta_schedule.arg_info import ArgInfo
        from tvm.s_tir.meta_schedule.database import TuningRecord
        from tvm.s_tir.meta_schedule.database import Workload as TvmWorkload

        module = key_module(func)
        index = self._index(module)
        workload = TvmWorkload(module)
        if index is None:
            index = len(self._workloads)
            value, encoded = workload.as_json()
            compact = lines.encode_module(lines.module_text(str(encoded)))
            self._append(WORKLOADS, [str(value), compact])
            self._workloads.append(Workload(index + 1, str(value), compact))
            self._hashes().setdefault(int(value), []).append(index)
        record = TuningRecord(schedule.trace, workload, [seconds], target, ArgInfo.from_prim_func(func))
        # Round-tripped, so that what is kept in memory is what a reader of the file sees.
        body = json.loads(json.dumps(record.as_json()))
        self._append(RECORDS, [index, body])
        self._records.append(Record(len(self._records) + 1, index, body))
        return self._records[-1]

    def add_trial(self, trial: Trial) -> None:
        """Appends what was tried, failed or not; fields at their default are left out."""
        default = asdict(Trial("", "", "", ""))
        self._append(TRIALS, {name: value for name, value in asdict(trial).items() if value != default[name]})
        self.trials.append(trial)

    def settle(self, func: tvm.tirx.PrimFunc, schedule: Schedule, seconds: float, target: tvm.target.Target) -> None:
        """Makes `schedule` the only record of `func`: it won, whatever others seemed to take in their single runs."""
        self.add(func, schedule, seconds, target)
        winner = self._records[-1]
        self._rewrite([r for r in self._records if r.workload != winner.workload or r is winner])

    def prune(self, keep: int = 1) -> int:
        """Keeps the `keep` fastest records of each workload; returns how many were dropped."""
        kept: list[Record] = []
        for index in range(len(self._workloads)):
            of_this = [record for record in self._records if record.workload == index]
            kept += sorted(of_this, key=lambda record: record.seconds)[:keep]
        dropped = len(self._records) - len(kept)
        if dropped:
            self._rewrite(kept)
        return dropped

    def merge(self, other: Log) -> int:
        """Takes over `other`'s records and trials that are not here; returns how many records came."""
        hashes = {(workload.hash, workload.module): i for i, workload in enumerate(self._workloads)}
        known = {(record.workload, json.dumps(record.body)) for record in self._records}
        came = 0
        for record in other.records:
            theirs = other._workloads[record.workload]
            index = hashes.get((theirs.hash, theirs.module))
            if index is None:
                index = hashes[(theirs.hash, theirs.module)] = len(self._workloads)
                self._append(WORKLOADS, [theirs.hash, theirs.module])
                self._workloads.append(Workload(index + 1, theirs.hash, theirs.module))
            if (index, json.dumps(record.body)) not in known:
                self._append(RECORDS, [index, record.body])
                self._records.append(Record(len(self._records) + 1, index, record.body))
                came += 1
        tried = {(trial.kernel, trial.candidate) for trial in self.trials}
        for trial in other.trials:
            if (trial.kernel, trial.candidate) not in tried:
                self.add_trial(trial)
        self._by_hash = None
        return came

    def _append(self, name: str, value: Any) -> None:
        try:
            with (self.path / name).open("a", encoding="utf-8") as file:
                file.write(json.dumps(value, separators=(",", ":")) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OutputError(f"{self.path / name}: cannot be written ({error.strerror})") from None

    def _rewrite(self, records: Iterable[Record]) -> None:
        # Only the records are replaced, in one rename: workload indices stay what they are.
        self._records = [Record(i, r.workload, r.body) for i, r in enumerate(records, 1)]
        rows = (json.dumps([r.workload, r.body], separators=(",", ":")) + "\n" for r in self._records)
        write_atomically(self.path / RECORDS, "".join(rows))


def lookup(path: Path, kernel: Kernel) -> Schedule | None:
    """`Log.read(path).lookup(kernel)`, for one kernel; read a `Log` once for several."""
    return Log.read(path).lookup(kernel)


def key_module(func: tvm.tirx.PrimFunc) -> tvm.IRModule:
    """`func` as the database keys it: nameless, in a module of its own whose function is called `main`.

    A deep copy: a Schedule changes some functions in place (`reorder` does), even where others refer to them, and
    the kernel would then not be found under what it was before.
    """
    from tvm.s_tir.meta_schedule.tune_context import _normalize_mod

    func = copy.deepcopy(func)
    if func.attrs is not None and "global_symbol" in func.attrs:
        func = func.without_attr("global_symbol")
    return _normalize_mod(func)


def structural_hash(module: tvm.IRModule) -> int:
    """The hash as the database prints it: 64 bits, unsigned."""
    import tvm_ffi

    return int(tvm_ffi.structural_hash(module)) & (2**64 - 1)


def load_module(encoded: str) -> tvm.IRModule:
    """The module of a workload line."""
    import tvm.ir

    return tvm.ir.load_json(lines.module_text(encoded))


def make_writable(path: Path) -> None:
    """Makes the directory and proves that files can be written in it; raises OutputError otherwise."""
    probe = path / f".probe-{os.getpid()}"
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror}); choose another with --log-dir") from None


def write_atomically(path: Path, text: str) -> None:
    """Replaces `path` in one rename: a reader, or a kill, sees the old file or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OutputError(f"{path}: cannot be written ({error.strerror})") from None
