"""MetaSchedule's general search space, without a rule of ours: its generator, its evolution, its cost model.

Only its measuring is ours: candidates go to the same `Runner`, are verified, and come back as results. So both
searches are judged by one clock, and a candidate that computes something else never enters the database.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tvmopt.tuning.log import Log, key_module, structural_hash

if TYPE_CHECKING:
    from tvm.s_tir import Schedule

    from tvmopt.graph.kernels import Kernel
    from tvmopt.machine import AnyMachine

# Of the evolution. Applying one trace takes about 15 ms, and a batch population x (generations + 1) of them: with
# MetaSchedule's own defaults (512 and 4) half a minute, far longer than measuring the batch.
POPULATION = 64
GENERATIONS = 3
_FIRST_SAMPLES = 16


@dataclass(frozen=True)
class Found:
    """A candidate of the evolution: `candidate` is 16 hex digits naming its program."""

    candidate: str
    schedule: Schedule
    handle: Any


class Evolution:
    """MetaSchedule's evolutionary search on one kernel, a batch at a time.

    `known` names programs measured in earlier runs: they are not proposed again. The best record in `log` seeds it.
    """

    def __init__(
        self, kernel: Kernel, machine: AnyMachine, *, trials: int, batch: int, seed: int = 0,
        known: set[str] | None = None, log: Log | None = None, cost_model: Any = None,
    ) -> None:  # fmt: skip
        from tvm.s_tir import meta_schedule as ms

        _silence()
        self._func = kernel.func
        self._target = machine.target()
        self._seen = set(known or ())
        self._cost_model = cost_model
        self._database = ms.database.MemoryDatabase()
        module = key_module(kernel.func)
        self._workload = self._database.commit_workload(module)
        record = log.find(kernel.func) if log is not None else None
        if log is not None and record is not None:
            self._remember(log.apply(record, kernel.func), record.seconds)
        rules, intrinsics = _space(kernel, self._target)
        with intrinsics():
            self._context = ms.TuneContext(
                mod=module,
                target=self._target,
                space_generator=ms.space_generator.PostOrderApply(
                    sch_rules=rules, postprocs=rules, mutator_probs=rules
                ),
                search_strategy=ms.search_strategy.EvolutionarySearch(
                    population_size=POPULATION,
                    init_min_unmeasured=_FIRST_SAMPLES,
                    genetic_num_iters=GENERATIONS,
                ),
                task_name=kernel.name,
                rand_state=seed + 1,  # 0 is not a seed to TVM
                num_threads=machine.cores,
            )
        self.exhausted = False
        with _quiet():
            spaces = self._context.generate_design_space()
            if not spaces:
                self.exhausted = True
                return
            self._context.pre_tuning(
                max_trials=max(trials, 1),
                num_trials_per_iter=batch,
                design_spaces=spaces,
                database=self._database,
                cost_model=cost_model,
            )

    def propose(self) -> list[Found]:
        """The next batch; empty, and `exhausted`, when it finds nothing new."""
        while not self.exhausted:
            with _quiet():
                handles = self._context.generate_measure_candidates()
            if not handles:
                self.exhausted = True
                break
            found: list[Found] = []
            stale: list[Found] = []
            for handle in handles:
                name = f"{structural_hash(handle.sch.mod):016x}"
                (stale if name in self._seen else found).append(Found(name, handle.sch, handle))
                self._seen.add(name)
            if stale:
                self._notify([(item, None) for item in stale])
            if found:
                return found
        return []

    def tell(self, results: list[tuple[Found, float | None]]) -> None:
        """The seconds of proposed candidates, None for failed ones: into the cost model and the next generation."""
        self._notify(results)
        for item, seconds in results:
            if seconds is not None:
                self._remember(item.schedule, seconds)

    def close(self) -> None:
        """Ends the search."""
        with _quiet(), contextlib.suppress(Exception):  # refused where the search never began
            self._context.post_tuning()

    def _notify(self, results: list[tuple[Found, float | None]]) -> None:
        from tvm.s_tir.meta_schedule.runner import RunnerResult

        handles = [item.handle for item, _ in results]
        answers = [
            RunnerResult(None, "not valid") if seconds is None else RunnerResult([seconds], None)
            for _, seconds in results
        ]
        with _quiet():
            self._context.notify_runner_results(handles, answers)
            if self._cost_model is not None:
                self._cost_model.update(self._context, handles, answers)

    def _remember(self, schedule: Schedule, seconds: float) -> None:
        from tvm.s_tir.meta_schedule.arg_info import ArgInfo
        from tvm.s_tir.meta_schedule.database import TuningRecord

        arguments = ArgInfo.from_prim_func(self._func)
        record = TuningRecord(schedule.trace, self._workload, [seconds], self._target, arguments)
        self._database.commit_tuning_record(record)


def cost_model(machine: AnyMachine, seed: int) -> Any:
    """MetaSchedule's XGBoost model, one for all kernels of a session: what it learns on one serves the next."""
    import numpy as np
    from tvm.s_tir.meta_schedule.cost_model import XGBModel

    # Before it has seen enough it guesses by numpy's global generator.
    np.random.seed(seed)
    with _quiet():
        return XGBModel(num_warmup_samples=32, num_tuning_cores=machine.cores, verbose_eval=0)


def _space(kernel: Kernel, target: Any) -> tuple[str, Callable[[], contextlib.AbstractContextManager[None]]]:
    """Whose rules make the space, and with which intrinsics.

    On a CPU the rules for any: those chosen for this one by default add integer dot products, which need the
    intrinsics we do without. On a GPU with tensor cores theirs for products of half precision, MetaSchedule's plain
    ones for everything else.
    """
    if target.kind.name != "cuda":
        return "llvm", _without_intrinsics
    narrow = any(str(param.dtype) in ("float16", "bfloat16") for param in kernel.func.params)
    if narrow and _is_product(kernel):
        return "cuda-tensorcore", _with_tensor_cores
    return "cuda", _without_intrinsics


def _is_product(kernel: Kernel) -> bool:
    return any(word in kernel.op or word in kernel.name for word in ("gemm", "matmul", "dense", "conv2d")) and not any(
        word in kernel.op or word in kernel.name for word in ("depthwise", "group")
    )


@contextlib.contextmanager
def _with_tensor_cores() -> Iterator[None]:
    """Has CUDA's tensor intrinsics imported, and none of the other machines'.

    Parsing one looks at the source of the whole call stack, which takes half a second beside torch, and there are some
    four hundred: three minutes. Without the source, which nothing here needs, seconds.
    """
    import importlib
    import importlib.util
    import inspect

    name = "tvm.s_tir.tensor_intrin"
    if name not in sys.modules:
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.submodule_search_locations
        package = types.ModuleType(name)
        package.__path__ = list(spec.submodule_search_locations)
        sys.modules[name] = package
        stack = inspect.stack
        inspect.stack = lambda context=0: stack(0)
        try:
            importlib.import_module(f"{name}.cuda")
        finally:
            inspect.stack = stack
    yield


@contextlib.contextmanager
def _without_intrinsics() -> Iterator[None]:
    """Keeps TVM from importing its tensor intrinsics, as every TuneContext does.

    Those are some five hundred functions (CUDA's, ARM's, ...) that are parsed on import, each after a look at the
    whole call stack that costs more the more modules are loaded: two minutes beside torch. No CPU rule here uses one.
    """
    name = "tvm.s_tir.tensor_intrin"
    if name in sys.modules:
        yield
        return
    sys.modules[name] = types.ModuleType(name)
    try:
        yield
    finally:
        del sys.modules[name]


def _silence() -> None:
    for name in ("tvm.s_tir.meta_schedule", "tvm"):
        logging.getLogger(name).setLevel(logging.ERROR)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """xgboost warns about options TVM passes; what matters of the search is in our own table."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
