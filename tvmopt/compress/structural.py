"""Filters and units cut out of a network, which stays dense and gets smaller.

Torch-Pruning (Fang et al., 2023, "DepGraph") follows each removed output through the network: into the batch norm, the
layers that read it, everything a residual adds it to, the parts of a concatenation, the groups of a convolution, and
the columns of a linear layer behind a flatten.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tvmopt.compress.layers import layers_with_weights
from tvmopt.compress.methods import Method
from tvmopt.compress.norms import batch_norm_scales
from tvmopt.compress.reshapes import make_pruner
from tvmopt.errors import ModelError, TvmoptError, UsageError, one_line

if TYPE_CHECKING:
    from torch import Tensor, nn

_log = logging.getLogger(__name__)


def remove(
    module: nn.Module,
    method: Method,
    sparsities: float | Mapping[str, float],
    inputs: Sequence[Tensor],
    *,
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
) -> None:
    """Removes the share `sparsities` of the filters and units of each layer from `module`, in place.

    The smallest by the method's norm go, summed over all layers that have to lose the same one. Of every layer at least
    one stays. The last layer's outputs stay, and those of `skip`; with `only`, those of all others. The built-in
    ResNet-20, whose shortcuts pad channels by a number, gets ones that can be cut first.
    Errors: `UsageError` for names that are no layers, `ModelError` where the network cannot be followed or does not
    run any more: shapes written as numbers in its forward, channels padded by hand.
    """
    import torch

    from tvmopt.models.resnet20 import project_shortcuts

    try:
        import torch_pruning as tp
    except ImportError as error:
        raise TvmoptError("structural removal needs Torch-Pruning: pip install torch-pruning") from error
    # Before the layers are looked at: the projections are layers like others.
    project_shortcuts(module)
    found = layers_with_weights(module)
    for name in (*only, *skip):
        if name not in found:
            raise UsageError(f"the model has no layer {name!r} to remove filters of: it has {', '.join(found)}")
    if not found:
        raise ModelError("the model has no convolution or linear layer to remove filters of")
    last = next(reversed(found))
    if last in only:
        raise ModelError(f"layer {last} can't be pruned by {method.name}: its outputs are the network's")
    kept = {name for name in found if name == last or name in skip or (only and name not in only)}
    # The batch norms' statistics and the masks of dropout are not to change while the network is followed.
    module.eval()
    for parameter in module.parameters():
        parameter.requires_grad_(True)
    importance: Any = tp.importance.GroupMagnitudeImportance(p=1 if method.detail == "l1" else 2)
    if method.detail == "bn":
        _need_batch_norms(module, [name for name in found if name not in kept], inputs)
        importance = tp.importance.BNScaleImportance()
    shares = {} if isinstance(sparsities, float | int) else sparsities
    overall = sparsities if isinstance(sparsities, float | int) else 0.0
    ratios = {layer: _leaving_one(shares.get(name, overall), layer) for name, layer in found.items()}
    before = sum(parameter.numel() for parameter in module.parameters())
    try:
        make_pruner(
            module, inputs, importance, pruning_ratio=overall, max_pruning_ratio=1.0, pruning_ratio_dict=ratios,
            ignored_layers=[found[name] for name in kept],
        ).step()  # fmt: skip
    except Exception as error:
        raise ModelError(f"the network cannot be followed for removing filters ({one_line(error, 150)})") from error
    try:
        with torch.no_grad():
            module(*inputs)
    except Exception as error:
        raise ModelError(
            f"without the filters the network does not run ({one_line(error, 150)}): leave out the layers before "
            "that with --skip, or take masks (filter-l2)"
        ) from error
    after = sum(parameter.numel() for parameter in module.parameters())
    if after == before and max(overall, *shares.values(), 0.0) > 0:
        raise ModelError(f"{method.name} can remove nothing: the layers that may lose filters have one each, if any")
    _log.debug("%d of %d parameters left", after, before)


def _leaving_one(share: float, layer: nn.Module) -> float:
    """`share`, or less: Torch-Pruning rounds down what is left, and leaves a layer that would lose all as it is."""
    outputs = int(getattr(layer, "out_channels", 0) or getattr(layer, "out_features", 0))
    if not outputs:
        return share
    # Halfway to the next, where no rounding of floats matters.
    return share if int(outputs * (1 - share)) >= 1 else max(1 - 1.5 / outputs, 0.0)


def _need_batch_norms(module: nn.Module, names: Sequence[str], inputs: Sequence[Tensor]) -> None:
    from torch import nn

    layers = layers_with_weights(module)
    # A depthwise layer's filters go with those of the layer before it.
    own = [name for name in names if not isinstance(layers[name], nn.Linear) and layers[name].weight.shape[1] > 1]
    batch_norm_scales(module, own, inputs)
