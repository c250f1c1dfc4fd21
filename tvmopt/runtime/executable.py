"""`Compiled`: a model as TVM built it, called like the model."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvmopt.errors import InputError
from tvmopt.runtime.flat import Flat
from tvmopt.runtime.inputs import Inputs
from tvmopt.runtime.signature import Signature, TensorSpec
from tvmopt.runtime.threads import use_threads

if TYPE_CHECKING:
    import tvm

    from tvmopt.machine import AnyMachine


class Compiled:
    """A compiled model: call it with the model's inputs, get what the model returns.

    Torch tensors in give torch tensors out, numpy arrays give numpy arrays. Inputs are handed over without a copy
    where they are contiguous and aligned to 64 bytes (torch's are; numpy's mostly are not), outputs always. Outputs
    belong to the caller: no later call overwrites them. Calls from several threads take turns.

    Attributes:
        signature: shapes, dtypes and names of the inputs, and the outputs with their structure.
        meta: what is known of the build, kept in an exported artifact: `model`, `variant`, `target`, `machine`,
            `threads`, `compile_s`, `plan`, and whatever else the builder adds. JSON, but for `machine` and `plan`.
            `workspace_bytes` is the memory kept for what lies between kernels; None where the virtual machine runs
            the network, and allocates it in every call.
        executable: the Relax VM executable; None after `tvmopt.load`.
    """

    def __init__(self, executable: tvm.runtime.Executable, signature: Signature, meta: dict[str, Any]) -> None:
        """Takes a Relax VM executable (`tvm.compile`): one of `graph/one_function.py`, or one whose `main` has the
        inputs of `signature` as parameters and returns a tensor or a tuple of the outputs of `signature`, in order."""
        self._set_up(executable.jit(), executable, signature, meta)

    @classmethod
    def _from_library(
        cls, library: tvm.runtime.Module, signature: Signature, meta: dict[str, Any], path: Path
    ) -> Compiled:
        """From a loaded artifact; `path` is copied by a later `export`."""
        compiled = cls.__new__(cls)
        compiled._set_up(library, None, signature, meta)
        compiled._path = path
        return compiled

    def _set_up(
        self,
        library: tvm.runtime.Module,
        executable: tvm.runtime.Executable | None,
        signature: Signature,
        meta: dict[str, Any],
    ) -> None:
        import tvm
        from tvm import relax

        self.executable = executable
        self.signature = signature
        self.meta = dict(meta)
        self._path: Path | None = None
        self._size: int | None = None
        self._threads = int(meta.get("threads") or getattr(meta.get("machine"), "cores", 0) or 1)
        self._lock = threading.Lock()
        use_threads(self._threads)
        self._vm = relax.VirtualMachine(library, tvm.cpu())
        self._flat = Flat.of(library, self._vm, signature)
        self._main = self._vm["main"] if self._flat is None else self._flat.call
        self._inputs = Inputs(signature)
        # The quick way, from the first call with torch tensors on.
        self._one_to_one: Callable[[Any], Any] | None = None
        self._plain_output = signature.structure == 0 and signature.unflatten is None
        self.meta["workspace_bytes"] = None if self._flat is None else self._flat.workspace_bytes

    # --- what is known of it ---

    @property
    def variant(self) -> str:
        """original, manual or auto."""
        return str(self.meta.get("variant", ""))

    @property
    def target(self) -> str:
        """The TVM target it was built for, as JSON."""
        return str(self.meta.get("target", ""))

    @property
    def machine(self) -> AnyMachine | None:
        """The machine it was built for."""
        return self.meta.get("machine")

    @property
    def threads(self) -> int:
        """The number of threads it runs on."""
        return self._threads

    @property
    def compile_s(self) -> float | None:
        """Seconds the build took."""
        return self.meta.get("compile_s")

    @property
    def tuning_s(self) -> float | None:
        """Seconds the search took whose schedules it was built with; None for other variants than auto."""
        return self.meta.get("tuning_s")

    @property
    def plan(self) -> Any:
        """Which strategy and which schedule each kernel uses; plain data after `tvmopt.load`."""
        return self.meta.get("plan")

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The inputs in order."""
        return self.signature.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The output tensors in order, flat."""
        return self.signature.outputs

    def __repr__(self) -> str:
        name = self.meta.get("model", "model")
        takes = ", ".join(f"{spec.name}: {spec}" for spec in self.inputs)
        return f"<tvmopt.Compiled {name} {self.variant} ({takes}), {self._threads} threads>"

    # --- calling it ---

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        """The model's outputs for `inputs` (torch tensors or numpy arrays on the CPU; by position or by name).

        Raises:
            InputError: a wrong count, shape, dtype, device or kind of input; names the expected one.
        """
        if named:
            inputs = self._inputs.by_position(inputs, named)
        if self._one_to_one is not None and len(inputs) == 1:
            output = self._one_to_one(inputs[0])
            if output is not None:
                return output
        torch = sys.modules.get("torch")
        # The first one mostly tells; looking at all of them takes longer.
        if torch is not None and (
            (inputs and isinstance(inputs[0], torch.Tensor)) or any(isinstance(one, torch.Tensor) for one in inputs)
        ):
            results = self._call_torch(torch, inputs)
        else:
            results = self._call_numpy(inputs)
        return results[0] if self._plain_output else self.signature.rebuild(results)

    def _call_torch(self, torch: Any, inputs: Sequence[Any]) -> list[Any]:
        addresses = self._inputs.addresses(torch, inputs)
        if self._flat is not None:
            if addresses is None:
                inputs = self._inputs.from_torch(torch, inputs)
                addresses = [tensor.data_ptr() for tensor in inputs]
            if self._one_to_one is None and self._plain_output and len(self.inputs) == len(self.outputs) == 1:
                self._one_to_one = self._flat.one_to_one(torch, self._inputs, self._lock, self._threads)
            outputs = self._flat.torch_outputs(torch)
            for tensor in outputs:
                addresses.append(tensor.data_ptr())
            self._run(*addresses, self._flat.table)
            return outputs
        # Without this interface tensors go through __dlpack__, which refuses those that require a gradient.
        if addresses is None or not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"):
            inputs = self._inputs.from_torch(torch, inputs)
        results = _flatten(self._run(*inputs))
        if not isinstance(results[0], torch.Tensor):
            # A torch without DLPack's exchange interface: TVM gave its own tensors back.
            results = [torch.from_dlpack(result) for result in results]
        return [result.clone() if i in self.signature.constant else result for i, result in enumerate(results)]

    def _call_numpy(self, inputs: Sequence[Any]) -> list[Any]:
        import tvm_ffi

        arrays = self._inputs.from_numpy(inputs)
        if self._flat is not None:
            outputs = self._flat.numpy_outputs()
            self._run(*(array.ctypes.data for array in (*arrays, *outputs)), self._flat.table)
            return outputs
        results = [_to_numpy(result) for result in _flatten(self._run(*map(tvm_ffi.from_dlpack, arrays)))]
        return [result.copy() if i in self.signature.constant else result for i, result in enumerate(results)]

    def _run(self, *arguments: Any) -> Any:
        """One call at a time: they share a workspace, or the virtual machine's frames."""
        with self._lock:
            use_threads(self._threads)
            return self._main(*arguments)

    # --- keeping it ---

    def export(self, path: str | PathLike[str]) -> Path:
        """Writes an artifact that `tvmopt.load` reads; returns its path.

        Raises:
            OutputError: the file cannot be written, or does not end in .so.
            ArtifactError: there is no C compiler to link it with.
        """
        from tvmopt.runtime import artifact

        return artifact.export(self, path)

    def size_bytes(self) -> int:
        """Size of the exported artifact in bytes: code and weights. Links one, the first time."""
        if self._size is None:
            from tvmopt.runtime import artifact

            self._size = artifact.size_bytes(self)
        return self._size


def _to_numpy(result: Any) -> Any:
    import numpy as np

    if str(result.dtype) == "bfloat16":
        raise InputError("numpy has no bfloat16: call with torch tensors")
    return np.from_dlpack(result)


def _flatten(result: Any) -> list[Any]:
    """The tensors in what a VM function returned; an output that is no tensor (None) is in the structure already."""
    if hasattr(result, "dtype"):
        return [result]
    flat: list[Any] = []
    for item in result:
        if hasattr(item, "dtype"):
            flat.append(item)
        elif item is not None:
            flat.extend(_flatten(item))
    return flat
