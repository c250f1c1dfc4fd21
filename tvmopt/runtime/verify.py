"""Does it compute what PyTorch computes? One table of tolerances, one check.

The reference is PyTorch in fp64: with an fp32 reference its own rounding would count as our error. Errors are
relative to the largest absolute value of the reference, so that values near zero do not blow them up. Where an
output is a table of class scores, the best class must also be PyTorch's wherever PyTorch itself is sure of it:
its margin between the two best exceeds the tolerance.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tvmopt.errors import VerificationError

if TYPE_CHECKING:
    import numpy as np

# The largest error allowed, as a share of max|reference|. Rounding in a long accumulation and its depth give the
# first two columns (PyTorch's own fp32 is off by at most 4e-6 over twelve of torchvision's families). Winograd's
# transforms subtract numbers of like size: of sixteen families Inception is off most, by 7e-5 of the maximum.
TOLERANCES: dict[str, dict[str, float]] = {
    "float32": {"direct": 5e-5, "gemm": 5e-5, "winograd": 3e-4},
    "float16": {"direct": 2e-2, "gemm": 2e-2, "winograd": 1e-1},
    "bfloat16": {"direct": 1e-1, "gemm": 1e-1, "winograd": 5e-1},
}


@dataclass(frozen=True)
class Verdict:
    """`max_abs_err` in the output's unit, `rel_err` as a share of max|reference|; `message` is one line."""

    max_abs_err: float
    rel_err: float
    ok: bool
    message: str

    def require(self, what: str) -> Verdict:
        """Itself where it is ok; raises VerificationError naming `what` was computed otherwise."""
        if not self.ok:
            raise VerificationError(f"{what} is wrong: {self.message}")
        return self


def tolerance(dtype: str, strategy: str | Mapping[str, str] | None = None) -> float:
    """The error allowed for `dtype`; of several strategies in one network the loosest decides.

    A strategy's variants (`winograd-f4`) share its column.
    """
    table = TOLERANCES[dtype]
    ways = [strategy] if isinstance(strategy, str) else list((strategy or {}).values())
    return max((table.get(way.partition("-")[0], table["direct"]) for way in ways), default=table["direct"])


def check(actual: Any, reference: Any, dtype: str = "float32", strategy: str | Mapping[str, str] | None = None,
          *, top1: bool = True, output_dtype: str | None = None) -> Verdict:  # fmt: skip
    """Compares outputs with their fp64 reference.

    Args:
        actual: a tensor or array, or nested tuples, lists and dicts of them; floating ones must be of `output_dtype`.
        reference: the same structure in fp64; integer and boolean outputs must be equal bit by bit.
        dtype: what was computed in, a row of `TOLERANCES`.
        strategy: a column of it, or operator -> strategy, or None for direct.
        top1: whether the best class of a two-dimensional output must agree; off for kernels, whose
            outputs are no scores.
        output_dtype: what floating outputs must be of, where that is not `dtype` (a network that computes in
            float16 and returns float32).

    Returns:
        The worst output's verdict. NaN and infinities never pass, nor does another shape, dtype or structure.
    """
    allowed = tolerance(dtype, strategy)
    ours, theirs = list(flatten(actual)), list(flatten(reference))
    if len(ours) != len(theirs) or not theirs:
        return _fail(f"{len(ours)} outputs instead of {len(theirs)}")
    verdicts = [
        _check_one(a, r, output_dtype or dtype, allowed, top1, f"output {i}: " if len(theirs) > 1 else "")
        for i, (a, r) in enumerate(zip(ours, theirs, strict=True))
    ]
    failed = [verdict for verdict in verdicts if not verdict.ok]
    return max(failed or verdicts, key=lambda verdict: verdict.rel_err)


def flatten(value: Any) -> Iterator[np.ndarray]:
    """The arrays in nested tuples, lists and dicts, in order. bfloat16 tensors come as fp32 (numpy has no bf16)."""
    if isinstance(value, Mapping):
        value = value.values()
    if isinstance(value, (str, bytes)) or not hasattr(value, "shape"):
        for item in value:
            yield from flatten(item)
    else:
        yield value


def handed_out(outputs: Iterable[Any]) -> str | None:
    """What a network's floating outputs are to be of, for `check`, where that need not be what it computes in.

    A network in reduced precision may hand out float32, which holds what it computed.
    """
    floating = {str(one.dtype).removeprefix("torch.") for one in outputs} & set(TOLERANCES)
    return "float32" if floating == {"float32"} else None


def _check_one(actual: Any, reference: Any, dtype: str, allowed: float, top1: bool, where: str) -> Verdict:
    import numpy as np

    got_dtype = str(actual.dtype).removeprefix("torch.")
    ours, theirs = _array(actual), _array(reference)
    if ours.shape != theirs.shape:
        return _fail(f"{where}shape {tuple(ours.shape)} instead of {tuple(theirs.shape)}")
    exact = theirs.dtype.kind in "iub"
    expected = str(theirs.dtype) if exact else dtype
    if got_dtype != expected:
        return _fail(f"{where}dtype {got_dtype} instead of {expected}")
    if exact:
        wrong = int((ours != theirs).sum())
        error = float(np.abs(ours.astype(np.float64) - theirs.astype(np.float64)).max(initial=0.0))
        return Verdict(error, float(wrong > 0), wrong == 0, f"{where}{wrong} of {ours.size} integers differ")
    if not np.isfinite(theirs).all():
        return _fail(f"{where}the reference itself is not finite: nothing can be said")
    bad = int((~np.isfinite(ours)).sum())
    if bad:
        return _fail(f"{where}{bad} of {ours.size} values are NaN or infinite")
    values, wanted = ours.astype(np.float64), theirs.astype(np.float64)
    scale = float(np.abs(wanted).max(initial=0.0)) or 1.0
    error = float(np.abs(values - wanted).max(initial=0.0))
    relative = error / scale
    flipped = _flipped(values, wanted, allowed * scale) if top1 else 0
    message = f"{where}error {relative:.1e} of max|reference|, {allowed:.0e} allowed"
    if flipped:
        message += f"; the best class differs in {flipped} of {len(wanted)} rows where PyTorch is sure of it"
    return Verdict(error, relative, relative <= allowed and not flipped, message)


def _flipped(values: np.ndarray, wanted: np.ndarray, margin: float) -> int:
    """Rows of a table of scores whose best class differs although the reference's margin exceeds `margin`."""
    import numpy as np

    if wanted.ndim != 2 or wanted.shape[1] < 2 or not len(wanted):
        return 0
    best = np.partition(wanted, -2, axis=1)
    sure = best[:, -1] - best[:, -2] > margin
    return int((sure & (values.argmax(axis=1) != wanted.argmax(axis=1))).sum())


def _array(value: Any) -> np.ndarray:
    import numpy as np

    if hasattr(value, "detach"):
        value = value.detach().cpu()
        if str(value.dtype) == "torch.bfloat16":
            value = value.float()
    elif not isinstance(value, np.ndarray) and hasattr(value, "numpy"):
        value = value.numpy()
    return np.asarray(value)


def _fail(message: str) -> Verdict:
    return Verdict(float("inf"), float("inf"), False, message)
