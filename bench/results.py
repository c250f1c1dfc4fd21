"""The result files: one JSON object with `schema_version`, `environment` and `results`.

Other programs read them: fields are added, never renamed, and a file is checked when written and when read.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from tvmopt.errors import DataError, OutputError

SCHEMA_VERSION = 1
# With fewer quiet turns than this, nothing is known of the spread between turns, and all of them count.
FEWEST_QUIET = 5

_NUMBER = (int, float)
# Field -> the types it may have. Every result has every field; None says "not measured" or "does not apply".
FIELDS: dict[str, tuple[type, ...]] = {
    "model": (str,),
    "variant": (str,),
    "target": (str,),
    "dtype": (str,),
    "batch": (int,),
    "sparsity": _NUMBER,
    "method": (str, type(None)),
    "latency_ms": (dict, type(None)),
    "samples_ms": (list,),
    "compile_s": (*_NUMBER, type(None)),
    "max_abs_err": (*_NUMBER, type(None)),
    "accuracy": (dict, type(None)),
    "params": (int, type(None)),
    "nonzero_params": (int, type(None)),
    "size_bytes": (int, type(None)),
    "size_compressed_bytes": (int, type(None)),
    "flops": (int, type(None)),
    "threads": (int,),
    "strategy": (str,),
    "ci95": (list, type(None)),
    "unstable": (bool,),
    "cold": (bool,),
    "rounds": (list,),
    "peak_memory_bytes": (int, type(None)),
    "tuning_s": (*_NUMBER, type(None)),
    "error": (str, type(None)),
}
# Objects that a row may have -> what is in each of them. A list holds any number of them.
OPTIONAL: dict[str, tuple[type, tuple[str, ...]]] = {
    "profile": (
        list,
        ("kernel", "op", "shape", "source", "calls", "seconds", "flops", "bytes", "roof_s", "gflops", "bytes_per_s",
         "peak_fraction"),
    ),
    "roof": (dict, ("gflops", "bandwidths")),
    "tuning_curve": (dict, ("trials", "elapsed_s", "kernels")),
}  # fmt: skip
LATENCY = ("median", "p10", "p90", "p99", "mean", "std", "min", "max")
ACCURACY = ("top1", "top5", "agreement", "n")


def check(document: Any, where: str) -> None:
    """Raises DataError, naming `where` and the first thing wrong, for a document that breaks the schema."""

    def wrong(what: str) -> DataError:
        return DataError(f"{where}: not a bench result: {what}")

    if not isinstance(document, dict) or "schema_version" not in document:
        raise wrong("no schema_version")
    if document["schema_version"] != SCHEMA_VERSION:
        raise wrong(f"schema_version {document['schema_version']}, this version reads {SCHEMA_VERSION}")
    if not isinstance(document.get("environment"), dict) or not isinstance(document.get("results"), list):
        raise wrong("needs environment and results")
    for index, row in enumerate(document["results"]):
        if not isinstance(row, dict):
            raise wrong(f"result {index} is no object")
        for name, types in FIELDS.items():
            if name not in row:
                raise wrong(f"result {index} lacks {name}")
            value = row[name]
            if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
                raise wrong(f"result {index}: {name} is a {type(value).__name__}")
        if len(row.get("quiet") or row["samples_ms"]) != len(row["samples_ms"]):
            raise wrong(f"result {index}: {len(row['quiet'])} quiet for {len(row['samples_ms'])} samples")
        if len(row["rounds"]) != len(row["samples_ms"]):
            raise wrong(f"result {index}: {len(row['rounds'])} rounds for {len(row['samples_ms'])} samples")
        for name, keys in (("latency_ms", LATENCY), ("accuracy", ACCURACY)):
            missing = [key for key in keys if row[name] is not None and key not in row[name]]
            if missing:
                raise wrong(f"result {index}: {name} lacks {missing[0]}")
        for name, (kind, parts) in OPTIONAL.items():
            value = row.get(name)
            items = value if isinstance(value, list) else [value]
            if value is not None and not (isinstance(value, kind) and all(_has(item, parts) for item in items)):
                raise wrong(f"result {index}: {name} is not {kind.__name__} with {', '.join(parts)}")
        if row["error"] is None and row["latency_ms"] is None:
            raise wrong(f"result {index} has neither latency_ms nor error")


def document(environment: Mapping[str, Any], results: list[dict[str, Any]]) -> dict[str, Any]:
    """A checked document of the two; numbers that are not finite, which JSON has not, become null."""
    made = {"schema_version": SCHEMA_VERSION, "environment": dict(environment), "results": results}
    clean = _finite(made)
    check(clean, "this run")
    return dict(clean)


def counted(*rows: Mapping[str, Any]) -> list[tuple[list[float], list[int]]]:
    """For each of some results that are to be compared, the samples that count, in ms, and their rounds.

    Those of quiet turns (quiet.py) where all the results have enough of them, else all: quiet turns of one beside all
    turns of another would compare the neighbours.
    """
    kept = []
    for row in rows:
        quiet = row.get("quiet") or [True] * len(row["samples_ms"])
        kept.append([i for i, is_quiet in enumerate(quiet) if is_quiet])
    enough = all(len({row["rounds"][i] for i in some}) >= FEWEST_QUIET for row, some in zip(rows, kept, strict=True))
    if not enough:
        kept = [list(range(len(row["samples_ms"]))) for row in rows]
    return [
        ([row["samples_ms"][i] for i in some], [row["rounds"][i] for i in some])
        for row, some in zip(rows, kept, strict=True)
    ]


def empty_row() -> dict[str, Any]:
    """A result of which nothing is known yet: every field there, at what says "not measured" or "no"."""
    none = dict.fromkeys(FIELDS)
    return {**none, "sparsity": 0.0, "unstable": False, "cold": False, "samples_ms": [], "rounds": []}


def write(document: Mapping[str, Any], path: Path) -> Path:
    """Writes a document, whole or not at all; raises OutputError where that cannot be done."""
    return write_text(path, json.dumps(document, indent=1, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> Path:
    """Writes a file, whole or not at all; raises OutputError where that cannot be done."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    return path


def read(path: Path) -> dict[str, Any]:
    """A checked document; raises DataError for a file that is not there or not one."""
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise DataError(f"{path}: not JSON: {error}") from error
    check(loaded, str(path))
    return dict(loaded)


def results_root() -> Path:
    """Where runs are kept: `bench/results` of a checkout; of an installed package, `bench-results` here."""
    here = Path(__file__).resolve().parent
    in_checkout = (here.parent / "pyproject.toml").is_file()
    return here / "results" if in_checkout else Path.cwd() / "bench-results"


def saved_path(root: Path, environment: Mapping[str, Any], now: datetime | None = None) -> Path:
    """`<root>/<host>/<date>-<revision>.json` for a run with this environment."""
    when = (now or datetime.now(timezone.utc)).strftime("%Y%m%dT%H%M%SZ")
    revision = str((environment.get("git") or {}).get("revision") or "norev")[:9]
    if (environment.get("git") or {}).get("dirty"):
        revision += "-dirty"
    return root / str(environment["host"]) / f"{when}-{revision}.json"


def saved_runs(root: Path, host: str) -> list[Path]:
    """The saved runs of a host, oldest first (the names begin with the date)."""
    return sorted((root / host).glob("*.json"))


def key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What makes two rows of different files the same contender."""
    names = ("model", "variant", "target", "dtype", "batch", "sparsity", "method", "threads", "strategy", "cold")
    return tuple(row[name] for name in names)


def check_writable(path: Path, option: str) -> None:
    """Raises OutputError now, and not after minutes of work, where `option`'s file cannot be written."""
    try:
        if path.is_dir():
            raise IsADirectoryError
        # The directories that are missing are made when the file is written.
        first = next(parent for parent in path.absolute().parents if parent.exists())
        with tempfile.TemporaryFile(dir=first):
            pass
    except OSError:
        raise OutputError(f"{option} {path} cannot be written: name a file in a directory that can be") from None


def _has(item: Any, parts: Sequence[str]) -> bool:
    return isinstance(item, dict) and all(part in item for part in parts)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
