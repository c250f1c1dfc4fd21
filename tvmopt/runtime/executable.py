"""`Compiled`: a model as TVM built it, called like the model."""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvmopt.errors import InputError
from tvmopt.runtime.signature import Signature, TensorSpec
from tvmopt.runtime.threads import use_threads

if TYPE_CHECKING:
    import tvm

    from tvmopt.machine import Machine

# TVM emits aligned vector loads for arguments without checking them: a pointer off by less is a segmentation fault.
_ALIGNMENT = 64


class Compiled:
    """A compiled model: call it with the model's inputs, get what the model returns.

    Torch tensors in give torch tensors out, numpy arrays give numpy arrays. Inputs are handed over without a copy
    where they are contiguous and aligned to 64 bytes (torch's are; numpy's mostly are not), outputs always. Outputs
    belong to the caller: no later call overwrites them. Calls from several threads take turns.

    Attributes:
        signature: shapes, dtypes and names of the inputs, and the outputs with their structure.
        meta: what is known of the build, kept in an exported artifact: `model`, `variant`, `target`, `machine`,
            `threads`, `compile_s`, `plan`, and whatever else the builder adds. JSON, but for `machine` and `plan`.
        executable: the Relax VM executable; None after `tvmopt.load`.
    """

    def __init__(self, executable: tvm.runtime.Executable, signature: Signature, meta: dict[str, Any]) -> None:
        """Takes a Relax VM executable (`tvm.compile`) whose `main` has the inputs of `signature` as parameters and
        returns a tensor or a tuple of the outputs of `signature`, in order."""
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
        self._main = self._vm["main"]
        # Filled in with torch's own dtypes at the first call with torch tensors.
        self._torch_specs: list[tuple[tuple[int, ...], Any]] = []
        self._exchange = False
        self._plain_output = signature.structure == 0 and not signature.constant and signature.unflatten is None

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
    def machine(self) -> Machine | None:
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
            inputs = self._by_position(inputs, named)
        torch = sys.modules.get("torch")
        # The first one mostly tells; looking at all of them takes longer.
        if torch is not None and (
            (inputs and isinstance(inputs[0], torch.Tensor)) or any(isinstance(one, torch.Tensor) for one in inputs)
        ):
            results = self._run(inputs if self._usable(torch, inputs) else self._from_torch(torch, inputs))
            if not isinstance(results[0], torch.Tensor):
                # A torch without DLPack's exchange interface: TVM gave its own tensors back.
                results = [torch.from_dlpack(result) for result in results]
            if self._plain_output:
                return results[0]
            results = [result.clone() if i in self.signature.constant else result for i, result in enumerate(results)]
        else:
            results = [_to_numpy(result) for result in self._run(self._from_numpy(inputs))]
            results = [result.copy() if i in self.signature.constant else result for i, result in enumerate(results)]
        return self.signature.rebuild(results)

    def _run(self, arguments: Sequence[Any]) -> list[Any]:
        """The flat outputs; the VM keeps its frames in itself, so one call at a time."""
        with self._lock:
            use_threads(self._threads)
            result = self._main(*arguments)
        return _flat(result)

    def _usable(self, torch: Any, inputs: tuple[Any, ...]) -> bool:
        """Whether TVM can take the inputs as they are. On the way of every call: a microsecond, no more."""
        if not self._torch_specs:
            self._torch_specs = [(spec.shape, getattr(torch, spec.dtype)) for spec in self.inputs]
            # Without this interface tensors go through __dlpack__, which refuses those that require a gradient.
            self._exchange = hasattr(torch.Tensor, "__dlpack_c_exchange_api__")
        if len(inputs) != len(self._torch_specs) or not self._exchange:
            return False
        try:
            for (shape, dtype), tensor in zip(self._torch_specs, inputs, strict=True):
                if tensor.dtype is not dtype or tensor.shape != shape or not tensor.is_cpu:
                    return False
                if tensor.data_ptr() % _ALIGNMENT or not tensor.is_contiguous():
                    return False
        except (AttributeError, RuntimeError):
            # Not a tensor, or one without memory of its own, such as a sparse one.
            return False
        return True

    def _check_count(self, inputs: tuple[Any, ...]) -> None:
        if len(inputs) != len(self.inputs):
            expected = ", ".join(f"{spec.name}: {spec}" for spec in self.inputs)
            count = f"{len(self.inputs)} input{'s' if len(self.inputs) != 1 else ''}"
            raise InputError(f"expected {count} ({expected}), not {len(inputs)}")

    def _from_torch(self, torch: Any, inputs: tuple[Any, ...]) -> Sequence[Any]:
        """The inputs checked, and copied where they must be."""
        self._check_count(inputs)
        ready = []
        for index, tensor in enumerate(inputs):
            spec = self.inputs[index]
            if not isinstance(tensor, torch.Tensor):
                raise self._wrong(index, f"a {type(tensor).__name__} beside torch tensors")
            found = str(tensor.dtype).removeprefix("torch.")
            if tuple(tensor.shape) != spec.shape or found != spec.dtype:
                raise self._wrong(index, f"{found} {list(tensor.shape)}")
            if not tensor.is_cpu:
                raise self._wrong(index, f"a tensor on {tensor.device}; move it with .cpu()")
            if tensor.layout is not torch.strided:
                raise self._wrong(index, f"a {tensor.layout} tensor; make it dense with .to_dense()")
            ready.append(_aligned_torch(torch, tensor.detach()))
        return ready

    def _from_numpy(self, inputs: tuple[Any, ...]) -> Sequence[Any]:
        """The inputs checked, copied where they must be, as TVM's tensors."""
        import numpy as np
        import tvm_ffi

        self._check_count(inputs)
        ready = []
        for index, array in enumerate(inputs):
            spec = self.inputs[index]
            if not isinstance(array, np.ndarray):
                raise self._wrong(index, f"a {type(array).__name__}")
            if array.shape != spec.shape or array.dtype.name != spec.dtype:
                raise self._wrong(index, f"{array.dtype.name} {list(array.shape)}")
            flags = array.flags
            usable = flags.c_contiguous and flags.writeable and array.dtype.isnative
            if not usable or array.ctypes.data % _ALIGNMENT:
                array = _aligned_copy(array)
            ready.append(tvm_ffi.from_dlpack(array))
        return ready

    def _by_position(self, inputs: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, ...]:
        rest = self.inputs[len(inputs) :]
        if {spec.name for spec in rest} != set(named):
            expected = ", ".join(spec.name for spec in self.inputs)
            raise InputError(f"expected the inputs {expected}, not {len(inputs)} by position and {', '.join(named)}")
        return (*inputs, *(named[spec.name] for spec in rest))

    def _wrong(self, index: int, found: str) -> InputError:
        spec = self.inputs[index]
        return InputError(f"input {index} ({spec.name}): expected {spec} on the CPU, not {found}")

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


def _aligned_copy(array: Any) -> Any:
    """A contiguous numpy copy of `array` in the native byte order, at an aligned address."""
    import numpy as np

    memory = np.empty(array.nbytes + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    copy = memory[start : start + array.nbytes].view(array.dtype.newbyteorder("=")).reshape(array.shape)
    copy[...] = array
    return copy


def _aligned_torch(torch: Any, tensor: Any) -> Any:
    """`tensor`, or a contiguous copy of it: torch's allocator aligns to 64 bytes."""
    if tensor.is_contiguous() and tensor.data_ptr() % _ALIGNMENT == 0:
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)


def _flat(result: Any) -> list[Any]:
    """The tensors in what a VM function returned; an output that is no tensor (None) is in the structure already."""
    if hasattr(result, "dtype"):
        return [result]
    flat: list[Any] = []
    for item in result:
        if hasattr(item, "dtype"):
            flat.append(item)
        elif item is not None:
            flat.extend(_flat(item))
    return flat
