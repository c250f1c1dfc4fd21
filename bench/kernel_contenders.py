"""One kernel built several ways: original, manual, auto, or the rungs of its ladder; each verified as it is timed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvmopt.errors import LogError, VerificationError
from tvmopt.runtime.timer import Stopwatch, native_stopwatch

if TYPE_CHECKING:
    import numpy as np
    import tvm

    from tvmopt.graph.kernels import Kernel
    from tvmopt.graph.pipeline import Lowered
    from tvmopt.machine import Machine
    from tvmopt.model import Model


# Operations a second of a kernel that nobody scheduled, about: 0.6e9 of a 1024 GEMM on a Zen 4 core.
UNSCHEDULED_FLOPS = 1e9


@dataclass(frozen=True)
class Contender:
    """One way to run the kernel. `verify` gives the largest error, or raises VerificationError.

    `choices`: the numbers of its rule. `text`: what a rung changes, or where a logged schedule is from. `kernel` and
    `labels` (fields of its result) where contenders are different kernels.
    """

    watch: Stopwatch
    verify: Callable[[], float]
    sources: dict[str, str]
    compile_s: float
    choices: dict[str, Any] = field(default_factory=dict)
    text: str = ""
    kernel: Kernel | None = None
    labels: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Built:
    """The kernel and its contenders; `missing` says why one asked for is not there."""

    kernel: Kernel
    contenders: dict[str, Contender]
    missing: dict[str, str]

    def facts(self) -> dict[str, Any]:
        """What the parent process needs to know, as JSON."""
        return {
            "kernel": _sizes(self.kernel),
            "missing": self.missing,
            "contenders": {
                name: {
                    "choices": one.choices, "text": one.text, "compile_s": one.compile_s, "labels": one.labels,
                    **({"kernel": _sizes(one.kernel)} if one.kernel is not None else {}),
                }
                for name, one in self.contenders.items()
            },
        }  # fmt: skip


def _sizes(kernel: Kernel) -> dict[str, Any]:
    return {"op": kernel.op, "flops": kernel.flops, "bytes": kernel.bytes, "written": kernel.written}


def build_all(
    model: Model, names: Sequence[str], machine: Machine, log_dir: Path, schedules_dir: str | None, ladder: bool,
    strategies: Mapping[str, str], limit_s: float = math.inf,
) -> Built:  # fmt: skip
    """Builds the contenders `names` of a one-layer model's kernel, or with `ladder` all rungs.

    original is left out where three calls of it would take longer than `limit_s`.

    Raises:
        UsageError: `ladder` of a kernel whose rule has none. VerificationError: wrong results.
    """
    from tvmopt.graph.pipeline import lower_model
    from tvmopt.registry import rules
    from tvmopt.runtime.threads import use_threads
    from tvmopt.variants import schedule_manual

    use_threads(machine.cores)
    lowered = lower_model(model, machine, strategies)
    kernel = main_kernel(lowered, model)
    candidates = rules(machine.kind, schedules_dir)
    check = Check(kernel, lowered, model, machine)
    contenders: dict[str, Contender] = {}
    missing: dict[str, str] = {}
    if ladder:
        from .ladder import ladder_of, schedule_rung

        rungs = ladder_of(kernel, machine, candidates)
        contenders["unscheduled"] = check.contender("unscheduled", kernel.func, {}, "the loops as they are lowered")
        for index, rung in enumerate(rungs):
            made = schedule_rung(kernel, machine, candidates, rungs, index)
            contenders[rung.name] = check.contender(rung.name, made.schedule.mod["main"], made.choices, rung.text)
        return Built(kernel, contenders, missing)
    for name in names:
        slow_s = kernel.flops / UNSCHEDULED_FLOPS
        if name == "original" and 3 * slow_s > limit_s:
            missing[name] = f"a call takes about {slow_s:.0f} s; --limit {math.ceil(3 * slow_s)} times it"
        elif name == "original":
            # TVM's own lowering, in the user's layout.
            plain = lower_model(model, machine, variant="original")
            theirs = main_kernel(plain, model)
            contenders[name] = Check(theirs, plain, model, machine).contender(name, theirs.func, {}, "")
        elif name == "manual":
            function, plan = schedule_manual(kernel, machine, candidates)
            contenders[name] = check.contender(name, function, plan.choices, plan.rule or "")
        else:
            found = logged(kernel, machine, log_dir)
            if found is None:
                missing[name] = f"no log under {log_dir} has a searched schedule of this kernel; --tune N makes one"
            else:
                contenders[name] = check.contender(name, *found)
    return Built(kernel, contenders, missing)


def main_kernel(lowered: Lowered, model: Model) -> Kernel:
    """The one that does the layer's work; of those that count no operations, the one that moves most."""
    kernels = lowered.kernels
    if "max_pool2d" in model.name:
        kernels = [kernel for kernel in kernels if kernel.op == "pool2d"] or kernels
    return max(kernels, key=lambda kernel: (kernel.flops, kernel.bytes))


def logged(
    kernel: Kernel, machine: Machine, log_dir: Path
) -> tuple[tvm.tirx.PrimFunc, dict[str, Any], str] | None:
    """The schedule of `kernel` in whatever model's log for this machine has the fastest one; None where none has."""
    from tvmopt.tuning.resolve import open_log

    found = []
    for manifest in sorted((log_dir / machine.slug).glob("*/manifest.json")):
        try:
            resolved = open_log(manifest.parent, machine).resolve(kernel)
        except LogError:
            continue  # a damaged log of some other model is not this command's business
        if resolved.status == "hit" and resolved.schedule is not None and resolved.plan is not None:
            found.append((resolved.plan.seconds or 0.0, manifest.parent.name, resolved))
    if not found:
        return None
    _, name, best = min(found, key=lambda item: item[0])
    assert best.schedule is not None and best.plan is not None
    return best.schedule.mod["main"], best.plan.choices, f"log of {name}"


def _values(kernel: Kernel, shape: list[int], dtype: str, generator: np.random.Generator) -> np.ndarray:
    from tvmopt.graph.kernels import random_integers

    if dtype.startswith("int"):
        return random_integers(kernel.func, shape, generator).astype(dtype)
    return generator.standard_normal(shape).astype(dtype)


class Check:
    """Builds functions of one kernel, and compares what they compute with PyTorch in double precision.

    In the whole layer before timing; alone afterwards, on the timed arguments, with the unscheduled kernel's output.
    """

    def __init__(
        self, kernel: Kernel, lowered: Lowered, model: Model, machine: Machine
    ) -> None:
        import numpy as np
        import torch
        import tvm

        self._kernel, self._lowered, self._model, self._machine = kernel, lowered, model, machine
        self._strategies = lowered.strategies
        with torch.no_grad():
            self._wanted = model.module.double()(*[x.double() for x in model.example_inputs])
        model.module.float()
        generator = np.random.default_rng(0)
        self._arguments = [
            tvm.runtime.tensor(_values(kernel, [int(d) for d in p.shape], str(p.dtype), generator))
            for p in kernel.func.params
        ]
        self._expected: Any = None

    def contender(
        self, name: str, function: tvm.tirx.PrimFunc, choices: dict[str, Any], text: str, **facts: Any
    ) -> Contender:
        """`function` built, verified in the layer, and ready to be timed alone; `facts` are more of its fields."""
        import time

        import tvm

        from tvmopt.graph.host_pipeline import compile_kernels

        in_layer = self._verify_layer(name, function)
        module = tvm.IRModule({"main": function.with_attr("global_symbol", "main")})
        began = time.perf_counter()
        executable = compile_kernels(module, self._machine.target())
        library = executable.jit()
        compile_s = time.perf_counter() - began
        sources = {
            "tir": module["main"].script(show_meta=False),
            "llvm": executable.mod.inspect_source("ll"),
            "asm": executable.mod.inspect_source("asm"),
        }
        watch = native_stopwatch(library, "main", self._arguments)

        def verify() -> float:
            return max(in_layer, self._verify_alone(name, library["main"]))

        return Contender(watch, verify, sources, compile_s, choices, text, **facts)

    def _verify_layer(self, name: str, function: tvm.tirx.PrimFunc) -> float:
        from tvmopt.graph.pipeline import build, with_kernels
        from tvmopt.runtime.executable import Compiled
        from tvmopt.runtime.signature import Signature
        from tvmopt.runtime.verify import check

        module = with_kernels(self._lowered.module, {self._kernel.name: function})
        meta = {"model": self._model.name, "variant": name, "machine": self._machine, "threads": self._machine.cores}
        compiled = Compiled(build(module, self._machine), Signature.from_exported(self._lowered.program), meta)
        verdict = check(compiled(*self._model.example_inputs), self._wanted, "float32", self._strategies, top1=False)
        return verdict.require(f"{self._model.name}, {name}").max_abs_err

    def _verify_alone(self, name: str, built: Any) -> float:
        """The largest error on the timed arguments, the output poisoned before the call."""
        import numpy as np
        import tvm

        from tvmopt.runtime.verify import check

        output = self._arguments[-1]
        if self._expected is None:
            plain = tvm.compile(tvm.IRModule({"main": self._plain()}), target=self._machine.target())["main"]
            plain(*self._arguments)
            self._expected = output.numpy().astype(np.float64)
        output.copyfrom(np.full(output.shape, np.nan, output.numpy().dtype))
        built(*self._arguments)
        verdict = check([output.numpy()], [self._expected], "float32", self._strategies, top1=False)
        if not verdict.ok:
            raise VerificationError(f"{self._model.name}, {name}, on the timed arguments: {verdict.message}")
        return verdict.max_abs_err

    def _plain(self) -> tvm.tirx.PrimFunc:
        """The kernel as it is lowered; one that would take seconds so, by the most general rule instead."""
        from tvmopt.registry import apply_rule, rules

        if self._kernel.flops > UNSCHEDULED_FLOPS:
            general = apply_rule(self._kernel, self._machine, rules(self._machine.kind)[-1:])
            if general is not None:
                return general.schedule.mod["main"].with_attr("global_symbol", "main")
        return self._kernel.func.with_attr("global_symbol", "main")
