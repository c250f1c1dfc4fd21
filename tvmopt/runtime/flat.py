"""A network that is one function of addresses (`graph/one_function.py`), with the memory it works in."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tvmopt.errors import InputError
from tvmopt.runtime.inputs import ALIGNMENT, Inputs, aligned_empty
from tvmopt.runtime.signature import Signature
from tvmopt.runtime.threads import current, use_threads

if TYPE_CHECKING:
    import tvm
    from tvm import relax

_FUNCTION, _STATE = "main_flat", "main_state"


class Flat:
    """The function and what it needs beside the addresses of inputs and outputs.

    Attributes:
        call: takes the addresses of the inputs, of the outputs and of the table, in this order, and returns nothing.
            Calls must take turns: they work in one workspace.
        table: the address of the table of workspace and weights.
        workspace_bytes: the size of the workspace, in which all values between kernels lie.
    """

    def __init__(self, call: Callable[..., None], state: Any, signature: Signature) -> None:
        """`state` is what `main_state` returned: the workspace, then the weights."""
        self.call = call
        # The table has only addresses: these keep the memory.
        self._state = list(state)
        self._table = (ctypes.c_int64 * len(self._state))(*(tensor.data_ptr() for tensor in self._state))
        self.table = ctypes.addressof(self._table)
        self.workspace_bytes = int(self._state[0].shape[0])
        self._outputs = signature.outputs
        self._like: list[Any] = []

    @classmethod
    def of(cls, library: tvm.runtime.Module, machine: relax.VirtualMachine, signature: Signature) -> Flat | None:
        """The function in `library`, or None where the virtual machine runs the network itself."""
        if not library.implements_function(_FUNCTION, query_imports=True):
            return None
        return cls(library.get_function(_FUNCTION, query_imports=True), machine[_STATE](), signature)

    def torch_outputs(self, torch: Any) -> list[Any]:
        """New tensors for the outputs."""
        return [torch.empty_like(like) for like in self._torch_like(torch)]

    def _torch_like(self, torch: Any) -> list[Any]:
        if not self._like:
            # Tensors that tell shape and dtype, and have no memory. To make one like another is what takes torch
            # least, and it is on the CPU whatever torch's default device.
            for spec in self._outputs:
                like = torch.empty(spec.shape, dtype=getattr(torch, spec.dtype), device="cpu")
                like.untyped_storage().resize_(0)
                self._like.append(like)
        return self._like

    def one_to_one(self, torch: Any, inputs: Inputs, lock: threading.Lock, threads: int) -> Callable[[Any], Any]:
        """A function from one torch tensor to one, for networks of one input and one output.

        It does in one piece what the general way does in several (`Inputs.addresses`, `torch_outputs`, the call):
        loops, lists and calls between them take as long as a kernel of a small network. It returns None where the
        input cannot be taken as it is.
        """
        empty_like, table, run = torch.empty_like, self.table, self.call
        ((shape, dtype),) = inputs.torch_specs(torch)
        (like,) = self._torch_like(torch)

        def call(tensor: Any) -> Any:
            try:
                address = tensor.data_ptr()
                if not address or address % ALIGNMENT or tensor.dtype is not dtype or tensor.shape != shape:
                    return None
                if not tensor.is_cpu or not tensor.is_contiguous():
                    return None
            except (AttributeError, RuntimeError):
                # Not a tensor, or one without memory of its own, such as a sparse one.
                return None
            output = empty_like(like)
            with lock:
                if current.threads != threads:
                    use_threads(threads)
                run(address, output.data_ptr(), table)
            return output

        return call

    def numpy_outputs(self) -> list[Any]:
        """New arrays for the outputs.

        Raises:
            InputError: an output of a dtype that numpy does not have.
        """
        if any(spec.dtype == "bfloat16" for spec in self._outputs):
            raise InputError("numpy has no bfloat16: call with torch tensors")
        return [aligned_empty(spec.shape, spec.dtype) for spec in self._outputs]
