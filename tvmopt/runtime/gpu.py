"""`CompiledForGpu`: a model built for a CUDA GPU, which may be built and exported where there is none."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvmopt.errors import InputError, TargetError
from tvmopt.machine_gpu import detect_gpu
from tvmopt.runtime.executable import Compiled, _flatten, _to_numpy
from tvmopt.runtime.signature import Signature

if TYPE_CHECKING:
    import tvm

    from tvmopt.nvcc import Code


def runtime_missing() -> str | None:
    """Why TVM cannot run CUDA code here, or None where it can."""
    gpu = detect_gpu()
    if gpu is None:
        return "there is no CUDA GPU here"
    import tvm

    if not tvm.runtime.enabled("cuda"):
        return (
            "TVM's CUDA runtime does not load: it needs libcudart.so.13 (pip install 'nvidia-cuda-runtime>=13,<14', "
            "with its lib directory on LD_LIBRARY_PATH)"
        )
    return None


def answers(device: Any) -> bool:
    """Whether a GPU (TVM's device) does what this process asks of it: a faulting kernel spoils all that comes after it.

    Such a fault (an illegal address, a trap) stays with the process; what was asked wrongly, or for too much, does not.
    """
    try:
        device.sync()
    except Exception:  # whatever CUDA, or RPC, says
        return False
    return True


class CompiledForGpu(Compiled):
    """A compiled model on a CUDA GPU: takes torch tensors that are there and gives such, without a copy; numpy arrays
    are copied there and back.

    Attributes:
        source: its kernels' CUDA source. code: what nvcc made of it; None where there was no nvcc.
    """

    def __init__(
        self, executable: tvm.runtime.Executable, signature: Signature, meta: dict[str, Any], source: str,
        code: Code | None,
    ) -> None:  # fmt: skip
        self.source, self.code = source, code
        missing = runtime_missing()
        self._set_up_gpu(None if missing else executable.jit(), executable, signature, meta, missing)

    @classmethod
    def _from_library(
        cls, library: tvm.runtime.Module, signature: Signature, meta: dict[str, Any], path: Path
    ) -> CompiledForGpu:
        compiled = cls.__new__(cls)
        compiled.source, compiled.code = "", None
        compiled._set_up_gpu(library, None, signature, meta, runtime_missing())
        compiled._path = path
        return compiled

    def _set_up_gpu(
        self, library: tvm.runtime.Module | None, executable: tvm.runtime.Executable | None, signature: Signature,
        meta: dict[str, Any], missing: str | None,
    ) -> None:  # fmt: skip
        import threading

        self.executable, self.signature, self.meta = executable, signature, dict(meta)
        self.meta["workspace_bytes"] = None
        self._path: Path | None = None
        self._size: int | None = None
        self._threads = int(meta.get("threads") or 1)
        self._lock = threading.Lock()
        self._missing = missing
        self._main: Any = None
        if library is not None and missing is None:
            import tvm
            from tvm import relax

            self._vm = relax.VirtualMachine(library, tvm.cuda(0))
            self._main = self._vm["main"]

    @property
    def runnable(self) -> bool:
        """Whether it can be called here."""
        return self._main is not None

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        """The model's outputs for `inputs`: torch tensors on the GPU, or numpy arrays; by position or by name.

        Work is queued on torch's current stream, and a call with torch tensors returns before it is done.

        Raises:
            TargetError: there is no GPU here. InputError: a wrong count, shape, dtype, device or kind of input.
        """
        if self._main is None:
            arch = getattr(self.machine, "arch", "a GPU")
            raise TargetError(f"built for {arch}, to be run elsewhere: {self._missing}; export it with .export(FILE)")
        if named:
            inputs = self._by_position(inputs, named)
        self._check(inputs)
        import numpy as np
        import torch

        if all(isinstance(one, torch.Tensor) for one in inputs):
            with self._lock:
                found = [_torch(one) for one in _flatten(self._main(*(one.detach().contiguous() for one in inputs)))]
            results = [one.clone() if i in self.signature.constant else one for i, one in enumerate(found)]
        else:
            import tvm

            device = tvm.cuda(0)
            with self._lock:
                moved = [tvm.runtime.tensor(np.ascontiguousarray(one), device) for one in inputs]
                results = [_to_numpy(one.copyto(tvm.cpu())) for one in _flatten(self._main(*moved))]
        return self.signature.rebuild(results)

    def _by_position(self, inputs: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, ...]:
        from tvmopt.runtime.inputs import Inputs

        return Inputs(self.signature).by_position(inputs, named)

    def _check(self, inputs: Sequence[Any]) -> None:
        """Raises InputError, naming the expected input, for one that cannot be taken."""
        import numpy as np
        import torch

        if len(inputs) != len(self.inputs):
            expected = ", ".join(f"{spec.name}: {spec}" for spec in self.inputs)
            raise InputError(f"expected {len(self.inputs)} inputs ({expected}), not {len(inputs)}")
        kinds = {isinstance(one, torch.Tensor) for one in inputs}
        for index, (spec, one) in enumerate(zip(self.inputs, inputs, strict=True)):
            where = f"input {index} ({spec.name}): expected {spec}"
            if not isinstance(one, (torch.Tensor, np.ndarray)) or len(kinds) > 1:
                raise InputError(f"{where}, all of them torch tensors on the GPU or all numpy arrays")
            dtype = str(one.dtype).removeprefix("torch.")
            if tuple(one.shape) != spec.shape or dtype != spec.dtype:
                raise InputError(f"{where}, not {dtype} {list(one.shape)}")
            if isinstance(one, torch.Tensor) and not one.is_cuda:
                raise InputError(f"{where} on the GPU, not a tensor on {one.device}; move it with .cuda()")


def _torch(result: Any) -> Any:
    import torch

    return result if isinstance(result, torch.Tensor) else torch.from_dlpack(result)
