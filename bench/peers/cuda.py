"""What PyTorch's peers on a GPU share: the module and its inputs there, fp32 as fp32."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from . import Prepared, module_bytes

if TYPE_CHECKING:
    from tvmopt.model import Model


def fp32_is_fp32() -> None:
    """Switches TF32 off, which rounds fp32 operands to 10 bits: a contender in TF32 computes something else."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    # cuDNN tries its algorithms on the first call of a shape, as its documentation advises for fixed shapes.
    torch.backends.cudnn.benchmark = True


def prepare_module(
    model: Model, threads: int, wrap: Callable[[Any], Any] = lambda module: module, *, channels_last: bool = False
) -> Prepared:
    """The module on the GPU, as `wrap` makes something faster of it, run once."""
    torch.set_num_threads(threads)
    fp32_is_fp32()
    form = torch.channels_last if channels_last else torch.contiguous_format
    module = model.module.cuda().to(memory_format=form)  # type: ignore[call-overload]
    made = wrap(module)

    def native(inputs: Sequence[Any]) -> list[Any]:
        moved = [x.cuda() for x in inputs]
        return [x.contiguous(memory_format=form) if x.dim() == 4 else x for x in moved]

    def run(*inputs: Any) -> Any:
        with torch.no_grad():
            return made(*inputs)

    run(*native(model.example_inputs))
    torch.cuda.synchronize()
    return Prepared(run, native, lambda outputs: outputs, module_bytes(module))
