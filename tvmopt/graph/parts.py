"""A batch in parts: as many images at once as fit L3 between two kernels, where going to memory would take longer.

A large batch goes through a network kernel by kernel, and what one writes is out of the caches before the next reads
it. Depthwise convolutions, which do little with what they read, then wait for memory: MobileNetV2 took 3.16 ms an image
in batches of 4, and 3.99 in one of 32. So its 32 are 8 times 4 (`one_function` has the loop). Convolutions that do much
with what they read hide that, and larger batches use their weights better: ResNet-18's 32 stay one batch.

Images must not depend on each other for that; where they do, or where it cannot be told, the batch stays whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from tvmopt.graph.strategy import L3_BYTES, MEMORY_BYTES, is_resident

if TYPE_CHECKING:
    from torch import Tensor

    from tvmopt.graph.network import Network
    from tvmopt.machine import Machine
    from tvmopt.model import Model

# Of L3, what one kernel reads and writes may take: the rest is for weights, and for whoever shares it.
_SHARE = 0.75
# Parts must be this much cheaper: small batches fit the kernels' tiles less well, which is not counted.
_MARGIN = 0.95
# A kernel's launch on all cores, 2 microseconds (schedules/cpu/common.py), in cycles at 3.7 GHz. Behind another in one
# launch (one_launch.py) it is less, so that smaller parts are a little better than is said here.
_LAUNCH_CYCLES = 7400.0


def images_at_once(network: Network, flops: Mapping[str, int], batch: int, machine: Machine) -> int:
    """The size of a part: a divisor of `batch`, and `batch` itself where parts are not clearly cheaper.

    network: of the whole batch. flops: of one call of each of its kernels.
    """
    cycles = {size: _cycles(network, flops, batch, size, machine) for size in range(1, batch + 1) if batch % size == 0}
    # Of equals the largest.
    best = min(reversed(cycles), key=lambda size: cycles[size])
    return best if cycles[best] < _MARGIN * cycles[batch] else batch


def _cycles(network: Network, flops: Mapping[str, int], batch: int, size: int, machine: Machine) -> float:
    """What all parts of `size` take: each kernel its arithmetic or what it moves, whichever is longer."""
    constants = {value for step in network.steps for value in step.reads if value.kind == "weight"}
    weights_stay = is_resident(sum(value.size for value in constants), machine)
    total = 0.0
    for step in network.steps:
        values = (*step.reads, *step.writes)
        weights = sum(value.size for value in values if value.kind == "weight") * batch // size
        between = sum(value.size for value in values if value.kind == "between")
        callers = sum(value.size for value in values if value.kind in ("input", "output"))
        fits = (between + callers) * size // batch <= _SHARE * machine.l3
        near = (between if fits else 0) + (weights if weights_stay else 0)
        far = callers + (0 if fits else between) + (0 if weights_stay else weights)
        arithmetic = flops.get(step.kernel or "", 0) / (2 * machine.lanes)
        moved = far / MEMORY_BYTES + near / L3_BYTES
        total += max(arithmetic, moved) / machine.cores + _LAUNCH_CYCLES * batch / size
    return total


def part_of(model: Model, size: int) -> Model:
    """`model` for the first `size` images of its example inputs."""
    return replace(model, example_inputs=tuple(tensor[:size].contiguous() for tensor in model.example_inputs))


def has_a_batch(model: Model) -> bool:
    """Whether all inputs of `model` have a common first extent, which can be made smaller.

    Only of inputs that may be any numbers can it be seen whether images depend on each other: not of indices.
    """
    free = all(x.dtype.is_floating_point and x.shape[:1] == (model.batch,) for x in model.example_inputs)
    return model.batch > 1 and model.exported is None and free


def independent(model: Model, size: int) -> bool:
    """Whether PyTorch computes the same for the first and the last part by themselves as among other images.

    The others are a hundred times as large, so that what looks at them shows, however little it takes from them.
    """
    import torch

    generator = torch.Generator().manual_seed(0)
    images = [torch.randn(x.shape, generator=generator, dtype=x.dtype) for x in model.example_inputs]
    with torch.no_grad():
        for rows in (slice(0, size), slice(model.batch - size, model.batch)):
            own = [image[rows].contiguous() for image in images]
            among = [image * 100 for image in images]
            for image, part in zip(among, own, strict=True):
                image[rows] = part
            try:
                alone, whole = _tensors(model.module(*own)), _tensors(model.module(*among))
                if len(alone) != len(whole) or not all(map(_alike, alone, (tensor[rows] for tensor in whole))):
                    return False
            except Exception:
                # The user's module, which may be written for one batch size; or an output without extents.
                return False
    return True


def _tensors(outputs: object) -> list[Tensor]:
    from torch import Tensor
    from torch.utils import _pytree as pytree

    return [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]


def _alike(one: Tensor, other: Tensor) -> bool:
    """Equal but for another order of sums, for which float32 has about 1e-5 of the largest value."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if not one.dtype.is_floating_point:
        return bool((one == other).all())
    return bool((one - other).abs().max() <= 1e-4 * other.abs().max())
