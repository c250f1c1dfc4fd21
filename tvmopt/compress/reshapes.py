"""Torch-Pruning's pruner, told what its version 1.6 does not know of reshapes and splits.

A concatenation is followed only where as many channels are read behind it as it has, and a flatten behind it reads
times as many: here a reshape answers for itself. Which channel goes where is not followed where channels are shuffled
(a reshape to five dimensions and back, as in ShuffleNet) or split (parts are taken in the order in which the graph is
walked, and their sizes are not found where a split follows a shuffle): what passes there keeps all its filters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn


def make_pruner(module: nn.Module, inputs: Sequence[Tensor], importance: Any, **options: Any) -> Any:
    """`torch_pruning.pruner.BasePruner(module, inputs, importance, **options)`, ready for its `step()`."""
    import torch_pruning as tp
    from torch_pruning import ops
    from torch_pruning.dependency import shape_infer

    class Reshapes(ops.ReshapePruner):  # type: ignore[misc]
        graph: Any = None

        def get_in_channels(self, layer: Any) -> int | None:
            """Channels of what is reshaped; None, where the next layer tells, for other than images and shuffles."""
            if self.graph is None:
                return None
            node = self.graph.module2node[layer]
            if not node.inputs or len(_sizes(node)) not in (4, 5):
                return None
            channels: int | None = shape_infer.infer_out_channels_recursively(self.graph, node.inputs[0], [0])
            return channels

    reshapes = Reshapes()
    # With a pruner of their own, neither is looked at before the graph is known.
    own = {ops._ReshapeOp: reshapes, ops._SplitOp: ops.DummyPruner()}
    pruner = tp.pruner.BasePruner(module, tuple(inputs), importance, customized_pruners=own, **options)
    reshapes.graph = pruner.DG
    for node in pruner.DG.module2node.values():
        if isinstance(node.module, ops._ReshapeOp):
            # Torch-Pruning follows a flatten by this type, which it takes from what has a pruner of its own.
            node.type = ops.OPTYPE.RESHAPE
        if isinstance(node.module, ops._SplitOp) or (node.type == ops.OPTYPE.RESHAPE and len(_sizes(node)) == 5):
            pruner.ignored_layers.append(node.module)
    return pruner


def _sizes(node: Any) -> Sequence[int]:
    """The shape of what is reshaped, before any filter went; empty where autograd does not keep it."""
    return getattr(node.grad_fn, "_saved_self_sym_sizes", ())
