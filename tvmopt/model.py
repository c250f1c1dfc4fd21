"""Model specs: from what a user names to a module in eval mode with example inputs.

digits_cnn                built in, trained, needs no download (the default); mnist_cnn is its plain sister
resnet20                  built in: the residual network for CIFAR-10 whose trained weights are public (--weights)
torchvision:resnet18      any classification network of torchvision
path/to/file.py:factory   a function that returns (module, example inputs)
model.pt2                 a torch.export archive
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tvmopt.errors import InputError, ModelError, one_line
from tvmopt.models.built_in import NAMES as BUILT_IN

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.export import ExportedProgram

_log = logging.getLogger(__name__)

DEFAULT_SPEC = "digits_cnn"
DTYPES = ("float32", "float16", "bfloat16")
_TORCHVISION = "torchvision:"


@dataclass(frozen=True, eq=False)
class Model:
    """A network to compile.

    name: short, for tables. spec: what the user gave. module: float32, in eval mode (for a .pt2 a graph module, on
    which `.eval()` must not be called). example_inputs: what it is compiled for, in shape and dtype. exported: the
    program where the model came as one. dtype: what it is to be lowered to. extra: texts saved beside a .pt2.
    """

    name: str
    spec: str
    module: nn.Module
    example_inputs: tuple[Tensor, ...]
    exported: ExportedProgram | None = None
    dtype: str = "float32"
    from_file: bool = False
    # What the log's name says about the inputs: only what differs from the model's default.
    input_tag: str = ""
    extra: dict[str, str] = field(default_factory=dict)

    @functools.cached_property
    def digest(self) -> str:
        """16 hex digits of the names, shapes and dtypes of all weights; their values do not count."""
        state = self.exported.state_dict if self.exported is not None else self.module.state_dict()
        lines = sorted(f"{name} {tuple(value.shape)} {value.dtype}" for name, value in state.items())
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of the first example input, batch included."""
        return tuple(self.example_inputs[0].shape)

    @property
    def batch(self) -> int:
        """Size of the first dimension of the first example input."""
        return int(self.example_inputs[0].shape[0]) if self.example_inputs[0].ndim else 1

    @property
    def log_name(self) -> str:
        """Directory of the tuning log below the target's: "resnet18-b8-float16"; a model from a file adds a digest."""
        name = re.sub(r"[^\w.-]", "_", self.name)
        if self.from_file:
            name += f"-{self.digest[:8]}"
        if self.batch != 1:
            name += f"-b{self.batch}"
        return name + self.input_tag + (f"-{self.dtype}" if self.dtype != "float32" else "")


def load_model(
    spec: str | None = None,
    *,
    batch: int | None = None,
    input_shape: Sequence[int] | None = None,
    weights: str | None = None,
    seed: int = 0,
    dtype: str = "float32",
) -> Model:
    """Loads the model that `spec` names (None: digits_cnn).

    batch: size of the first dimension (default: the example inputs', 1 for networks of images).
    input_shape: of the first input, with the batch or without it. weights: a file with a state dict, or for
    torchvision "DEFAULT" or another name of its own (downloaded); None gives digits_cnn its trained weights and
    other networks seeded ones, made so that outputs depend on inputs. dtype: recorded; the module stays float32.

    Errors: `ModelError` for whatever cannot be loaded or run; `InputError` for a batch or shape that cannot be.
    """
    spec = (spec or DEFAULT_SPEC).strip()
    if dtype not in DTYPES:
        raise ModelError(f"unknown dtype {dtype!r}: choose one of {', '.join(DTYPES)}")
    if (batch is not None and batch < 1) or (input_shape is not None and min(input_shape, default=0) < 1):
        raise InputError("batch and input shape must be at least 1 in every dimension")
    shape = None if input_shape is None else tuple(int(size) for size in input_shape)
    check_spec(spec)
    if spec in BUILT_IN or spec.startswith(_TORCHVISION):
        return _load_named(spec, batch, shape, weights, seed, dtype)
    if spec.endswith(".pt2"):
        return _load_exported(spec, batch, shape, weights, dtype)
    path, _, factory = spec.rpartition(":")
    return _load_factory(spec, path, factory, batch, shape, weights, seed, dtype)


def check_spec(spec: str) -> None:
    """Raises ModelError for what cannot name a model, or names a file that is not there, without loading PyTorch."""
    if spec in BUILT_IN or spec.startswith(_TORCHVISION):
        return
    path, colon, _ = spec.rpartition(":")
    if spec.endswith(".py"):
        raise ModelError(f"{spec} names no function: give {spec}:FACTORY, a function that returns (module, inputs)")
    if not spec.endswith(".pt2") and not (colon and path.endswith(".py")):
        raise ModelError(f"unknown model {spec!r}: {_suggestion(spec)}")
    file = Path(spec if spec.endswith(".pt2") else path)
    if not file.exists():
        raise ModelError(f"{file}: no such file")


def from_module(
    module: nn.Module, example_inputs: Tensor | Sequence[Tensor], *, name: str | None = None, dtype: str = "float32"
) -> Model:
    """The model of a user's own module, put in eval mode.

    Errors: `ModelError` where it does not run on its example inputs or is not float32.
    """
    import torch

    if not isinstance(module, torch.nn.Module):
        raise ModelError(f"expected a torch.nn.Module, not {type(module).__name__}")
    if dtype not in DTYPES:
        raise ModelError(f"unknown dtype {dtype!r}: choose one of {', '.join(DTYPES)}")
    inputs = (example_inputs,) if isinstance(example_inputs, torch.Tensor) else tuple(example_inputs)
    name = name or type(module).__name__.lower()
    model = Model(name, name, module.eval(), inputs, dtype=dtype, from_file=True)
    _check(model)
    return model


def _load_named(
    spec: str, batch: int | None, shape: tuple[int, ...] | None, weights: str | None, seed: int, dtype: str
) -> Model:
    """Built-in networks and torchvision's: one image input."""
    from tvmopt.models import built_in
    from tvmopt.models.random_weights import MIN_CHANGE, make_verifiable, random_inputs

    batch, shape = _image_shape(spec, batch, shape)
    name = spec
    if spec in BUILT_IN:
        module, default, trained = built_in.build(spec, shape, weights, seed)
    else:
        from tvmopt.models import torchvision_models

        name, trained = spec.removeprefix(_TORCHVISION), weights is not None
        module, side = torchvision_models.load(name, weights, shape, seed)
        default = (3, side, side)
    module.eval()
    used = shape or default
    if not trained:
        make_verifiable(module, [(1, *used)], seed)
    if spec.startswith(_TORCHVISION):
        # Tagged by the network's own size: weights trained at another one keep a log of their own.
        default = (3, torchvision_models.default_side(name), torchvision_models.default_side(name))
    tag = "" if used == default else "-" + "x".join(str(size) for size in used)
    model = Model(name, spec, module, random_inputs([(batch, *used)], seed + 2), dtype=dtype, input_tag=tag)
    change = _check(model)
    if not trained and (change is None or change < MIN_CHANGE):
        raise ModelError(f"{spec}: with seed {seed} the output hardly depends on the input ({change}): take another")
    return model


def _image_shape(
    spec: str, batch: int | None, shape: tuple[int, ...] | None
) -> tuple[int, tuple[int, int, int] | None]:
    """The batch and (C, H, W) that `batch` and `shape`, which may hold the batch too, ask for."""
    if shape is None:
        return batch or 1, None
    if len(shape) not in (3, 4):
        raise InputError(f"{spec} takes images: give the shape as C,H,W or N,C,H,W, not {shape}")
    if len(shape) == 4 and batch not in (None, shape[0]):
        raise InputError(f"batch {batch} contradicts the input shape {shape}")
    channels, height, width = shape[-3:]
    return batch or (shape[0] if len(shape) == 4 else 1), (channels, height, width)


def _load_exported(
    spec: str, batch: int | None, shape: tuple[int, ...] | None, weights: str | None, dtype: str
) -> Model:
    from tvmopt.models.from_file import open_exported

    if weights is not None:
        raise ModelError(f"{spec} holds its weights: --weights is for models that are built from source")
    module, inputs, program, extra = open_exported(spec)
    model = Model(Path(spec).stem, spec, module, inputs, program, dtype, from_file=True, extra=extra)
    if batch not in (None, model.batch) or shape not in (None, model.input_shape, model.input_shape[1:]):
        raise InputError(f"{spec} was exported for inputs of {model.input_shape}: export it anew for another shape")
    _check(model)
    return model


def _load_factory(
    spec: str,
    path: str,
    factory: str,
    batch: int | None,
    shape: tuple[int, ...] | None,
    weights: str | None,
    seed: int,
    dtype: str,
) -> Model:
    import torch

    from tvmopt.models.from_file import call_factory
    from tvmopt.models.random_weights import random_inputs
    from tvmopt.models.weights import load_state_dict

    # Seeded, so that a factory that draws its weights gives the same network each time.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module, inputs = call_factory(path, factory)
    if weights is not None:
        load_state_dict(module, weights)
    default = inputs
    if shape is not None:
        fits = len(inputs) == 1 and inputs[0].is_floating_point() and inputs[0].ndim - len(shape) in (0, 1)
        if not fits:
            raise InputError(f"{spec} cannot take the input shape {shape}: let the factory return inputs of that shape")
        if len(shape) == inputs[0].ndim and batch not in (None, shape[0]):
            raise InputError(f"batch {batch} contradicts the input shape {shape}")
        whole = shape if len(shape) == inputs[0].ndim else (inputs[0].shape[0], *shape)
        inputs = random_inputs([whole], seed + 2)
    if batch is not None:
        if not inputs or any(tensor.ndim == 0 or len(tensor) != len(inputs[0]) for tensor in inputs):
            raise InputError(f"{spec} has inputs of no common batch: let the factory return inputs of batch {batch}")
        # Repeated, not drawn: example inputs may have to be of a kind (token numbers).
        inputs = tuple(tensor[torch.arange(batch) % len(tensor)] for tensor in inputs)
    differs = [tensor.shape[1:] for tensor in inputs] != [tensor.shape[1:] for tensor in default]
    tag = "-" + "x".join(str(size) for size in inputs[0].shape[1:]) if differs else ""
    model = Model(factory, spec, module.eval(), inputs, dtype=dtype, from_file=True, input_tag=tag)
    _check(model)
    return model


def _check(model: Model) -> float | None:
    """Runs the model once on two inputs; returns the relative change of its outputs (None: cannot be said).

    Errors: `ModelError` where it does not run, gives no tensor, or is not float32.
    """
    import torch

    from tvmopt.models.random_weights import MIN_CHANGE, relative_change

    if not model.example_inputs or not all(isinstance(tensor, torch.Tensor) for tensor in model.example_inputs):
        raise ModelError(f"{model.spec}: the example inputs must be one or more tensors")
    others = {value.dtype for value in model.module.state_dict().values() if value.is_floating_point()}
    others |= {tensor.dtype for tensor in model.example_inputs if tensor.is_floating_point()}
    if others - {torch.float32}:
        found = ", ".join(sorted(str(kind).removeprefix("torch.") for kind in others - {torch.float32}))
        raise ModelError(f"{model.spec} is {found}: give the float32 module and inputs, and the precision as --dtype")
    try:
        change = relative_change(model.module, model.example_inputs, seed=7)
    except Exception as error:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in model.example_inputs)
        raise ModelError(f"{model.spec} does not run on inputs of {shapes}: {one_line(error, 150)}") from error
    if change is not None and change < MIN_CHANGE:
        _log.warning(
            "%s: outputs change by only %.1e of their maximum from one input to another: comparing them proves little",
            model.spec,
            change,
        )
    return change


def _suggestion(spec: str) -> str:
    known = list(BUILT_IN)
    try:
        from tvmopt.models import torchvision_models

        known += [_TORCHVISION + name for name in torchvision_models.names()]
    except Exception as error:
        _log.debug("no torchvision names to suggest: %s", error)
    short = {name.removeprefix(_TORCHVISION): name for name in known}
    near = difflib.get_close_matches(spec.rpartition(":")[2], short, 3, 0.6)
    if near:
        return f"did you mean {' or '.join(short[name] for name in near)}?"
    return "give digits_cnn, torchvision:NAME, FILE.py:FACTORY or MODEL.pt2"
