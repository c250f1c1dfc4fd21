"""One kernel with block-sparse weights, beside every way to compute the same layer densely, in the same turns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvmopt.errors import UsageError

from .kernel_cases import layer
from .kernel_contenders import Built, Check, Contender, logged, main_kernel

if TYPE_CHECKING:
    import numpy as np

    from tvmopt.machine import Machine
    from tvmopt.model import Model

# Operators with sparse kernels: what their dense strategies are called, the first being the one to beat. A strategy
# that lowers a layer to the same kernel as the first is left out.
DENSE = {"conv2d": ("conv2d", ("direct", "gemm", "winograd-f2", "winograd-f4")), "gemm": ("dense", ("packed",))}
# And their sparse ones; that of single weights is for patterns that blocks hold badly.
SPARSE = {"conv2d": ("sparse", "unstructured"), "gemm": ("sparse", "unstructured")}
# Methods of pruning -> input channels of a block, which has 16 output channels; 0 for single weights.
METHODS = {"block-16x1": 1, "block-16x4": 4, "unstructured": 0}
_ROWS = 16


def mask(shape: Sequence[int], sparsity: float, columns: int, generator: np.random.Generator) -> np.ndarray:
    """Which weights (O, I, ...) are kept, drawn at random: of every `_ROWS` output channels equally many blocks."""
    import numpy as np

    out, channels, *window = shape
    if not columns:
        return generator.random(tuple(shape)) >= sparsity
    if channels % columns:
        raise UsageError(f"--method block-{_ROWS}x{columns}: {columns} does not divide the {channels} input channels")
    blocks = channels // columns * int(np.prod(window))
    kept = max(1, round((1 - sparsity) * blocks))
    rows = -(-out // _ROWS)
    chosen = generator.permuted(np.tile(np.arange(blocks) < kept, (rows, 1)), axis=1)
    full = chosen.reshape(rows, channels // columns, *window).repeat(columns, axis=1)
    return full.repeat(_ROWS, axis=0)[:out]


def pruned(op: str, shape: str, sparsity: float, method: str) -> Model:
    """The layer of `kernel_cases` with blocks of its weights zeroed, seeded."""
    import numpy as np
    import torch

    model = layer(op, shape)
    generator = np.random.default_rng(0)
    with torch.no_grad():
        for weight in (parameter for parameter in model.module.parameters() if parameter.dim() > 1):
            weight.mul_(torch.from_numpy(mask(weight.shape, sparsity, METHODS[method], generator)))
    return model


def _is_by(way: str, op: str) -> bool:
    """Whether `op`, the name of an anchor, is of the strategy `way`."""
    return way in op


def build(
    op: str, shape: str, sparsities: Sequence[float], method: str, names: Sequence[str], machine: Machine,
    log_dir: Path, schedules_dir: str | None,
) -> Built:  # fmt: skip
    """Builds the layer by its dense strategies, and for each of `sparsities` the variants `names` of its sparse kernel.

    Raises:
        UsageError: a layer that has no sparse kernel. VerificationError: wrong results.
    """
    from tvmopt.graph.pipeline import lower_model
    from tvmopt.registry import rules
    from tvmopt.runtime.threads import use_threads
    from tvmopt.variants import schedule_manual

    use_threads(machine.cores)
    candidates = rules(machine.kind, schedules_dir)
    operator, ways = DENSE[op]
    contenders: dict[str, Contender] = {}
    missing: dict[str, str] = {}

    def add(model: Model, way: str, variant: str, fits: Callable[[str], bool], label: Mapping[str, Any]) -> Any:
        lowered = lower_model(model, machine, {operator: way})
        kernel = main_kernel(lowered, model)
        name = " ".join(str(part) for part in (variant, way, label.get("sparsity", "")) if part != "")
        if not fits(kernel.op):
            return None
        check = Check(kernel, lowered, model, machine)
        function, plan = schedule_manual(kernel, machine, candidates)
        found = (function, plan.choices, plan.rule or "") if variant == "manual" else logged(kernel, machine, log_dir)
        if found is None:
            missing[name] = f"no log under {log_dir} has a searched schedule of this kernel"
            return None
        strategy = f"{operator}={way}"
        labels = {"variant": variant, "strategy": strategy, **label}
        contenders[name] = check.contender(name, *found, kernel=kernel, labels=labels)
        return kernel

    whole = layer(op, shape)
    dense = add(whole, ways[0], "manual", lambda _: True, {})
    for way in ways[1:]:
        add(whole, way, "manual", lambda found: found != dense.op, {})
    for sparsity in sparsities:
        model = pruned(op, shape, sparsity, method)
        label = {"sparsity": sparsity, "method": method}
        for variant in (name for name in names if name in ("manual", "auto")):
            found = [add(model, way, variant, partial(_is_by, way), label) for way in SPARSE[op]]
            if not any(found) and variant == "manual":
                raise UsageError(
                    f"--sparsity: {op} {shape} has no sparse kernel (groups, or fewer than 16 channels in)"
                )
    return Built(dense, contenders, missing)
