"""A network with masks on it: held while it trains, moved while the sparsity grows, baked in at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tvmopt.compress.layers import chosen_layers
from tvmopt.compress.masks import masks
from tvmopt.compress.methods import Method
from tvmopt.compress.norms import Behind, batch_norm_scales, norms_behind

if TYPE_CHECKING:
    from torch import Tensor, nn


class Masked:
    """`module` under masks of torch.nn.utils.prune, in place: each layer computes with weight_orig * weight_mask.

    A weight that is masked gets no gradient and keeps its value, so that it can come back while the masks still move.
    A filter or unit goes whole: with its bias, and with its scale and shift of the batch norm behind the layer, which
    would go on giving a constant for it. (Not where something else reads the layer's output too.)
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

        self.module, self.method = module, method
        self.layers: dict[str, Any] = chosen_layers(module, method, only, skip)
        names, whole = list(self.layers), method.kind in ("unit", "filter")
        if method.detail == "bn":
            # Fails now for a convolution without a batch norm, not after hours of training.
            batch_norm_scales(module, names, inputs)
        self._behind: dict[str, Behind] = norms_behind(module, names, inputs) if whole else {}
        for name in names:
            for part, tensor in self._masked(name):
                prune.custom_from_mask(part, tensor, torch.ones_like(getattr(part, tensor)))

    def _masked(self, name: str) -> list[tuple[Any, str]]:
        """The modules, and their parameters, that are masked with layer `name`; its own weight is the first."""
        layer, behind = self.layers[name], self._behind.get(name)
        found = [(layer, "weight")]
        if self.method.kind in ("unit", "filter"):
            found += [(layer, "bias")] if getattr(layer, "bias", None) is not None else []
            found += [(behind.norm, "weight"), (behind.norm, "bias")] if behind is not None and behind.alone else []
        return found

    def prune(self, sparsities: float | Mapping[str, float]) -> None:
        """Sets the masks by the weights as they are now. sparsities: of all layers, or layer -> its own."""
        weights = {name: layer.weight_orig for name, layer in self.layers.items()}
        by_layer = {name: sparsities if isinstance(sparsities, (int, float)) else sparsities[name] for name in weights}
        scales = {name: behind.scale for name, behind in self._behind.items()}
        for name, mask in masks(self.method, weights, by_layer, scales).items():
            (layer, weight), *others = self._masked(name)
            getattr(layer, f"{weight}_mask").copy_(mask)
            for part, tensor in others:
                getattr(part, f"{tensor}_mask").copy_(mask.flatten(1)[:, 0])

    def bake(self) -> None:
        """Makes the zeros part of the weights and takes the masks off; the module is plain again."""
        from torch.nn.utils import prune

        for name in self.layers:
            for part, tensor in self._masked(name):
                prune.remove(part, tensor)


def sparsity_of(tensor: Tensor) -> float:
    """Share of zeros in 0..1."""
    return 1 - int(tensor.count_nonzero()) / max(tensor.numel(), 1)
