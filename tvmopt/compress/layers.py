"""Which layers of a network a method prunes, and which it leaves alone."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tvmopt.compress.methods import Method, is_stem, objection
from tvmopt.errors import ModelError, UsageError

if TYPE_CHECKING:
    from torch import nn


def layers_with_weights(module: nn.Module) -> dict[str, Any]:
    """Name -> convolution or linear layer, in the order of the module, each once.

    What attention layers hold is left out: they read the weights without calling the layer, so no mask would hold.
    """
    from torch import nn

    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
    inside = {id(part) for one in module.modules() if isinstance(one, nn.MultiheadAttention) for part in one.modules()}
    return {name: part for name, part in module.named_modules() if isinstance(part, kinds) and id(part) not in inside}


def chosen_layers(
    module: nn.Module, method: Method, only: Sequence[str] = (), skip: Sequence[str] = ()
) -> dict[str, Any]:
    """Name -> the layers that `method` prunes: those that fit it, or those named in `only`, but not those in `skip`.

    By default the last layer is spared by what removes outputs, and stems by blocks and patterns.
    Errors: `UsageError` for names that are no layers, `ModelError` for a named layer that can't be pruned so, and
    where nothing is left.
    """
    everything = dict(module.named_modules())
    for name in (*only, *skip):
        if name not in everything or not name:
            near = difflib.get_close_matches(name, layers_with_weights(module), 1, 0.4)
            hint = f"did you mean {near[0]}?" if near else f"the layers are {', '.join(layers_with_weights(module))}"
            raise UsageError(f"the model has no layer {name!r}: {hint}")
    found = layers_with_weights(module)
    last = next(reversed(found), None)
    if only:
        for name in only:
            why = objection(method, everything[name])
            if why is None and name not in found:
                why = "it is part of an attention layer, which reads the weights by itself"
            if why is not None:
                raise ModelError(f"layer {name} can't be pruned by {method.name}: {why}")
        chosen = {name: found[name] for name in only}
    else:
        chosen = {
            name: layer
            for name, layer in found.items()
            if objection(method, layer) is None
            and not is_stem(method, layer)
            and not (method.spares_the_last and name == last)
        }
    chosen = {name: layer for name, layer in chosen.items() if name not in skip}
    if not chosen:
        why = next((f"{name}: {objection(method, layer)}" for name, layer in found.items()
                    if objection(method, layer)), "all are left out")  # fmt: skip
        raise ModelError(f"no layer of the model can be pruned by {method.name} ({why})")
    return chosen
