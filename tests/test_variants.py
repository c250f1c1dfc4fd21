"""The three variants: what they compute, what they are built of, and what no rule may do."""

from __future__ import annotations

import ast
import logging
import math
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tvmopt.model import Model
    from tvmopt.runtime.executable import Compiled

ROOT = Path(__file__).resolve().parent.parent
VARIANTS = ("original", "manual", "auto")
STRATEGIES = ("direct", "gemm")


# --- a trained network, built in every way ---


@cache
def model_of(spec: str, shape: tuple[int, ...] | None = None) -> Model:
    from tvmopt.model import load_model

    return load_model(spec, input_shape=shape)


@cache
def built(variant: str, strategy: str) -> Compiled:
    """digits_cnn, without a tuning log."""
    from tvmopt.machine import detect
    from tvmopt.variants import build_variant

    return build_variant(
        model_of("digits_cnn"), variant, detect(), log_dir="/no-logs-here", strategies={"conv2d": strategy}
    )


def failure(compiled: Compiled, model: Model) -> str:
    """What is wrong with the outputs, against PyTorch in float64, for two inputs; empty where nothing is.

    The tolerance is that of the strategies the network says it was lowered by.
    """
    import copy

    import torch

    from tvmopt.runtime.verify import check

    reference = copy.deepcopy(model.module).double()
    generator = torch.Generator().manual_seed(1)
    others = tuple(torch.randn(x.shape, generator=generator) for x in model.example_inputs)
    for inputs in (model.example_inputs, others):
        with torch.no_grad():
            wanted = reference(*[x.double() for x in inputs])
        verdict = check(compiled(*inputs), wanted, "float32", compiled.meta["strategies"])
        if not verdict.ok:
            return verdict.message
    return ""


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_computes_what_pytorch_does(variant: str, strategy: str) -> None:
    assert not failure(built(variant, strategy), model_of("digits_cnn"))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_sources_of_the_plans(strategy: str) -> None:
    original, manual, auto = (built(variant, strategy).meta["plan"] for variant in VARIANTS)
    assert {plan.source for plan in original} == {"original"}
    assert {plan.source for plan in manual} == {"manual"}
    assert [plan for plan in auto if plan.rule == f"conv2d_{strategy}"]


def test_auto_without_a_log_takes_manuals_schedules_and_says_so_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from tvmopt.machine import detect
    from tvmopt.variants import build_variant

    with caplog.at_level(logging.WARNING):
        auto = build_variant(model_of("digits_cnn"), "auto", detect(), log_dir=tmp_path)
    assert auto.meta["plan"] == built("manual", "plan").meta["plan"]
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(said) == 1
    count = len(auto.meta["plan"])
    assert f"{count} of {count} kernels of digits_cnn" in said[0]
    assert "python -m tvmopt.tune digits_cnn" in said[0]
    # Reading makes no directories.
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("variant", ["original", "manual"])
def test_the_ir_is_written_after_every_phase(variant: str, tmp_path: Path) -> None:
    from tvmopt.graph.blocking import BlockLayout
    from tvmopt.graph.pipeline import building, lowering
    from tvmopt.machine import detect
    from tvmopt.variants import build_variant

    machine = detect()
    build_variant(model_of("digits_cnn"), variant, machine, log_dir=tmp_path / "no", dump_dir=tmp_path / "ir")
    phases = [*lowering(BlockLayout(machine, {"conv2d": "direct"})), *building()]
    expected = sorted(["0-import", "5-schedule", *(phase.name for phase in phases)])
    files = sorted((tmp_path / "ir").iterdir())
    assert [file.name for file in files] == [f"{name}.py" for name in expected]
    assert [name[0] for name in expected] == [str(number) for number in range(len(expected))]
    texts = [file.read_text() for file in files]
    assert all("def main" in text for text in texts)
    assert ("T.parallel" in texts[5]) == (variant == "manual")
    # Values of weights would be megabytes.
    assert max(map(len, texts)) < 1_000_000


def test_a_directory_for_the_ir_that_cannot_be_is_one_line() -> None:
    from tvmopt.errors import OutputError
    from tvmopt.graph.pipeline import lower_model
    from tvmopt.machine import detect

    with pytest.raises(OutputError, match="--dump-ir /dev/null/ir"):
        lower_model(model_of("digits_cnn"), detect(), dump_dir=Path("/dev/null/ir"))


# --- nothing is left serial ---


def work(func: Any) -> int:
    """Steps of the largest stage, without those that were inlined: their readers may need a part of them only."""
    from tvmopt.graph.kernels import find_blocks

    def steps(block: Any) -> int:
        return math.prod(getattr(iv.dom.extent, "value", 1) for iv in block.iter_vars)

    return max((steps(block) for block in find_blocks(func)), default=0)


def is_parallel(func: Any) -> bool:
    import tvm
    from tvm_ffi import structural_walk

    kinds: list[int] = []
    structural_walk(func.body, (tvm.tirx.For, lambda loop: kinds.append(int(loop.kind))))
    return int(tvm.tirx.ForKind.PARALLEL) in kinds


def serial_kernels(model: Model, strategy: str = "direct") -> list[str]:
    """Kernels of manual that one core computes although they are large enough for all."""
    from tvmopt.schedules.cpu.common import pays_in_parallel
    from tvmopt.schedules.cpu.fallback import SERIAL_BELOW

    from tvmopt.graph.pipeline import lower_model
    from tvmopt.machine import detect
    from tvmopt.operators import ANCHORS
    from tvmopt.variants import schedule_kernels

    lowered = lower_model(model, detect(), {"conv2d": strategy})
    functions = schedule_kernels(lowered, "manual", detect()).functions
    return [
        f"{kernel.name} ({kernel.op}, {kernel.shape})"
        for kernel in lowered.kernels
        if (pays_in_parallel(kernel) if kernel.op in ANCHORS else work(functions[kernel.name]) >= SERIAL_BELOW)
        and not is_parallel(functions[kernel.name])
    ]


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("spec", ["digits_cnn", "mnist_cnn"])
def test_manual_leaves_no_kernel_serial_that_is_not_tiny(spec: str, strategy: str) -> None:
    assert serial_kernels(model_of(spec), strategy) == []


def test_an_unscheduled_kernel_is_seen_as_serial() -> None:
    from tvmopt.graph.pipeline import lower_model
    from tvmopt.machine import detect

    kernels = lower_model(model_of("digits_cnn"), detect()).kernels
    assert not any(is_parallel(kernel.func) for kernel in kernels)
    assert max(work(kernel.func) for kernel in kernels) > 100_000


# --- no outside library ---

# What LLVM's code may refer to: its own intrinsics, TVM's runtime, and the C library's elementary functions.
_INTERNAL = re.compile(
    r"llvm\.|TVMFFI|TVMBackend|__tvm|_?_?(mem(cpy|set|move)|(exp|exp2|log|log2|log1p|pow|tanh|erf|sqrt|floor|ceil|round|"
    r"rint|nearbyint|trunc|fmod|fma|fmin|fmax|sin|cos|tan|atan|sinh|cosh)f?)$"
)
_OUTSIDE = re.compile(r"cblas|mkl|dnnl|onednn|cudnn|cublas|nnpack|tvm\.contrib|sgemm|dgemm|thrust|mps\.", re.IGNORECASE)


def outside_calls(executable: Any) -> list[str]:
    """Every name by which a Relax executable could reach code that TVM did not generate for it."""
    found: list[str] = []
    library = executable.mod
    modules, defined = list(library.imports), set[str]()
    while modules:
        module = modules.pop()
        modules += module.imports
        if module.kind != "llvm":
            found.append(f"a module of kind {module.kind}")
            continue
        source = module.inspect_source("ll")
        declared = re.findall(r"^declare .*?@\"?([^\"(]+)\"?\(", source, re.MULTILINE)
        found += [name for name in declared if not _INTERNAL.match(name)]
        # Packed functions are looked up by their names, which are constants.
        found += [text for text in re.findall(r'c"([^"\\]+)\\00"', source) if _OUTSIDE.search(text)]
        symbols = re.findall(r"^define .*?@\"?([^\"(]+)\"?\(", source, re.MULTILINE)
        defined |= {symbol.removeprefix("__tvm_ffi_") for symbol in symbols}
    called = set(re.findall(r"^\s*call\s+(\S+)", executable.as_text(), re.MULTILINE))
    return found + [name for name in called if not name.startswith("vm.builtin.") and name not in defined]


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_no_variant_calls_an_outside_library(variant: str, strategy: str) -> None:
    executable = built(variant, strategy).executable
    assert outside_calls(executable) == []


@pytest.mark.parametrize("how", ["extern", "packed", "graph"])
def test_a_call_to_an_outside_library_is_seen(how: str) -> None:
    import tvm
    from tvm import relax, tirx
    from tvm.script import tirx as T

    from tvmopt.machine import detect

    @T.prim_func
    def extern(a: T.Buffer((T.int64(4),), "float32"), b: T.Buffer((T.int64(4),), "float32")):
        T.evaluate(T.call_extern("int32", "cblas_sgemm", a.data, b.data))

    @T.prim_func
    def packed(a: T.Buffer((T.int64(4),), "float32"), b: T.Buffer((T.int64(4),), "float32")):
        T.evaluate(T.call_packed("tvm.contrib.cblas.matmul", a[0], b[0]))

    functions: dict[str, tirx.PrimFunc] = {"extern": extern, "packed": packed}
    builder = relax.BlockBuilder()
    four = relax.TensorType((4,), "float32")
    x = relax.Var("x", four)
    with builder.function("main", [x]):
        if how == "graph":
            call = relax.call_dps_packed("tvm.contrib.mkl.matmul", relax.Tuple([x]), four)
        else:
            call = relax.call_tir(builder.add_func(functions[how], "kernel"), relax.Tuple([x]), four)
        builder.emit_func_output(builder.emit(call))
    executable = tvm.compile(builder.get(), detect().target())
    name = {"extern": "cblas_sgemm", "packed": "tvm.contrib.cblas.matmul", "graph": "tvm.contrib.mkl.matmul"}[how]
    assert name in outside_calls(executable)


# --- no rule knows a network by its shapes ---

# Sizes of kernels, strides and blocks' parts are properties of an operator; what is larger is a network's.
_LARGEST = 4


def _integers(node: ast.expr) -> Iterator[int]:
    for part in ast.walk(node):
        if isinstance(part, ast.Constant) and type(part.value) is int:
            yield part.value


def literal_shapes(source: str) -> list[str]:
    """Places in Python source that decide by the literal shape of something.

    That is an equality with a number above 4, an order against one that is no power of two (a threshold of the
    hardware's), a comparison with two or more numbers at once, a `case` of such, and a table with such keys. Names
    of numbers count like the numbers where equality is asked for; a rank (`len(...)`) is no shape.
    """
    tree = ast.parse(source)
    named = {
        target.id: node.value
        for node in tree.body if isinstance(node, ast.Assign)
        for target in node.targets if isinstance(target, ast.Name)
    }  # fmt: skip
    found = []

    def several(node: ast.expr) -> bool:
        return isinstance(node, (ast.Tuple, ast.List, ast.Set, ast.Dict)) and len(list(_integers(node))) >= 2

    def is_length(node: ast.expr) -> bool:
        return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "len"

    for node in ast.walk(tree):
        wrong = False
        if isinstance(node, ast.Compare) and not any(map(is_length, (node.left, *node.comparators))):
            equality = any(isinstance(op, (ast.Eq, ast.NotEq, ast.In, ast.NotIn)) for op in node.ops)
            sides = [node.left, *node.comparators]
            if equality:
                sides = [named.get(side.id, side) if isinstance(side, ast.Name) else side for side in sides]
            for side in sides:
                numbers = list(_integers(side)) if equality or isinstance(side, ast.Constant) else []
                wrong |= several(side)
                wrong |= any(abs(n) > _LARGEST and (equality or n & (n - 1) != 0) for n in numbers)
        elif isinstance(node, ast.match_case):
            wrong = any(
                value > _LARGEST for part in ast.walk(node.pattern) if isinstance(part, ast.MatchValue)
                for value in _integers(part.value)
            )  # fmt: skip
        elif isinstance(node, ast.Dict):
            wrong = any(key is not None and several(key) for key in node.keys)
        if wrong:
            line = node.pattern.lineno if isinstance(node, ast.match_case) else node.lineno
            found.append(f"{line}: {ast.get_source_segment(source, node)}")
    return found


@pytest.mark.parametrize("path", sorted((ROOT / "schedules").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_no_rule_branches_on_a_known_networks_shape(path: Path) -> None:
    assert literal_shapes(path.read_text()) == []


@pytest.mark.parametrize(
    "source",
    [
        "if height == 56: tile = 7",
        "if (height, width) == (7, 7): tile = 7",
        "tile = 7 if shape in [(1, 64, 56, 56)] else 8",
        "if width >= 224: pass",
        "if 112 > width: pass",
        "SIDE = 56\nif width == SIDE: pass",
        "SHAPES = {(64, 56, 56): 7}\ntile = SHAPES.get(shape)",
        "if channels % 16 == 0 and math.prod(shape) == 64 * 56 * 56: pass",
        "match width:\n    case 56: pass",
    ],
)
def test_a_branch_on_a_literal_shape_is_seen(source: str) -> None:
    assert literal_shapes(source)


def test_what_a_rule_may_ask_is_not_seen() -> None:
    source = "BELOW = 4096\nif size < BELOW or kernel == 3 or stride in (1,) or len(x) == 5 or rows <= 32: pass"
    assert literal_shapes(source) == []


# --- the families of torchvision ---

# With the smallest image the network allows: original is built without schedules and computes for minutes.
FAMILIES = {
    "resnet18": 64, "mobilenet_v2": 64, "mobilenet_v3_large": 64, "googlenet": 64, "vgg11": 64, "squeezenet1_1": 64,
    "efficientnet_b0": 64, "densenet121": 64, "shufflenet_v2_x1_0": 64, "mnasnet1_0": 64, "regnet_y_400mf": 64,
    "convnext_tiny": 64, "vit_b_16": 64, "swin_t": 64, "inception_v3": 75, "alexnet": 64,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["original", "manual"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_of_torchvision(name: str, variant: str, tmp_path: Path) -> None:
    from tvmopt.machine import detect
    from tvmopt.model import load_model
    from tvmopt.variants import build_variant

    model = load_model(f"torchvision:{name}", input_shape=(3, FAMILIES[name], FAMILIES[name]))
    compiled = build_variant(model, variant, detect(), log_dir=tmp_path)
    assert not failure(compiled, model)
    assert outside_calls(compiled.executable) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_manual_leaves_no_kernel_of_a_family_serial(name: str) -> None:
    assert serial_kernels(model_of(f"torchvision:{name}", (3, FAMILIES[name], FAMILIES[name]))) == []
