"""A network with masks on it: held while it trains, moved while the sparsity grows, baked in at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tvmopt.compress.layers import batch_norm_scales, chosen_layers
from tvmopt.compress.masks import masks
from tvmopt.compress.methods import Method

if TYPE_CHECKING:
    from torch import Tensor, nn


class Masked:
    """`module` under masks of torch.nn.utils.prune, in place: each layer computes with weight_orig * weight_mask.

    A weight that is masked gets no gradient and keeps its value, so that it can come back while the masks still move.
    """

    def __init__(
        self,
        module: nn.Module,
        method: Method,
        inputs: Sequence[Tensor],
        *,
        only: Sequence[str] = (),
        skip: Sequence[str] = (),
    ) -> None:
        import torch
        from torch.nn.utils import prune

        self.module, self.method, self._inputs = module, method, tuple(inputs)
        self.layers: dict[str, Any] = chosen_layers(module, method, only, skip)
        if method.detail == "bn":
            # Fails now for a convolution without a batch norm, not after hours of training.
            batch_norm_scales(module, list(self.layers), self._inputs)
        for layer in self.layers.values():
            for name in self._masked(layer):
                prune.custom_from_mask(layer, name, torch.ones_like(getattr(layer, name)))

    def _masked(self, layer: Any) -> tuple[str, ...]:
        # A unit is gone only with its bias: what stays would be a constant.
        whole = self.method.kind in ("unit", "filter") and getattr(layer, "bias", None) is not None
        return ("weight", "bias") if whole else ("weight",)

    def prune(self, sparsities: float | Mapping[str, float]) -> None:
        """Sets the masks by the weights as they are now. sparsities: of all layers, or layer -> its own."""
        weights = {name: layer.weight_orig for name, layer in self.layers.items()}
        by_layer = {name: sparsities if isinstance(sparsities, (int, float)) else sparsities[name] for name in weights}
        scales = batch_norm_scales(self.module, list(weights), self._inputs) if self.method.detail == "bn" else {}
        for name, mask in masks(self.method, weights, by_layer, scales).items():
            layer = self.layers[name]
            for part in self._masked(layer):
                getattr(layer, f"{part}_mask").copy_(mask if part == "weight" else mask.flatten(1)[:, 0])

    def bake(self) -> None:
        """Makes the zeros part of the weights and takes the masks off; the module is plain again."""
        from torch.nn.utils import prune

        for layer in self.layers.values():
            for name in self._masked(layer):
                prune.remove(layer, name)


def sparsity_of(tensor: Tensor) -> float:
    """Share of zeros in 0..1."""
    return 1 - int(tensor.count_nonzero()) / max(tensor.numel(), 1)
