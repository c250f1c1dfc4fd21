"""Makes a network with random weights one whose outputs say something about its kernels.

As constructors leave them, many networks barely depend on their input: ViT's head is all zeros, ConvNeXt scales each
block by 1e-6, and with the initial batch-norm statistics Inception's output changes by 3e-5 of its maximum from one
image to the next. A wrong kernel would pass every check against such a network.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tvmopt.errors import ModelError, one_line

if TYPE_CHECKING:
    from torch import Tensor, nn

_log = logging.getLogger(__name__)

# Images the batch-norm statistics are taken from: enough for a variance where the picture has shrunk to one pixel.
_STATISTICS_BATCH = 16
# Below this a parameter does not show at the tolerances that outputs are compared with.
_NEGLIGIBLE = 1e-4
# Round zero, random batch norms followed by ReLU multiply every rounding error by about 1.2 a layer: Inception's own
# float32 error reaches 3e-5 of the output, beyond which no kernel could be told wrong. Shifted up by half a deviation,
# more units stay linear, as in trained networks, and it is 3e-6, while outputs depend on the input nearly as much.
_BATCH_NORM_BIAS = 0.5
# Outputs must change by so much, relative to their maximum, from one input to another.
MIN_CHANGE = 1e-2


def random_inputs(shapes: Sequence[Sequence[int]], seed: int) -> tuple[Tensor, ...]:
    """float32 standard normal tensors of `shapes`, the same for the same seed; the global generator is left alone."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(tuple(shape), generator=generator) for shape in shapes)


def redraw_negligible(module: nn.Module, seed: int) -> list[str]:
    """Re-draws, in place, each parameter that is zero or nearly so everywhere; returns their names.

    Weights of layers get normal values by fan-in, scales (norm weights, layer scales) and the biases of batch norms
    values round one half, and other biases, tokens and tables small normal ones, so that a kernel that forgets its
    bias is seen too.
    """
    import torch
    from torch import nn

    generator = torch.Generator().manual_seed(seed)
    norms = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)
    drawn = []
    with torch.no_grad():
        for prefix, child in module.named_modules():
            for name, value in child.named_parameters(recurse=False):
                if value.numel() == 0 or not value.is_floating_point() or float(value.abs().max()) >= _NEGLIGIBLE:
                    continue
                noise = torch.randn(value.shape, generator=generator)
                if "scale" in name or "gamma" in name or (isinstance(child, norms) and name == "weight"):
                    value.copy_(0.5 + 0.1 * noise)
                elif isinstance(child, nn.modules.batchnorm._NormBase):
                    value.copy_(_BATCH_NORM_BIAS + 0.1 * noise)
                elif name == "weight" and value.ndim >= 2:
                    value.copy_(noise / (value[0].numel() ** 0.5))
                else:
                    value.copy_(0.02 * noise)
                drawn.append(f"{prefix}.{name}" if prefix else name)
    return drawn


def set_batch_norm_statistics(module: nn.Module, shapes: Sequence[Sequence[int]], seed: int) -> int:
    """Takes every batch norm's mean and variance from one forward pass over random inputs; returns how many there are.

    shapes: of the inputs, batch first; the batch is replaced. Only the batch norms are in training mode for the
    pass (dropout stays off), and each averages cumulatively (momentum None): after one pass that is the batch's own.
    """
    import torch
    from torch import nn

    layers = [layer for layer in module.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    layers = [layer for layer in layers if layer.track_running_stats]
    if not layers:
        return 0
    momenta = [layer.momentum for layer in layers]
    inputs = random_inputs([(_STATISTICS_BATCH, *shape[1:]) for shape in shapes], seed)
    module.eval()
    try:
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None
            layer.train()
        with torch.no_grad():
            module(*inputs)
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        module.eval()
    return len(layers)


def make_verifiable(module: nn.Module, shapes: Sequence[Sequence[int]], seed: int) -> None:
    """Re-draws what does not show and sets the batch-norm statistics, in place; the module is left in eval mode.

    Errors: `ModelError` where the module does not take inputs of `shapes`.
    """
    drawn = redraw_negligible(module, seed)
    try:
        layers = set_batch_norm_statistics(module, shapes, seed + 1)
    except Exception as error:
        described = ", ".join("x".join(str(size) for size in shape) for shape in shapes)
        raise ModelError(f"the model does not take inputs of {described}: {one_line(error, 150)}") from error
    _log.debug("%d parameters drawn anew, %d batch norms set", len(drawn), layers)


def tensors_of(output: Any) -> list[Tensor]:
    """The tensors in a module's output: a tensor, or nested tuples, lists and dicts of them, in order."""
    import torch

    if isinstance(output, torch.Tensor):
        return [output]
    if isinstance(output, dict):
        output = tuple(output.values())
    if isinstance(output, (tuple, list)):
        return [tensor for part in output for tensor in tensors_of(part)]
    return []


def relative_change(module: Any, inputs: Sequence[Tensor], seed: int) -> float | None:
    """How far the outputs move, relative to their maximum, when every floating-point input is replaced by another.

    The smallest over all floating-point outputs; 0 where one is all zeros or not finite; None where there is nothing
    floating to replace or to compare. The other input has the first one's mean and deviation.
    """
    import torch

    if not any(tensor.is_floating_point() for tensor in inputs):
        return None
    noise = random_inputs([tensor.shape for tensor in inputs], seed)
    others = [
        fresh.to(tensor) * (tensor.std(correction=0) + 1e-3) + tensor.mean() if tensor.is_floating_point() else tensor
        for fresh, tensor in zip(noise, inputs, strict=True)
    ]
    with torch.no_grad():
        first, second = tensors_of(module(*inputs)), tensors_of(module(*others))
    changes = []
    for one, other in zip(first, second, strict=True):
        if one.is_floating_point() and one.numel() and one.shape == other.shape:
            largest = float(one.abs().max())
            change = float((one - other).abs().max()) / largest if largest > 0 else 0.0
            changes.append(change if change < float("inf") else 0.0)
    return min(changes) if changes else None
