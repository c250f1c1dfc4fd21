"""Tuning logs: what is written is read again, and what is damaged is said in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.tuning.conftest import gemm, make_kernel
from tvmopt.errors import LogError, OutputError
from tvmopt.tuning.lines import MANIFEST, RECORDS, TRIALS, WORKLOADS, read
from tvmopt.tuning.log import Log, key_module, make_writable, structural_hash
from tvmopt.tuning.manifest import check_manifest, read_manifest
from tvmopt.tuning.resolve import open_log


def edit(path: Path, number: int, change: Callable[[Any], Any]) -> None:
    """Applies `change` to a line's JSON."""
    rows = path.read_text().splitlines(keepends=True)
    rows[number - 1] = json.dumps(change(json.loads(rows[number - 1]))) + "\n"
    path.write_text("".join(rows))


def test_a_record_gives_back_its_schedule(written: Path, machine: Any, rules: list[Any]) -> None:
    from tvmopt.tuning.template import Space

    kernel = make_kernel(name="called_differently_elsewhere")
    schedule = Log.read(written).lookup(kernel)
    expected = Space(kernel, machine, rules).at({"rows": 2})
    assert schedule is not None and expected is not None
    assert structural_hash(schedule.mod) == structural_hash(expected.schedule.mod)


def test_a_kernel_without_a_record_gives_none(written: Path) -> None:
    assert Log.read(written).lookup(make_kernel(48)) is None


def test_tvm_itself_reads_the_log(written: Path, machine: Any) -> None:
    from tvm.s_tir import meta_schedule as ms

    database = ms.database.JSONDatabase(work_dir=str(written))
    record = database.query_tuning_record(key_module(make_kernel().func), machine.target(), "main")
    assert len(database) == 2
    assert record is not None and float(record.run_secs[0]) == pytest.approx(1e-6)


def test_a_schedule_does_not_change_the_kernel_it_is_made_from() -> None:
    from tvm.s_tir import Schedule

    func = gemm()
    before = structural_hash(key_module(func))
    schedule = Schedule(key_module(func))
    schedule.reorder(*reversed(schedule.get_loops(schedule.get_sblock("relu"))))
    assert structural_hash(key_module(func)) == before


def test_a_log_is_gone_on_with(written: Path, machine: Any, rules: list[Any]) -> None:
    from tvmopt.tuning.template import Space

    log = Log.start(written)
    point = Space(make_kernel(), machine, rules).at({"rows": 1})
    assert point is not None
    log.add(make_kernel().func, point.schedule, 3e-6, machine.target())
    again = read(written)
    assert (len(again.workloads), len(again.records), len(again.trials)) == (1, 3, 2)


def test_pruning_keeps_the_best_and_settling_the_winner(written: Path, machine: Any, rules: list[Any]) -> None:
    from tvmopt.tuning.template import Space

    log = Log.start(written)
    assert log.prune() == 1
    assert [record.seconds for record in Log.read(written).records] == [1e-6]
    point = Space(make_kernel(), machine, rules).at({"rows": 8})
    assert point is not None
    log.settle(make_kernel().func, point.schedule, 5e-6, machine.target())
    assert [record.seconds for record in Log.read(written).records] == [5e-6]


def test_merging_renumbers_workloads(written: Path, tmp_path: Path, machine: Any, rules: list[Any]) -> None:
    from tvmopt.tuning.template import Space

    other = make_kernel(32)
    log = Log.start(tmp_path / "other")
    point = Space(other, machine, rules).manual
    assert point is not None
    log.add(other.func, point.schedule, 1e-6, machine.target())
    assert log.merge(Log.read(written)) == 2
    assert log.merge(Log.read(written)) == 0
    merged = Log.read(tmp_path / "other")
    merged.check_modules()
    assert merged.lookup(other) is not None and merged.lookup(make_kernel()) is not None


DAMAGE: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "blank line": (RECORDS, lambda p: p.write_text("\n" + p.read_text()), ":1: a blank line"),
    "blank last line": (WORKLOADS, lambda p: p.write_text(p.read_text() + "\n"), ":2: a blank line"),
    "empty object": (RECORDS, lambda p: edit(p, 2, lambda _: {}), ":2: not a tuning record"),
    "empty object for a workload": (WORKLOADS, lambda p: edit(p, 1, lambda _: {}), ":1: not a workload"),
    "torn line": (RECORDS, lambda p: p.write_text(p.read_text()[:-40]), ":2: the last line was cut off"),
    "torn in the middle": (RECORDS, lambda p: p.write_text(p.read_text()[40:]), ":1: not"),
    "bad index": (RECORDS, lambda p: edit(p, 1, lambda v: [7, v[1]]), ":1: names workload 7"),
    "negative index": (RECORDS, lambda p: edit(p, 1, lambda v: [-1, v[1]]), ":1: names workload -1"),
    "no times": (RECORDS, lambda p: edit(p, 1, lambda v: [0, [v[1][0], [], *v[1][2:]]]), ":1: the record has no valid"),
    "bad trace": (RECORDS, lambda p: edit(p, 1, lambda v: [0, [[[["X"]], []], *v[1][1:]]]), ":1: the record's trace"),
    "no target": (RECORDS, lambda p: edit(p, 1, lambda v: [0, [*v[1][:2], None, v[1][3]]]), ":1: the record names no"),
    "damaged module": (WORKLOADS, lambda p: edit(p, 1, lambda v: [v[0], v[1][:-8]]), ":1: the workload's module"),
    "wrong hash": (WORKLOADS, lambda p: edit(p, 1, lambda v: ["123", v[1]]), ":1: the module does not match its hash"),
    "not a trial": (TRIALS, lambda p: edit(p, 1, lambda _: {"a": 1}), ":1: not a trial"),
    "missing file": (RECORDS, lambda p: p.unlink(), ": missing"),
    "no manifest": (MANIFEST, lambda p: p.unlink(), "no manifest.json"),
    "half a manifest": (MANIFEST, lambda p: p.write_text(p.read_text()[:100]), "not JSON"),
    "another format": (MANIFEST, lambda p: p.write_text('{"format": 99}'), "format 99"),
    "a manifest of nothing": (MANIFEST, lambda p: p.write_text('{"format": 1}'), "damaged"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_named(what: str, written: Path, machine: Any) -> None:
    name, damage, message = DAMAGE[what]
    damage(written / name)
    with pytest.raises(LogError) as caught:
        open_log(written, machine)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert str(written) in str(caught.value)


def test_a_missing_log_is_named(tmp_path: Path, machine: Any) -> None:
    with pytest.raises(LogError, match="no tuning log here"):
        open_log(tmp_path / "nowhere", machine)


def test_a_torn_last_line_is_dropped_when_going_on(written: Path) -> None:
    for name in (RECORDS, TRIALS):
        text = (written / name).read_text()
        (written / name).write_text(text[: len(text) - 30])
    log = Log.start(written)
    assert log.torn == [RECORDS, TRIALS]
    assert len(log.records) == len(log.trials) == 1
    assert len(Log.read(written).records) == 1


def test_going_on_with_a_damaged_log_is_refused(written: Path) -> None:
    edit(written / RECORDS, 1, lambda value: {})
    with pytest.raises(LogError, match="--fresh"):
        Log.start(written)
    assert Log.start(written, fresh=True).records == []


def test_instructions_of_another_tvm_are_named(written: Path) -> None:
    def older(value: Any) -> Any:
        value[1][0][0][0][0] = "GetBlock"
        return value

    for number in (1, 2):
        edit(written / RECORDS, number, older)
    with pytest.raises(LogError, match="instruction GetBlock is unknown to TVM"):
        Log.read(written).lookup(make_kernel())


def test_a_trace_that_does_not_apply_is_named(written: Path) -> None:
    def other_block(value: Any) -> Any:
        value[1][0][0][0][2][0] = "no_such_block"
        return value

    for number in (1, 2):
        edit(written / RECORDS, number, other_block)
    with pytest.raises(LogError, match="does not apply") as caught:
        Log.read(written).lookup(make_kernel())
    assert "\n" not in str(caught.value)


def test_another_models_log_is_refused(written: Path, machine: Any) -> None:
    model = SimpleNamespace(digest="f" * 16, name="other")
    with pytest.raises(LogError, match="other weights"):
        check_manifest(read_manifest(written), written, machine, model)  # type: ignore[arg-type]


def test_another_target_or_tvm_is_refused(written: Path, machine: Any) -> None:
    manifest = read_manifest(written)
    with pytest.raises(LogError, match="a log for target cuda"):
        check_manifest(replace(manifest, target={"kind": "cuda"}), written, machine)
    with pytest.raises(LogError, match=r"made with TVM 0\.1"):
        check_manifest(replace(manifest, versions={"tvm": "0.1"}), written, machine)


def test_another_machine_is_named(written: Path, machine: Any) -> None:
    assert open_log(written, machine).differences == ()
    other = replace(machine, name="Another CPU", cores=64)
    differences = open_log(written, other).differences
    assert any("Another CPU here" in text for text in differences)
    assert any(text.startswith("cores:") for text in differences)


def test_what_a_kernel_gets_is_said(written: Path, machine: Any) -> None:
    opened = open_log(written, machine)
    assert opened.resolve(make_kernel()).status == "hit"
    missing = opened.resolve(make_kernel(48))
    assert (missing.status, missing.reason) == ("miss", "the plan does not have it")
    (written / RECORDS).write_text("")
    assert "no record" in open_log(written, machine).resolve(make_kernel()).reason


def test_an_unwritable_directory_is_said_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        make_writable(tmp_path / "file" / "log")
