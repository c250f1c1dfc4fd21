"""`tvmopt COMMAND ...` is `python -m tvmopt.COMMAND ...`. Only the module of the command called is imported."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from tvmopt import __version__
from tvmopt.options import run

# Command -> its module, which has a main(argv), and what it does.
COMMANDS: dict[str, tuple[str, str]] = {
    "tune": ("tvmopt.tune", "search schedules for a model's kernels and log the best"),
    "serve": ("tvmopt.serve", "lend this machine to those who tune elsewhere"),
    "replay": ("tvmopt.replay", "rebuild a logged plan without search, verify it and time it again"),
    "prune": ("tvmopt.prune", "make a model smaller: masks, blocks, filters removed, fine-tuned, as a .pt2"),
    "export": ("tvmopt.export", "write a model as one file to load and run"),
    "bench": ("tvmopt.bench.__main__", "measure the variants and what a user would run instead"),
    "compare": ("tvmopt.bench.compare", "compare two saved benchmark runs"),
    "report": ("tvmopt.bench.report.__main__", "write saved benchmark runs as one page with charts"),
    "kernels": ("tvmopt.bench.kernels", "time single kernels against the machine's measured peak"),
    "cuda_proof": ("tvmopt.bench.cuda_proof.__main__", "compile and execute the CUDA rules without a GPU"),
    "selftest": ("tvmopt.bench.selftest", "measure the bench itself, by experiments whose answer is known"),
    "recipe": ("tvmopt.bench.recipe", "run a published experiment from end to end"),
}


def usage() -> str:
    """The text of `tvmopt --help`."""
    width = max(map(len, COMMANDS))
    lines = "\n".join(f"  {name:{width}}  {what}" for name, (_, what) in COMMANDS.items())
    return (
        "usage: tvmopt COMMAND [...]\n\nMakes PyTorch models fast with Apache TVM, and proves it.\n\n"
        f"commands:\n{lines}\n\noptions:\n  -h, --help     this text; `tvmopt COMMAND --help` for a command's\n"
        "  -V, --version  the version\n\nexamples:\n  tvmopt tune\n  tvmopt bench torchvision:resnet18\n"
        "  tvmopt export torchvision:resnet18 -o resnet18.so\n"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit status (2: no such command)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = arguments.pop(0) if arguments else ""
    if command in ("-h", "--help", "help"):
        print(usage(), end="")
        return 0
    if command in ("-V", "--version"):
        print(f"tvmopt {__version__}")
        return 0
    # As in `python -m bench.compare`.
    command = command.removeprefix("bench.")
    if command not in COMMANDS:
        found = f"unknown command {command!r}" if command else "no command"
        print(f"tvmopt: {found}: give one of {', '.join(COMMANDS)} (--help says more)", file=sys.stderr)
        return 2
    module = importlib.import_module(COMMANDS[command][0])
    return run(module.main, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
