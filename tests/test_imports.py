"""Who may import whom, found in the source; and what starting costs."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tvmopt.cli import COMMANDS

ROOT = Path(__file__).resolve().parent.parent

# Each layer imports from itself and from those below it.
LAYERS = [
    {"cli"},
    {"tune", "serve", "replay", "prune", "export", "api", "bench", "variants"},
    {"tuning", "runtime", "compress", "training"},
    # Finds the rules for a kernel of the graph.
    {"registry"},
    {"graph"},
    {"operators"},
    # What stands on neither TVM's graph nor on each other's order: descriptions and what reads them.
    {"model", "models", "data", "image_folder", "image_archive", "image_cache", "pt2", "torchvision_compat", "options",
     "plan", "nvcc"},
    {"machine", "machine_gpu"},
    {"errors", "lifetime"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
# `schedules` knows TVM and the machine; it is found through the registry.
SCHEDULES_MAY = {"schedules", "machine"}
NO_TVM = {"compress", "training"}


def sources() -> list[Path]:
    return sorted(p for top in ("tvmopt", "schedules", "bench") for p in (ROOT / top).rglob("*.py"))


def module_name(path: Path) -> str:
    """The dotted name as an installed wheel has it: schedules and bench inside tvmopt."""
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    if parts[0] != "tvmopt":
        parts.insert(0, "tvmopt")
    if parts[-1] == "__init__":
        parts.pop()
    return ".".join(parts)


def imported(path: Path) -> set[str]:
    """Dotted names of all that a file imports, inside functions and under TYPE_CHECKING too."""
    name = module_name(path)
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([node.module] if node.module else [])])
            found |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return found


def part(dotted: str) -> str | None:
    """The part of tvmopt a dotted name belongs to; None for other packages and for tvmopt itself."""
    pieces = dotted.split(".")
    if pieces[0] != "tvmopt" or len(pieces) == 1:
        return None
    # `from tvmopt import compile` names a public function, not a module.
    return None if pieces[1] in ("__version__", "compile", "load", "TvmoptError") else pieces[1]


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path):
    own = part(module_name(path))
    names = imported(path)
    used = {found for found in map(part, names) if found is not None} - {own}
    if own is None:
        # The package itself stays importable without anything.
        assert not used
        return
    if own == "schedules":
        assert used <= SCHEDULES_MAY, f"{path} imports {used - SCHEDULES_MAY}"
        return
    if own in NO_TVM:
        assert not any(name.split(".")[0] == "tvm" for name in names), f"{path} imports TVM"
    if own == "cli":
        return
    unknown = (used | {own}) - set(LEVEL) - {"schedules"}
    assert not unknown, f"give {unknown} a layer in this test"
    assert "schedules" not in used or own == "registry", f"{path} imports schedules: go through the registry"
    upward = {name for name in used - {"schedules"} if LEVEL[name] < LEVEL[own]}
    assert not upward, f"{path} imports {upward}, which stand above it"
    assert "cli" not in used
    assert own == "bench" or "bench" not in used, f"{path} imports bench: only the command line does"


@pytest.mark.parametrize("top", ["schedules", "bench"])
def test_imports_inside_are_relative(top):
    # Else an installed wheel, where they are tvmopt.schedules and tvmopt.bench, would not find them.
    for path in (ROOT / top).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            wrong = [n for n in names if n.split(".")[0] in ("schedules", "bench") or n.startswith(f"tvmopt.{top}")]
            assert not wrong, f"{path} imports {wrong} absolutely"


def test_no_public_function_is_named_as_a_module():
    import tvmopt

    beside = {path.stem for path in (ROOT / "tvmopt").iterdir()} | {"schedules", "bench"}
    assert not beside & set(tvmopt.__all__)
    assert all(hasattr(tvmopt, name) for name in tvmopt.__all__)


def best_of_three(*arguments: str) -> tuple[float, subprocess.CompletedProcess[str]]:
    """The shortest wall time, in seconds: others on the machine only ever add to it."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        run = subprocess.run(
            [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        times.append(time.perf_counter() - start)
    return min(times), run


def test_import_is_quick():
    seconds, run = best_of_three("-c", "import tvmopt")
    assert run.returncode == 0 and seconds < 0.5


def test_import_loads_nothing_heavy():
    code = "import sys, tvmopt.cli; print([m for m in ('torch', 'tvm', 'numpy') if m in sys.modules])"
    assert best_of_three("-c", code)[1].stdout == "[]\n"


def helps() -> list[tuple[str, ...]]:
    """Every command line that has a --help: `tvmopt`, its commands, and the modules themselves."""
    found: list[tuple[str, ...]] = [("-m", "tvmopt.cli")]
    for command, (module, _) in COMMANDS.items():
        found.append(("-m", "tvmopt.cli", command))
        found.append(("-m", module.removeprefix("tvmopt.").removesuffix(".__main__") if ".bench" in module else module))
    return found


@pytest.mark.parametrize("command", helps(), ids=" ".join)
def test_help_is_quick_and_has_examples(command):
    seconds, run = best_of_three(*command, "--help")
    assert run.returncode == 0, run.stderr
    assert "examples:" in run.stdout and run.stderr == ""
    assert seconds < 1.0


def test_version_and_usage():
    import tvmopt

    assert best_of_three("-m", "tvmopt.cli", "--version")[1].stdout == f"tvmopt {tvmopt.__version__}\n"
    for arguments in ((), ("bogus",), ("--bogus",)):
        run = best_of_three("-m", "tvmopt.cli", *arguments)[1]
        assert run.returncode == 2 and run.stderr.count("\n") == 1 and run.stdout == ""
