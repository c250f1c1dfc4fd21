"""Methods of pruning by name, and what each asks of a layer.

unstructured          the smallest weights of each layer (unstructured-global: of all layers together)
unit                  whole units of linear layers, by the L2 norm of their weights
filter-l1, -l2, -bn   whole filters of convolutions, by the L1 or L2 norm or the scale of the batch norm behind
structural-l1, ...    the same filters and units cut out of the network, which gets smaller and stays dense
block-16x1, -16x4     blocks of 16 outputs x 1 or 4 inputs at one kernel position, by the L2 norm; every 16 outputs
                      keep equally many, which is what kernels with a fixed number of blocks a row take
N:M (2:4, 4:8)        all but the N largest of each M consecutive inputs
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tvmopt.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

METHODS = (
    "unstructured", "unstructured-global", "unit", "filter-l1", "filter-l2", "filter-bn",
    "structural-l1", "structural-l2", "structural-bn", "block-16x1", "block-16x4", "2:4", "4:8",
)  # fmt: skip
_SHORT = {
    "magnitude": "unstructured", "global": "unstructured-global", "units": "unit", "filter": "filter-l2",
    "structural": "structural-l2", "block": "block-16x1", "block-4": "block-16x4",
}  # fmt: skip
_PATTERN = re.compile(r"(\d+):(\d+)")
# Below this many inputs a layer is a stem on pixels: little work, and much of the accuracy.
_STEM_INPUTS = 16


@dataclass(frozen=True)
class Method:
    """kind: unstructured, unit, filter, structural, block or pattern. detail: what tells its forms apart (a norm,
    "global"); rows, columns: of a block; keep, of: of an N:M pattern."""

    name: str
    kind: str
    detail: str = ""
    rows: int = 0
    columns: int = 0
    keep: int = 0
    of: int = 0

    @property
    def fixed_sparsity(self) -> float | None:
        """The one sparsity an N:M pattern gives; None for methods that take any."""
        return 1 - self.keep / self.of if self.kind == "pattern" else None

    @property
    def spares_the_last(self) -> bool:
        """Whether it removes whole outputs, of which the last layer's are the answer."""
        return self.kind in ("unit", "filter", "structural")


def method_of(name: str) -> Method:
    """The method called `name`, in full or short (`block`, `filter`, `structural`); `UsageError` for others."""
    full = _SHORT.get(name.strip().lower(), name.strip().lower())
    found = _PATTERN.fullmatch(full)
    if found:
        keep, of = int(found[1]), int(found[2])
        if not 0 < keep < of:
            raise UsageError(f"--method {name}: N:M keeps N of M, with N from 1 to M - 1, as in 2:4")
        return Method(full, "pattern", keep=keep, of=of)
    if full not in METHODS:
        near = difflib.get_close_matches(full, [*METHODS, *_SHORT], 1, 0.5)
        hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(METHODS)}"
        raise UsageError(f"unknown pruning method {name!r}: {hint}")
    kind, _, detail = full.partition("-")
    if kind == "block":
        rows, columns = (int(size) for size in detail.split("x"))
        return Method(full, kind, rows=rows, columns=columns)
    return Method(full, kind, detail)


def check_sparsity(method: Method, sparsity: float | None) -> float:
    """The sparsity to prune to; None gives an N:M pattern its own. Raises `UsageError` for one that cannot be."""
    fixed = method.fixed_sparsity
    if fixed is not None:
        if sparsity is not None and abs(sparsity - fixed) > 1e-9 and sparsity != 0:
            raise UsageError(f"--sparsity {sparsity:g}: {method.name} is always {fixed:g}; leave --sparsity out")
        return fixed if sparsity is None else sparsity
    if sparsity is None:
        raise UsageError(f"--method {method.name} needs a --sparsity, such as 0.8")
    if not 0 <= sparsity < 1:
        raise UsageError(f"--sparsity {sparsity:g}: must be at least 0 and less than 1, as 0.9 for 90% zeros")
    return sparsity


def objection(method: Method, layer: nn.Module) -> str | None:
    """Why `method` can't prune `layer`, in half a sentence; None where it can."""
    from torch import nn

    if isinstance(layer, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
        return "transposed convolutions are not pruned"
    convolution = isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
    if not convolution and not isinstance(layer, nn.Linear):
        return f"{type(layer).__name__} has no weights to prune (convolutions and linear layers have)"
    if method.kind == "unit" and convolution:
        return "units are a linear layer's; for a convolution take filter-l2"
    if method.kind == "filter" and not convolution:
        return "filters are a convolution's; for a linear layer take unit"
    weight = layer.weight
    assert not isinstance(weight, nn.Module)
    outputs, inputs = int(weight.shape[0]), int(weight.shape[1])
    if method.kind == "block":
        if convolution and layer.groups != 1:
            return f"blocks of {method.rows} outputs do not fit grouped or depthwise convolutions"
        if outputs % method.rows:
            return f"its {outputs} outputs are not a multiple of {method.rows}"
        if inputs % method.columns:
            return f"its {inputs} inputs are not a multiple of {method.columns}"
    if method.kind == "pattern" and inputs % method.of:
        return f"its {inputs} inputs (of a group) are not a multiple of {method.of}"
    return None


def is_stem(method: Method, layer: Any) -> bool:
    """Whether a layer that could be pruned is better left alone unless it is named: a block or pattern on pixels."""
    return method.kind in ("block", "pattern") and int(layer.weight.shape[1]) < _STEM_INPUTS
