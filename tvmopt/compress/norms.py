"""Which batch norm takes a layer's output, seen in one run of the network."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tvmopt.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Behind:
    """norm: the batch norm, which has a scale, one for each of the layer's outputs. alone: nothing else reads the
    layer's output, and the norm reads nothing else."""

    norm: Any
    alone: bool

    @property
    def scale(self) -> Tensor:
        """|gamma| (outputs,), also of what is masked."""
        weight: Tensor = getattr(self.norm, "weight_orig", self.norm.weight)
        return weight.detach().abs()


def norms_behind(module: nn.Module, names: Sequence[str], inputs: Sequence[Tensor]) -> dict[str, Behind]:
    """Layer of `names` -> the batch norm that takes its output; layers without one are left out."""
    import torch
    from torch import nn
    from torch.overrides import TorchFunctionMode
    from torch.utils._pytree import tree_leaves

    layers = dict(module.named_modules())
    producer: dict[int, str] = {}
    found: dict[str, Any] = {}
    calls: Counter[Any] = Counter()
    # By id: of an output, how many operations that give a tensor read it. Outputs are kept alive, so that no two have
    # the same id.
    uses: Counter[int] = Counter()
    alive: list[Any] = []

    class Watch(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            if any(isinstance(leaf, torch.Tensor) for leaf in tree_leaves(result)):
                uses.update({id(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)})
            return result

    def produced(name: str) -> Any:
        def hook(_: Any, __: Any, output: Any) -> None:
            alive.append(output)
            producer[id(output)] = name
            # What was counted so far was another tensor at this address.
            uses[id(output)] = 0
            calls[name] += 1

        return hook

    def normed(norm: Any, arguments: Any) -> None:
        calls[norm] += 1
        name = producer.get(id(arguments[0]))
        # Of sequences, (N, L, features), a batch norm scales the places and not the features.
        if name is None or norm.weight is None or (isinstance(layers[name], nn.Linear) and arguments[0].dim() > 2):
            return
        found[name] = norm

    handles = [layers[name].register_forward_hook(produced(name)) for name in names]
    norms = [one for one in module.modules() if isinstance(one, nn.modules.batchnorm._BatchNorm)]
    handles += [one.register_forward_pre_hook(normed) for one in norms]
    training = module.training
    try:
        module.eval()
        with torch.no_grad(), Watch():
            uses.update(id(leaf) for leaf in tree_leaves(module(*inputs)))
    finally:
        module.train(training)
        for handle in handles:
            handle.remove()
    read = Counter({producer[key]: count for key, count in uses.items() if key in producer})
    return {
        name: Behind(norm, read[name] == calls[name] == calls[norm] == 1)
        for name, norm in found.items()
    }  # fmt: skip


def batch_norm_scales(module: nn.Module, names: Sequence[str], inputs: Sequence[Tensor]) -> dict[str, Tensor]:
    """Convolution -> |gamma| (outputs,) of the batch norm that takes its output.

    Errors: `ModelError` for a convolution whose output no batch norm takes.
    """
    found = norms_behind(module, names, inputs)
    missing = [name for name in names if name not in found]
    if missing:
        raise ModelError(f"layer {missing[0]} can't be pruned by batch-norm scale: no batch norm takes its output")
    return {name: behind.scale for name, behind in found.items()}
