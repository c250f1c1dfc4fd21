"""What PyTorch computes: made once, in a process of its own, and handed to every contender as a file.

Two sets of inputs: a contender is checked on both before and after it is timed on the first, so that an output
left over from an earlier call cannot pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvmopt.errors import ModelError, UsageError
from tvmopt.pt2 import duplicate

if TYPE_CHECKING:
    from torch import Tensor

    from tvmopt.data import Dataset
    from tvmopt.model import Model


@dataclass(frozen=True, eq=False)
class Reference:
    """`inputs` and `outputs` (fp64): one list of tensors a set. `predictions` (N,) int64 over the data set, or None."""

    inputs: list[list[Tensor]]
    outputs: list[list[Tensor]]
    predictions: Tensor | None

    def save(self, path: Path) -> None:
        """Writes it for `load`."""
        import torch

        torch.save({"inputs": self.inputs, "outputs": self.outputs, "predictions": self.predictions}, path)

    @staticmethod
    def load(path: Path) -> Reference:
        """Reads what `save` wrote."""
        import torch

        return Reference(**torch.load(path, weights_only=True))


def save_data(data: Dataset, reference: Path) -> None:
    """Keeps the images and labels beside the saved reference: reading a data set anew takes seconds a contender."""
    import torch

    torch.save({"images": data.images, "labels": data.labels}, _data_path(reference))


def load_data(reference: Path) -> tuple[Tensor, Tensor]:
    """The images (N, C, H, W) and labels (N,) that `save_data` kept; mapped, so that all contenders share them."""
    import torch

    saved = torch.load(_data_path(reference), weights_only=True, mmap=True)
    return saved["images"], saved["labels"]


def _data_path(reference: Path) -> Path:
    return reference.with_name("data.pt")


def compute(model: Model, data: Dataset | None) -> Reference:
    """PyTorch's outputs in fp64 for the example inputs and for others, and its own choices over a data set."""
    import torch

    from . import accuracy

    inputs = [list(model.example_inputs), [_other(x, seed) for seed, x in enumerate(model.example_inputs)]]
    with torch.no_grad():
        outputs = [_outputs64(model.module, values) for values in inputs]
        predictions = None
        if data is not None:
            check_data(model, data)
            scored = accuracy.scores(lambda x: _first(model.module(x)), data.images, model.batch)
            predictions = scored.argmax(dim=1)
    return Reference(inputs, outputs, predictions)


def check_data(model: Model, data: Dataset) -> None:
    """Raises UsageError where accuracy over this data set cannot be had of this model."""
    if len(model.example_inputs) != 1 or tuple(model.example_inputs[0].shape[1:]) != tuple(data.images.shape[1:]):
        shapes = ", ".join(str(tuple(x.shape)) for x in model.example_inputs)
        raise UsageError(f"--dataset {data.name}: its images {tuple(data.images.shape[1:])} do not fit inputs {shapes}")


def _first(outputs: Any) -> Tensor:
    """The scores: the first tensor of what a network returns."""
    from tvmopt.runtime.verify import flatten

    return next(iter(flatten(outputs)))  # type: ignore[return-value]


def _other(example: Tensor, seed: int) -> Tensor:
    """Another input of the same shape and dtype: normally distributed, or, for whole numbers, the example reversed."""
    import torch

    if not example.dtype.is_floating_point:
        return example.flip(-1) if example.dim() else example
    generator = torch.Generator().manual_seed(1000 + seed)
    return torch.randn(example.shape, generator=generator).to(example.dtype)


def _outputs64(module: Any, inputs: list[Tensor]) -> list[Tensor]:
    from tvmopt.runtime.verify import flatten

    wide = duplicate(module).double()
    values = [x.double() if x.dtype.is_floating_point else x for x in inputs]
    try:
        outputs: Any = wide(*values)
    except RuntimeError as error:
        raise ModelError(f"the model cannot be run in fp64, which it is verified against: {error}") from error
    return [y.detach() for y in flatten(outputs)]  # type: ignore[attr-defined]
