"""Lists of kernels for `bench.kernels --list`: those of a network, found by running it, and matrix products by size.

A network's convolutions, linear layers and attention products are read off a forward pass of the PyTorch module, each
distinct shape once, in the order they are first met.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from tvmopt.errors import ModelError, UsageError

from .sizes import attention_by_layers

if TYPE_CHECKING:
    from torch import nn

# (operator, shape) as kernel_cases.py writes them.
Wanted = tuple[str, str]

SQUARE = "square"
ALL = "all"
_TORCHVISION = "torchvision:"
_SQUARES = (256, 512, 1024, 2048, 4096)
# Many plain 3x3 and 1x1 convolutions; small branches; depthwise ones; and attention.
_NETWORKS = ("resnet50", "googlenet", "mobilenet_v2", "vit_b_16")


def kernels_of(names: Sequence[str]) -> tuple[list[Wanted], list[str]]:
    """The kernels of some lists, each once, and what is left out of them, in words.

    names: `square`, `all`, a network of torchvision by its bare name, or any model spec.

    Raises:
        UsageError: a name that is neither a list nor a model.
    """
    wanted: dict[Wanted, None] = {}
    left_out: dict[str, None] = {}
    for name in dict.fromkeys(part for given in names for part in _parts(given)):
        found, omitted = (_squares(), []) if name == SQUARE else _of_network(name)
        wanted.update(dict.fromkeys(found))
        left_out.update(dict.fromkeys(omitted))
    if not wanted:
        raise UsageError("--list: no list named, or one without a kernel in it; name a network, square or all")
    return list(wanted), list(left_out)


def _parts(name: str) -> tuple[str, ...]:
    return (*_NETWORKS, SQUARE) if name == ALL else (name,)


def _squares() -> list[Wanted]:
    return [("gemm", f"{size}x{size}x{size}") for size in _SQUARES]


def _of_network(name: str) -> tuple[list[Wanted], list[str]]:
    from tvmopt.model import BUILT_IN, load_model

    bare = name not in BUILT_IN and ":" not in name and not name.endswith(".pt2")
    try:
        if bare or name.startswith(_TORCHVISION):
            return walk(*_without_weights(name.removeprefix(_TORCHVISION)))
        model = load_model(name)
    except ModelError as error:
        raise UsageError(f"--list {name}: {error}" + (f"; lists are {SQUARE} and {ALL}, too" if bare else "")) from None
    return walk(model.module, model.example_inputs)


def _without_weights(name: str) -> tuple[nn.Module, tuple[Any, ...]]:
    """A network of torchvision and an image for it, shapes only: drawing Inception's weights takes two minutes."""
    import torch

    from tvmopt.models import torchvision_models

    with torch.device("meta"):
        module, side = torchvision_models.load(name, None, None, 0)
        return module, (torch.empty(1, 3, side, side),)


def walk(module: nn.Module, inputs: Sequence[Any]) -> tuple[list[Wanted], list[str]]:
    """The kernels of one forward pass, and the layers whose shape cannot be written, in words."""
    import torch

    found: dict[Wanted, None] = {}
    left_out: dict[str, None] = {}

    def note(layer: nn.Module, given: tuple[Any, ...], _: Any) -> None:
        for one in kinds[type(layer)](layer, given):
            if isinstance(one, tuple):
                found[one] = None
            else:
                left_out[one] = None

    kinds = _kinds()
    hooks = [layer.register_forward_hook(note) for layer in module.modules() if type(layer) in kinds]
    try:
        with attention_by_layers(), torch.no_grad():
            module(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return list(found), list(left_out)


def _conv2d(layer: Any, given: tuple[Any, ...]) -> list[Wanted | str]:
    n, c, h, w = given[0].shape
    square = all(len(set(pair)) == 1 for pair in (layer.kernel_size, layer.stride, layer.padding))
    if not square or set(layer.dilation) != {1} or layer.padding_mode != "zeros":
        return [
            f"conv2d {n}x{c}x{h}x{w}, {layer.out_channels} of {'x'.join(map(str, layer.kernel_size))}: "
            "not of one size, stride and padding in both directions"
        ]
    numbers = (layer.out_channels, layer.kernel_size[0], layer.stride[0], layer.padding[0], layer.groups)
    return [("conv2d", f"{n}x{c}x{h}x{w}," + ",".join(map(str, numbers)))]


def _linear(layer: Any, given: tuple[Any, ...]) -> list[Wanted | str]:
    rows = given[0].numel() // layer.in_features
    return [("gemm", f"{rows}x{layer.in_features}x{layer.out_features}")]


def _attention(layer: Any, given: tuple[Any, ...]) -> list[Wanted | str]:
    """The projection of all three inputs at once, the two products of every head, and the projection back."""
    query, key = given[0], given[1]
    length, others = (query.shape[-2], key.shape[-2]) if layer.batch_first else (query.shape[0], key.shape[0])
    width, heads, depth = layer.embed_dim, layer.num_heads, layer.head_dim
    batch = query.numel() // (length * width)
    return [
        ("gemm", f"{batch * length}x{width}x{3 * width}"),
        ("batch_matmul", f"{batch * heads}x{length}x{depth}x{others}"),
        ("batch_matmul", f"{batch * heads}x{length}x{others}x{depth}"),
        ("gemm", f"{batch * length}x{width}x{width}"),
    ]


def _kinds() -> dict[type, Callable[[Any, tuple[Any, ...]], list[Wanted | str]]]:
    """Layer class -> what is read off a layer and its inputs."""
    from torch import nn

    return {nn.Conv2d: _conv2d, nn.Linear: _linear, nn.MultiheadAttention: _attention}
