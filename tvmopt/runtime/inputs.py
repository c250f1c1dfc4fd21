"""The inputs of a call: checked against the signature, and copied only where compiled code could not read them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvmopt.errors import InputError
from tvmopt.runtime.signature import Signature

# TVM emits aligned vector loads for arguments without checking them: a pointer off by less is a segmentation fault.
ALIGNMENT = 64


class Inputs:
    """Checks the inputs of one compiled model."""

    def __init__(self, signature: Signature) -> None:
        self._specs = signature.inputs
        # Filled in with torch's own dtypes at the first call with torch tensors.
        self._torch_specs: list[tuple[tuple[int, ...], Any]] = []

    def torch_specs(self, torch: Any) -> list[tuple[tuple[int, ...], Any]]:
        """Shape and torch's dtype of every input."""
        if not self._torch_specs:
            self._torch_specs = [(spec.shape, getattr(torch, spec.dtype)) for spec in self._specs]
        return self._torch_specs

    def addresses(self, torch: Any, inputs: Sequence[Any]) -> list[int] | None:
        """Where the inputs lie, if compiled code can take all of them as they are; None else.

        On the way of every call: a microsecond, no more.
        """
        specs = self._torch_specs or self.torch_specs(torch)
        if len(inputs) != len(specs):
            return None
        found = []
        try:
            for (shape, dtype), tensor in zip(specs, inputs, strict=True):
                address = tensor.data_ptr()
                # 0 is that of a tensor without elements, or whose memory was given back.
                if not address or address % ALIGNMENT or tensor.dtype is not dtype or tensor.shape != shape:
                    return None
                if not tensor.is_cpu or not tensor.is_contiguous():
                    return None
                found.append(address)
        except (AttributeError, RuntimeError):
            # Not a tensor, or one without memory of its own, such as a sparse one.
            return None
        return found

    def from_torch(self, torch: Any, inputs: Sequence[Any]) -> list[Any]:
        """The inputs checked, and copied where they must be.

        Raises:
            InputError: a wrong count, shape, dtype, device or kind of input.
        """
        self._check_count(inputs)
        ready = []
        for index, tensor in enumerate(inputs):
            spec = self._specs[index]
            if not isinstance(tensor, torch.Tensor):
                raise self._wrong(index, f"a {type(tensor).__name__} beside torch tensors")
            found = str(tensor.dtype).removeprefix("torch.")
            if tuple(tensor.shape) != spec.shape or found != spec.dtype:
                raise self._wrong(index, f"{found} {list(tensor.shape)}")
            if not tensor.is_cpu:
                raise self._wrong(index, f"a tensor on {tensor.device}; move it with .cpu()")
            if tensor.layout is not torch.strided:
                raise self._wrong(index, f"a {tensor.layout} tensor; make it dense with .to_dense()")
            if tensor.numel() and not tensor.data_ptr():
                raise self._wrong(index, "a tensor whose memory was given back")
            ready.append(_aligned_torch(torch, tensor.detach()))
        return ready

    def from_numpy(self, inputs: Sequence[Any]) -> list[Any]:
        """The arrays checked, and copied where they must be.

        Raises:
            InputError: as `from_torch`.
        """
        import numpy as np

        self._check_count(inputs)
        ready = []
        for index, array in enumerate(inputs):
            spec = self._specs[index]
            if not isinstance(array, np.ndarray):
                raise self._wrong(index, f"a {type(array).__name__}")
            if array.shape != spec.shape or array.dtype.name != spec.dtype:
                raise self._wrong(index, f"{array.dtype.name} {list(array.shape)}")
            flags = array.flags
            usable = flags.c_contiguous and flags.writeable and array.dtype.isnative
            if not usable or array.ctypes.data % ALIGNMENT:
                copy = aligned_empty(array.shape, array.dtype.newbyteorder("="))
                copy[...] = array
                array = copy
            ready.append(array)
        return ready

    def by_position(self, inputs: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, ...]:
        """All inputs in order, those given by name behind the others.

        Raises:
            InputError: names that are not those of the inputs left.
        """
        rest = self._specs[len(inputs) :]
        if {spec.name for spec in rest} != set(named):
            expected = ", ".join(spec.name for spec in self._specs)
            raise InputError(f"expected the inputs {expected}, not {len(inputs)} by position and {', '.join(named)}")
        return (*inputs, *(named[spec.name] for spec in rest))

    def _check_count(self, inputs: Sequence[Any]) -> None:
        if len(inputs) != len(self._specs):
            expected = ", ".join(f"{spec.name}: {spec}" for spec in self._specs)
            count = f"{len(self._specs)} input{'s' if len(self._specs) != 1 else ''}"
            raise InputError(f"expected {count} ({expected}), not {len(inputs)}")

    def _wrong(self, index: int, found: str) -> InputError:
        spec = self._specs[index]
        return InputError(f"input {index} ({spec.name}): expected {spec} on the CPU, not {found}")


def aligned_empty(shape: tuple[int, ...], dtype: Any) -> Any:
    """A numpy array of `dtype` at an aligned address, which numpy's own seldom are."""
    import numpy as np

    dtype = np.dtype(dtype)
    size = dtype.itemsize
    for extent in shape:
        size *= extent
    memory = np.empty(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


def _aligned_torch(torch: Any, tensor: Any) -> Any:
    """`tensor`, or a contiguous copy of it: torch's allocator aligns to 64 bytes."""
    if tensor.is_contiguous() and tensor.data_ptr() % ALIGNMENT == 0:
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)
