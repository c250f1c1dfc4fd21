"""How much each layer can lose: a scan of one layer at a time, and the sparsities that follow from it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from tvmopt.compress.layers import chosen_layers
from tvmopt.compress.masked import Masked
from tvmopt.compress.methods import Method
from tvmopt.compress.structural import remove
from tvmopt.errors import UsageError
from tvmopt.pt2 import duplicate

if TYPE_CHECKING:
    from torch import Tensor, nn

SPARSITIES = (0.25, 0.5, 0.7, 0.8, 0.9, 0.95)
# No layer is emptied, whatever the scan says: it looked at one layer at a time.
_MOST = 0.98

Scan = dict[str, dict[float, float]]


def scan(
    module: nn.Module,
    method: Method,
    inputs: Sequence[Tensor],
    score: Callable[[nn.Module], float],
    *,
    sparsities: Sequence[float] = SPARSITIES,
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    progress: Callable[[str, float, float], None] | None = None,
) -> Scan:
    """Layer -> sparsity -> the score of the network with that layer alone pruned; `module` stays as it is.

    score: the higher the better, such as top-1 on held-back images; its value for sparsity 0 is in every line.
    """
    shares = (method.fixed_sparsity,) if method.fixed_sparsity is not None else tuple(sparsities)
    whole = score(module)
    found: Scan = {}
    for name in chosen_layers(module, method, only, skip):
        found[name] = {0.0: whole}
        for share in shares:
            tried = duplicate(module)
            if method.kind == "structural":
                remove(tried, method, {name: share}, inputs)
            else:
                masked = Masked(tried, method, inputs, only=[name])
                masked.prune(share)
                masked.bake()
            found[name][share] = score(tried)
            if progress is not None:
                progress(name, share, found[name][share])
    return found


def allocate(found: Scan, params: Mapping[str, int], sparsity: float) -> dict[str, float]:
    """Layer -> its sparsity, such that all together have the share `sparsity` of zeros and all lose equally much.

    params: layer -> how many weights it has. Every layer gets the sparsity at which its own score has fallen by the
    same amount, found by bisection on that amount (Li et al., 2016, section 3.2, prune by sensitivity; one common
    loss as in Han et al., 2015). Between the sparsities of the scan a line is drawn.
    """
    if not 0 <= sparsity < _MOST:
        raise UsageError(f"--sparsity {sparsity:g}: by sensitivity it must be at least 0 and less than {_MOST}")
    total = sum(params[name] for name in found)

    def reached(loss: float) -> dict[str, float]:
        return {name: _share_at(line, loss) for name, line in found.items()}

    def mean(shares: Mapping[str, float]) -> float:
        return sum(shares[name] * params[name] for name in found) / total

    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if mean(reached(middle)) < sparsity else (low, middle)
    shares = reached(high)
    # Too few or too many zeros are left where a line is flat, or where the scan ends: all move by the same part.
    have = mean(shares)
    if have > sparsity:
        return {name: share * sparsity / have for name, share in shares.items()}
    for _ in range(20):
        left = sum((_MOST - share) * params[name] for name, share in shares.items())
        part = min(1.0, (sparsity - mean(shares)) * total / left) if left > 0 else 0.0
        shares = {name: share + part * (_MOST - share) for name, share in shares.items()}
    return shares


def _share_at(line: Mapping[float, float], loss: float) -> float:
    """The largest sparsity before which the score has not fallen by more than `loss`."""
    points = sorted(line.items())
    whole = points[0][1]
    for (share, score), (after, fallen) in itertools.pairwise(points):
        if whole - fallen > loss:
            drop = score - fallen
            part = (loss - (whole - score)) / drop if drop > 0 else 0.0
            return share + min(max(part, 0.0), 1.0) * (after - share)
    return points[-1][0]
