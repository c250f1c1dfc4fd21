"""How sparse each layer is for a whole that has so many zeros: the small layers keep more of their weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from tvmopt.errors import UsageError

# "uniform": every layer alike.
KINDS = ("uniform", "erdos-renyi")
# No layer is emptied.
_MOST = 0.98


def erdos_renyi(shapes: Mapping[str, Sequence[int]], sparsity: float, power: float = 1.0) -> dict[str, float]:
    """Layer -> its sparsity, such that all together have the share `sparsity` of zeros.

    shapes: layer -> shape of its weight, (outputs, inputs, ...). A layer keeps a share of its weights proportional to
    the sum of its weight's extents over their product: that of a random graph with a fixed number of edges a node
    (Mocanu et al., 2018; with the kernel's extents Evci et al., 2020, "Rigging the lottery"). What would be more than
    all its weights is all of them, no layer loses more than 98%, and the other layers take the difference.
    power: of that share. At 1 it is the papers'; at 0 all layers are alike; between, small layers, which often are
    those on many pixels, where a zero saves most time, keep some of their advantage.

    Raises:
        UsageError: a sparsity that is negative, or 0.98 and more.
    """
    if not 0 <= sparsity < _MOST:
        raise UsageError(f"--sparsity {sparsity:g}: by layer size it must be at least 0 and less than {_MOST}")
    count = {name: math.prod(shape) for name, shape in shapes.items()}
    wanted = (1 - sparsity) * sum(count.values())

    def kept(scale: float) -> dict[str, float]:
        return {
            name: count[name] * min(max(scale * (sum(shape) / count[name]) ** power, 1 - _MOST), 1.0)
            for name, shape in shapes.items()
        }

    low, high = 0.0, max(count[name] / sum(shape) for name, shape in shapes.items()) ** power
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(kept(middle).values()) < wanted else (low, middle)
    return {name: 1 - left / count[name] for name, left in kept(high).items()}
