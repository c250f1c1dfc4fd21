"""What the commands share on their command lines: the options of everything that builds, and how errors end.

argparse only: nothing here imports torch or TVM before an option has been used.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from tvmopt.errors import TargetError, TvmoptError, UsageError, one_line
from tvmopt.lifetime import ended_by_sigterm

if TYPE_CHECKING:
    from tvmopt.machine import AnyMachine, Machine
    from tvmopt.model import Model

DTYPES = ("float32", "float16", "bfloat16")
# Operator -> the ways it can be lowered; the first is the default.
STRATEGIES: dict[str, tuple[str, ...]] = {
    "conv2d": ("plan", "direct", "gemm", "winograd", "winograd-f2", "winograd-f4", "sparse", "unstructured"),
    "dense": ("plan", "packed", "sparse", "unstructured"),
}
_TARGET_HELP = "llvm (or cpu: this host), cuda (this host's GPU, or --arch), or one of them as JSON"
ARCHS = ("sm_80", "sm_86", "sm_89", "sm_90")


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Defaults behind each option that has one, and the examples' line breaks kept."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, {}, (), [], False):
            return action.help
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """argparse, but a usage error is one line and not a page."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (--help lists the options)\n")


def make_parser(command: str, module: str, description: str, examples: Sequence[str]) -> Parser:
    """A parser that calls itself as the user did: `tvmopt COMMAND` installed, `python -m MODULE` otherwise."""
    installed = Path(sys.argv[0]).stem == "tvmopt"
    prog = f"tvmopt {command}" if installed else f"python -m {module}"
    epilog = "examples:\n" + "\n".join(f"  {prog} {example}".rstrip() for example in examples)
    return Parser(prog=prog, description=description, epilog=epilog, formatter_class=_Formatter, allow_abbrev=False)


# --- types of single options; argparse puts the option's name before the message ---


def positive_int(text: str) -> int:
    """A whole number of at least 1."""
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value


def duration(text: str) -> float:
    """Seconds from `90`, `90s`, `10m` or `1.5h`; more than 0."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(s|m|h)?", text.strip())
    if match is None or float(match[1]) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a duration like 90s, 10m or 1.5h")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2] or "s"]


def sparsities(text: str) -> tuple[float, ...]:
    """Shares of zeros from `0.5,0.8`; each at least 0 and less than 1."""
    found = []
    for part in text.split(","):
        try:
            value = float(part)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{part!r} is not a share of zeros like 0.8") from None
        if not 0 <= value < 1:
            raise argparse.ArgumentTypeError(f"{part} is not at least 0 and less than 1, as 0.9 for 90% zeros")
        found.append(value)
    return tuple(found)


def percentage(text: str) -> float:
    """A fraction from `5%` (0.05) or `0.05`; not negative."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(%?)", text.strip())
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share like 5% or 0.05")
    return float(match[1]) / (100 if match[2] else 1)


def shape(text: str) -> tuple[int, ...]:
    """Dimensions from `3,224,224` or `3x224x224`, each at least 1."""
    parts = re.split(r"[,x]", text.strip())
    if not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not a shape like 3,224,224")
    return tuple(int(part) for part in parts)


def names(text: str) -> tuple[str, ...]:
    """Names between commas, in order, each once; an empty text or `none` gives none."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    return () if parts == ["none"] else tuple(dict.fromkeys(parts))


def strategy(text: str) -> dict[str, str]:
    """`conv2d=gemm`, more of them between commas."""
    chosen: dict[str, str] = {}
    for part in text.split(","):
        op, _, way = (piece.strip() for piece in part.partition("="))
        if op not in STRATEGIES or way not in STRATEGIES[op]:
            known = ", ".join(f"{op}={way}" for op, ways in STRATEGIES.items() for way in ways)
            raise argparse.ArgumentTypeError(f"{part!r} is not one of {known}")
        chosen[op] = way
    return chosen


class _Merge(argparse.Action):
    """Several --strategy options add up."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        setattr(namespace, self.dest, {**(getattr(namespace, self.dest) or {}), **values})


# --- the options of everything that builds ---


@dataclass(frozen=True)
class BuildOptions:
    """The common options, checked.

    `input_shape` is as typed: one input's dimensions without the batch. `strategies` maps an operator to its
    lowering, empty for the defaults. `threads` is None for all the cores this process may use.
    """

    target: str = "llvm"
    arch: str | None = None
    batch: int | None = None
    input_shape: tuple[int, ...] | None = None
    dtype: str = "float32"
    threads: int | None = None
    strategies: dict[str, str] = field(default_factory=dict)
    weights: str | None = None
    schedules_dir: Path | None = None
    log_dir: Path = Path("tuning_logs")
    dump_dir: Path | None = None
    cuda_graphs: bool = False
    fast_math: bool = False

    @property
    def kind(self) -> str:
        """`llvm` or `cuda`."""
        return str(self.fields.get("kind"))

    @property
    def fields(self) -> dict[str, Any]:
        """The target's fields, of a target given by name its kind alone."""
        return _target_fields(self.target)

    def machine(self) -> AnyMachine:
        """The machine to build for, with its thread count; raises TargetError where it cannot be built for.

        A GPU named by `arch` that is of the same architecture as the one here is the one here.
        """
        check_target(self.target, self.arch)
        check_gpu_only(self)
        from tvmopt.machine import available_cores, detect, detect_gpu, named_gpu

        fields = _target_fields(self.target)
        if fields["kind"] == "cuda":
            arch, cores = self.arch or fields.get("arch"), self.threads or available_cores()
            here = detect_gpu(cores)
            return here if here is not None and arch in (None, here.arch) else named_gpu(str(arch), cores)
        machine = detect(self.threads or fields.get("num-cores"))
        if fields.get("mcpu", machine.llvm_cpu) != machine.llvm_cpu:
            raise TargetError(f"--target: mcpu {fields['mcpu']}: only this host's, {machine.llvm_cpu}, is built for")
        return machine

    def cpu(self, what: str) -> Machine:
        """The machine for `what`, which is for CPUs only; raises UsageError for a GPU."""
        from tvmopt.machine import Machine

        machine = self.machine()
        if not isinstance(machine, Machine):
            raise UsageError(f"{what} is for CPUs; leave out --target cuda")
        return machine

    def load(self, spec: str | None) -> Model:
        """The model of `spec` in these options' batch, shape, weights and dtype."""
        from tvmopt.model import load_model

        return load_model(spec, batch=self.batch, input_shape=self.input_shape, weights=self.weights, dtype=self.dtype)


def add_build_options(parser: argparse.ArgumentParser, *, leave_out: Sequence[str] = ()) -> None:
    """Adds the common options, but for those named (without dashes) in `leave_out`."""
    group = parser.add_argument_group("what is built, and for what")

    def add(name: str, **settings: Any) -> None:
        if name not in leave_out:
            group.add_argument(f"--{name}", **settings)

    add("target", default="llvm", help=_TARGET_HELP)
    add("arch", metavar="A", help=f"GPU architecture to build for without having one: {', '.join(ARCHS)}")
    add("batch", type=positive_int, help="batch size; by default the model's own, usually 1")
    add("input-shape", type=shape, metavar="S", help="one input's shape without the batch, such as 3,224,224")
    add("dtype", default="float32", choices=DTYPES, help="what is computed in")
    add("threads", type=positive_int, help="threads, for tvmopt and peers alike; by default this process's cores")
    add(
        "strategy", type=strategy, action=_Merge, default={}, metavar="OP=HOW",
        help="how an operator is lowered: " + ", ".join(f"{o}={w}" for o, ws in STRATEGIES.items() for w in ws),
    )  # fmt: skip
    add("weights", help="DEFAULT downloads torchvision's trained weights; by default seeded random ones")
    add("schedules", type=Path, metavar="DIR", help="a directory of your own schedule rules, tried first")
    add("log-dir", type=Path, default=Path("tuning_logs"), metavar="DIR", help="where the tuning logs are")
    add("cuda-graphs", action="store_true", help="on a GPU, capture the network once and replay it as one launch")
    add("fast-math", action="store_true", help="on a GPU, let nvcc flush denormals and approximate divisions")
    add("dump-ir", type=Path, metavar="DIR", help="write the IR after each phase into this directory")


def build_options(args: argparse.Namespace) -> BuildOptions:
    """The checked common options of parsed `args`; an option that was left out takes its default."""
    default = BuildOptions()
    options = BuildOptions(
        target={"cpu": "llvm"}.get(getattr(args, "target", "llvm"), getattr(args, "target", "llvm")),
        arch=getattr(args, "arch", None),
        batch=getattr(args, "batch", None),
        input_shape=getattr(args, "input_shape", None),
        dtype=getattr(args, "dtype", default.dtype),
        threads=getattr(args, "threads", None),
        strategies=dict(getattr(args, "strategy", None) or {}),
        weights=getattr(args, "weights", None),
        schedules_dir=getattr(args, "schedules", None),
        log_dir=getattr(args, "log_dir", default.log_dir),
        dump_dir=getattr(args, "dump_ir", None),
        cuda_graphs=getattr(args, "cuda_graphs", False),
        fast_math=getattr(args, "fast_math", False),
    )
    # On other machines neither the GPU nor the cores of this one count.
    here = getattr(args, "runner", "local") == "local"
    check_target(options.target, options.arch, here=here)
    check_gpu_only(options)
    from tvmopt.machine import available_cores

    cores = available_cores()
    if here and options.threads is not None and options.threads > cores:
        raise UsageError(f"--threads {options.threads}: this process may use {cores} cores; take at most that many")
    if options.schedules_dir is not None and not options.schedules_dir.is_dir():
        raise UsageError(f"--schedules {options.schedules_dir}: no such directory")
    if options.dump_dir is not None and options.dump_dir.exists() and not options.dump_dir.is_dir():
        raise UsageError(f"--dump-ir {options.dump_dir}: is a file, a directory is needed")
    return options


def check_target(target: str, arch: str | None = None, *, here: bool = True) -> None:
    """Raises TargetError, in one line, for a target that is unknown or that nothing here can be built for.

    here: whether a GPU that is not named must be this machine's.
    """
    fields = _target_fields(target)
    kind = str(fields.get("kind"))
    if kind == "cuda":
        named = arch or fields.get("arch")
        if named is not None and named not in ARCHS:
            raise TargetError(f"--arch {named}: unknown; choose one of {', '.join(ARCHS)}")
        if set(fields) - {"kind", "arch"}:
            raise TargetError("--target: of a cuda target, arch alone can be set")
        if named is None and here and not _has_gpu():
            raise TargetError(
                "--target cuda: no CUDA GPU here; build for one with --arch (" + ", ".join(ARCHS) + "), "
                "or use --target llvm"
            )
        return
    if kind != "llvm":
        raise TargetError(f"--target {target}: unknown; use {_TARGET_HELP}")
    if arch is not None:
        raise UsageError("--arch names a GPU's architecture and goes with --target cuda")
    other = set(fields) - {"kind", "mcpu", "num-cores"}
    if other:
        raise TargetError(f"--target: of an llvm target, mcpu and num-cores can be set, not {', '.join(sorted(other))}")


def check_gpu_only(options: BuildOptions) -> None:
    """Raises UsageError for what is asked of a CPU's code and only a GPU's can have."""
    for name, asked in (("--cuda-graphs", options.cuda_graphs), ("--fast-math", options.fast_math)):
        if asked and options.kind != "cuda":
            raise UsageError(f"{name} is for a GPU's code and goes with --target cuda")


def _target_fields(target: str) -> dict[str, Any]:
    """The fields of a target given by name or as JSON."""
    if not target.lstrip().startswith("{"):
        return {"kind": {"cpu": "llvm"}.get(target, target)}
    try:
        return dict(json.loads(target))
    except json.JSONDecodeError as error:
        raise TargetError(f"--target: not valid JSON ({error.msg} at column {error.colno})") from None


def _has_gpu() -> bool:
    """Whether the CUDA driver knows a device, asked without loading any framework."""
    from tvmopt.machine_gpu import driver

    return driver() is not None


# --- how a command ends ---


def run(main: Callable[[Sequence[str] | None], int | None], argv: Sequence[str] | None = None) -> int:
    """Runs a command's `main(argv)` and gives its exit status.

    A TvmoptError is one line on standard error and the error's own status, Ctrl-C 130, SIGTERM 143, a reader that
    went away (`| head`) 141. Everything else is a bug and keeps its traceback.
    """
    try:
        with ended_by_sigterm():
            return main(argv) or 0
    except TvmoptError as error:
        print(f"tvmopt: {one_line(error)}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("tvmopt: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Python flushes standard output once more at exit, which would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
