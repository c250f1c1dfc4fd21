"""Runs a GPU's schedule on the GPU that is here, with guard zones round every buffer, tensor cores and all."""

from __future__ import annotations

from typing import Any

import ml_dtypes  # noqa: F401  (bfloat16 as numpy's)
import numpy as np
import torch
import tvm
from tvm.s_tir import Schedule

from tvmopt.tuning.worker import compile_kernel

from .opencl import GUARD


class Guarded:
    """A buffer in the middle of a larger one, whose ends hold a pattern of bytes that are no number in any dtype."""

    def __init__(self, array: np.ndarray, device: str) -> None:
        self._array = array
        self._zone = GUARD * 4
        whole = np.full(array.nbytes + 2 * self._zone, 0xFF, np.uint8)
        whole[self._zone : self._zone + array.nbytes] = np.frombuffer(array.tobytes(), np.uint8)
        # torch's own memory is aligned as TVM wants it, numpy's is not.
        self._whole = torch.empty(len(whole), dtype=torch.uint8, device=device).copy_(torch.from_numpy(whole))
        inner = self._whole[self._zone : self._zone + array.nbytes].view(getattr(torch, str(array.dtype)))
        self.inner = tvm.runtime.from_dlpack(inner.view(array.shape))

    def read(self) -> np.ndarray:
        """Its content; raises AssertionError where the guard zones are not as they were."""
        whole = self._whole.cpu().numpy()
        end = self._zone + self._array.nbytes
        assert (whole[: self._zone] == 0xFF).all() and (whole[end:] == 0xFF).all(), "written outside of a buffer"
        return np.frombuffer(whole[self._zone : end].tobytes(), self._array.dtype).reshape(self._array.shape)


def run(schedule: Schedule, inputs: list[np.ndarray], target: Any, device: str = "cuda") -> np.ndarray:
    """The scheduled function's output: its last parameter, all others being `inputs`. `device` is torch's name."""
    func = schedule.mod["main"]
    output = func.params[-1]
    arrays = [*inputs, np.full([int(d) for d in output.shape], np.nan, str(output.dtype))]
    buffers = [Guarded(np.ascontiguousarray(array), device) for array in arrays]
    built = compile_kernel(target, schedule.mod).jit()
    built["main"](*(buffer.inner for buffer in buffers))
    if device != "cpu":
        torch.cuda.synchronize()
    return [buffer.read() for buffer in buffers][-1]
