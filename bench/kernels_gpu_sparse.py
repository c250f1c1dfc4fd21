"""Single layers of block-sparse weights on the GPU, beside the same layer dense, in the same turns.

Each is a network of one layer, pruned in one shot and saved as any pruned network is; the dense layer is lowered by
its best dense strategy, which for the layers that have a sparse kernel on a GPU is the only one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tvmopt.errors import UsageError

from .cases import Case, contenders
from .kernel_cases import layer
from .kernel_contenders import main_kernel
from .pruned import networks

if TYPE_CHECKING:
    from tvmopt.machine import AnyMachine
    from tvmopt.options import BuildOptions

# Operator -> the name its strategies go by, and the dense one.
DENSE = {"conv2d": ("conv2d", "direct"), "gemm": ("dense", "packed")}
SPARSE = "sparse"


@dataclass(frozen=True)
class Layer:
    """A layer and who computes it; `flops` are those of what is kept, `size` the bytes read and written once."""

    cases: list[Case]
    flops: int | None
    size: int
    sparsity: float = 0.0
    method: str | None = None


def supported(wanted: Sequence[tuple[str, str]], machine: AnyMachine) -> list[tuple[str, str]]:
    """Those of `wanted`, (operator, shape), that have a sparse kernel for a GPU.

    Raises:
        UsageError: none of them has.
    """
    found = [(op, shape) for op, shape in wanted if _has_sparse_kernel(op, shape, machine)]
    if not found:
        op, shape = wanted[0]
        raise UsageError(
            f"--sparsity: {op} {shape} has no sparse kernel on a GPU: products have, and 1x1 convolutions of one group "
            "without padding"
        )
    return found


def _has_sparse_kernel(op: str, shape: str, machine: AnyMachine) -> bool:
    from tvmopt.graph.pipeline import lower_model

    lowered = lower_model(layer(op, shape), machine, {DENSE[op][0]: SPARSE})
    return any("sparse" in kernel.op for kernel in lowered.kernels)


def layers(
    op: str, spec: str, dense_size: int, sparsities: Sequence[float], method: str, variants: Sequence[str],
    peers: Sequence[str], options: BuildOptions, folder: Path,
) -> list[Layer]:  # fmt: skip
    """The layer of `spec` dense, as manual and by `peers`; at each of `sparsities` as manual and auto of `variants`.

    Files of the pruned ones are written into `folder`.

    Raises:
        ModelError: a layer that the method does not fit.
    """
    from tvmopt.graph.pipeline import lower_model

    operator, dense = DENSE[op]
    machine = options.machine()
    cases = contenders([spec], ["manual"], peers, dataclasses.replace(options, strategies={operator: dense}))[spec]
    found = [Layer(cases, None, dense_size)]
    ours = [name for name in variants if name in ("manual", "auto")]
    for sparsity in sparsities:
        (made,) = networks([spec], [sparsity], method, options, folder)
        how = dataclasses.replace(made.options, strategies={operator: SPARSE})
        model = how.load(made.source)
        kernel = main_kernel(lower_model(model, machine, how.strategies), model)
        cases = [Case(made.source, name, how, f"{name}, {sparsity:.0%} of zeros") for name in ours]
        found.append(Layer(cases, kernel.flops, kernel.bytes, sparsity, method))
    return found
