"""`python -m tvmopt.replay`: rebuild what a tuning log found, without searching; verify it, and time it again."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvmopt.errors import LogError, ModelError, OutputError, TargetError
from tvmopt.options import Parser, add_build_options, build_options, make_parser, run

if TYPE_CHECKING:
    from tvmopt.graph.pipeline import Lowered
    from tvmopt.machine import AnyMachine
    from tvmopt.model import Model
    from tvmopt.tuning.manifest import Manifest
    from tvmopt.tuning.resolve import Resolved

# Differences of these decide what a model is lowered to, and so explain that kernels are not in the log.
_LOWERING = ("isa", "lanes", "registers", "arch")


@dataclass(frozen=True)
class Replayed:
    """What became of a log.

    `kernels`: each kernel of the model and what the log had for it. `differences` of this machine to the log's.
    `logged_ms`: the whole network as the manifest has it, None where it was not measured; `replayed_ms`: now.
    """

    path: Path
    model: str
    kernels: tuple[Resolved, ...]
    differences: tuple[str, ...]
    logged_ms: float | None
    replayed_ms: float

    @property
    def misses(self) -> list[Resolved]:
        """Kernels the log should have had."""
        return [kernel for kernel in self.kernels if kernel.status == "miss"]

    @property
    def explained(self) -> bool:
        """Whether this machine differs from the log's in what decides how a model is lowered."""
        return any(difference.split(":")[0] in _LOWERING for difference in self.differences)

    def to_json(self) -> dict[str, Any]:
        """What `--json` writes."""
        return {
            "schema_version": 1,
            "log": str(self.path),
            "model": self.model,
            "differences": list(self.differences),
            "logged_ms": self.logged_ms,
            "replayed_ms": self.replayed_ms,
            "kernels": [
                {
                    "name": r.kernel.name, "key": r.kernel.key, "op": r.kernel.op, "calls": r.kernel.calls,
                    "status": r.status, "reason": r.reason, "source": r.plan.source if r.plan else None,
                    "logged_s": r.plan.seconds if r.plan else None,
                }
                for r in self.kernels
            ],
        }  # fmt: skip


def replay(
    path: str | Path, *, threads: int | None = None, schedules_dir: Path | None = None, model: Model | None = None
) -> Replayed:
    """Rebuilds the model of the log in the directory `path` by its plan, verifies it and times it.

    model: where the log's model was a Python module; by default the manifest's spec is loaded.

    Raises:
        LogError: the log is missing, damaged, or of another model or TVM. TargetError: it is of a GPU, and there is
        none here. ModelError: its model cannot be loaded. VerificationError: what is built does not compute what
        PyTorch computes.
    """
    from tvmopt.machine import configure_threads
    from tvmopt.tuning.manifest import read_manifest
    from tvmopt.tuning.resolve import open_log

    path = Path(path)
    manifest = read_manifest(path)
    machine = _machine(path, manifest, threads)
    configure_threads(machine.cores)
    model = model or _load(path, manifest)
    opened = open_log(path, machine, model)
    from tvmopt.variants import lower_model

    lowered = lower_model(model, machine, manifest.strategies)
    resolved = opened.resolve_all(lowered.kernels)
    seconds = _time(lowered, model, machine, path, manifest, schedules_dir)
    network = manifest.network
    logged = network.get("manual_ms" if network.get("kept") == "manual" else "auto_ms")
    return Replayed(path, model.name, tuple(resolved), opened.differences, logged, seconds * 1e3)


def _machine(path: Path, manifest: Manifest, threads: int | None) -> AnyMachine:
    """This machine, of the kind that the log was made on."""
    from tvmopt.machine import available_cores, detect, detect_gpu
    from tvmopt.runtime.gpu import runtime_missing

    if manifest.target["kind"] != "cuda":
        return detect(threads)
    machine, missing = detect_gpu(threads or available_cores()), runtime_missing()
    if machine is None or missing is not None:
        arch = manifest.machine.get("arch", "cuda")
        raise TargetError(f"{path}: a log for a GPU ({arch}) is replayed on one, and {missing or 'there is none here'}")
    return machine


def _load(path: Path, manifest: Manifest) -> Model:
    from tvmopt.compress.one_shot import OneShot
    from tvmopt.model import load_model

    spec = manifest.model["spec"]
    shapes = manifest.model.get("inputs") or [None]
    shape = tuple(shapes[0]) if len(shapes) == 1 and shapes[0] else None
    try:
        if (made := manifest.model.get("one_shot")) is not None:
            return OneShot.from_json(made).load(manifest.model.get("dtype", "float32"))
        return load_model(spec, input_shape=shape, dtype=manifest.model.get("dtype", "float32"))
    except ModelError as error:
        raise LogError(f"{path}: its model cannot be loaded ({error})") from None


def _time(
    lowered: Lowered, model: Model, machine: AnyMachine, path: Path, manifest: Manifest, schedules_dir: Path | None
) -> float:
    from tvmopt.tuning.network import assemble, measure
    from tvmopt.variants import schedule_kernels

    with tempfile.TemporaryDirectory(prefix="tvmopt-replay-") as folder:
        file = Path(folder) / "auto.so"
        made = schedule_kernels(lowered, "auto", machine, log_path=path, schedules_dir=schedules_dir)
        assemble(lowered, made.functions, machine, model, "auto").export(file)
        return measure(file, model, machine.cores, lowered.strategies)


def check_strict(replayed: Replayed) -> None:
    """Raises LogError for a kernel the log should have had, unless this machine's difference explains it."""
    if replayed.misses and not replayed.explained:
        first = replayed.misses[0]
        raise LogError(
            f"{replayed.path}: {len(replayed.misses)} of {len(replayed.kernels)} kernels missed, the first is "
            f"{first.kernel.name}: {first.reason}; the lowering or the rules changed: tune again"
        )


def parser() -> Parser:
    """The command line."""
    made = make_parser(
        "replay", "tvmopt.replay",
        "Rebuilds a model as its tuning log says, without search: says for each kernel whether the log had it (hit), "
        "kept manual's schedule or left it as it was, verifies the network against PyTorch, and times it again.",
        ["tuning_logs/llvm-cascadelake-t2/digits_cnn", "tuning_logs/llvm-cascadelake-t2/resnet18 --strict"],
    )  # fmt: skip
    made.add_argument("log", type=Path, metavar="LOG_DIR", help="a log's directory, the one with its manifest.json")
    made.add_argument("--strict", action="store_true", help="a kernel that the log should have had is an error")
    made.add_argument("--json", type=Path, metavar="FILE", help="write what was found as JSON")
    from_log = (
        "target", "arch", "batch", "input-shape", "dtype", "strategy", "weights", "log-dir", "dump-ir", "cuda-graphs",
        "fast-math",
    )  # fmt: skip
    add_build_options(made, leave_out=from_log)
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    args = parser().parse_args(argv)
    options = build_options(args)
    if args.json is not None and not args.json.parent.is_dir():
        raise OutputError(f"--json {args.json}: there is no directory {args.json.parent}")
    replayed = replay(args.log, threads=options.threads, schedules_dir=options.schedules_dir)
    for difference in replayed.differences:
        print(f"tvmopt: warning: another machine than the log's: {difference}", file=sys.stderr)
    for index, resolved in enumerate(replayed.kernels):
        logged = f"{resolved.plan.seconds * 1e6:9.1f} us" if resolved.plan and resolved.plan.seconds else " " * 12
        print(f"{index:3d}  {resolved.status:<8} {logged}  {resolved.kernel.op:<18} {resolved.reason}".rstrip())
    logged_ms = f"{replayed.logged_ms:.3f} ms logged" if replayed.logged_ms else "not timed in the log"
    print(f"{replayed.model}: verified against PyTorch; {replayed.replayed_ms:.3f} ms, {logged_ms}")
    if args.json is not None:
        from tvmopt.tuning.log import write_atomically

        write_atomically(args.json, json.dumps(replayed.to_json(), indent=1) + "\n")
    if args.strict:
        check_strict(replayed)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
