"""The kernels `bench.kernels` knows by operator and shape: each a model of one layer, so that both PyTorch and the
whole of tvmopt's lowering run it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tvmopt.errors import UsageError

if TYPE_CHECKING:
    from tvmopt.model import Model


@dataclass(frozen=True)
class Operator:
    """How the shapes of an operator are written, and which are measured where none is named."""

    form: str
    defaults: tuple[str, ...]
    build: Callable[[str], tuple[Any, tuple[Any, ...]]]


def _conv2d(shape: str) -> tuple[Any, tuple[Any, ...]]:
    import torch

    image, *rest = shape.split(",")
    n, c, h, w = _sizes(image, 4)
    if not 2 <= len(rest) <= 5:
        raise ValueError(shape)
    out, kernel, stride, padding, groups = [int(x) for x in rest] + [0, 0, 1, 0, 1][len(rest) :]
    layer = torch.nn.Conv2d(c, out, kernel, stride, padding, groups=groups)
    return torch.nn.Sequential(layer, torch.nn.ReLU()), (torch.randn(n, c, h, w),)


def _gemm(shape: str) -> tuple[Any, tuple[Any, ...]]:
    import torch

    rows, depth, columns = _sizes(shape, 3)
    return torch.nn.Linear(depth, columns, bias=False), (torch.randn(rows, depth),)


def _batch_matmul(shape: str) -> tuple[Any, tuple[Any, ...]]:
    import torch

    class Product(torch.nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return a @ b

    batch, rows, depth, columns = _sizes(shape, 4)
    return Product(), (torch.randn(batch, rows, depth), torch.randn(batch, depth, columns))


def _max_pool(shape: str) -> tuple[Any, tuple[Any, ...]]:
    import torch

    image, *rest = shape.split(",")
    kernel, stride, padding = [int(x) for x in rest] + [2, 2, 0][len(rest) :]
    # The convolution before it gives it the blocked layout that it has in a network.
    n, c, h, w = _sizes(image, 4)
    return torch.nn.Sequential(torch.nn.Conv2d(c, c, 1), torch.nn.MaxPool2d(kernel, stride, padding)), (
        torch.randn(n, c, h, w),
    )


def _softmax(shape: str) -> tuple[Any, tuple[Any, ...]]:
    import torch

    rows, columns = _sizes(shape, 2)
    return torch.nn.Softmax(dim=-1), (torch.randn(rows, columns),)


def _attention(shape: str) -> tuple[Any, tuple[Any, ...]]:
    import torch

    class Attention(torch.nn.Module):
        def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.scaled_dot_product_attention(query, key, value)

    heads, rows, depth = _sizes(shape, 3)
    return Attention(), tuple(torch.randn(1, heads, rows, depth) for _ in range(3))


def _layer_norm(shape: str) -> tuple[Any, tuple[Any, ...]]:
    import torch

    rows, columns = _sizes(shape, 2)
    return torch.nn.LayerNorm(columns), (torch.randn(rows, columns),)


OPERATORS = {
    "conv2d": Operator(
        "NxCxHxW,OUT,KERNEL[,STRIDE[,PADDING[,GROUPS]]]",
        (
            "1x64x56x56,64,3,1,1", "1x3x224x224,64,7,2,3", "1x128x28x28,256,3,2,1", "1x256x56x56,64,1",
            "1x512x7x7,512,3,1,1", "1x96x56x56,96,3,1,1,96",
        ),
        _conv2d,
    ),
    "gemm": Operator("MxKxN", ("1024x1024x1024", "1x2048x1000"), _gemm),
    "batch_matmul": Operator("BxMxKxN", ("12x197x64x197",), _batch_matmul),
    "max_pool2d": Operator("NxCxHxW[,KERNEL[,STRIDE[,PADDING]]]", ("1x64x112x112,3,2,1",), _max_pool),
    "attention": Operator("HEADSxMxDEPTH", ("12x197x64",), _attention),
    "softmax": Operator("MxN", ("2364x197",), _softmax),
    "layer_norm": Operator("MxN", ("197x768",), _layer_norm),
}  # fmt: skip


def layer(op: str, shape: str) -> Model:
    """The kernel as a model of one layer with seeded weights, named `op-shape`.

    Raises:
        UsageError: a shape of another form than the operator's.
    """
    import torch

    from tvmopt.model import from_module

    operator = OPERATORS[op]
    torch.manual_seed(0)
    try:
        module, examples = operator.build(shape)
        with torch.no_grad():
            module(*examples)
    except (ValueError, TypeError, RuntimeError):
        raise UsageError(
            f"--shape {shape}: not of the form {operator.form} of {op}, for instance {operator.defaults[0]}"
        ) from None
    return from_module(module, examples, name=f"{op}-{shape}")


def __getattr__(name: str) -> Callable[[], tuple[Any, tuple[Any, ...]]]:
    """`gemm-512x512x512` of this file: the factory of that layer, so that the bench takes it as FILE:FACTORY."""
    op, dash, shape = name.partition("-")
    if not dash or op not in OPERATORS:
        raise AttributeError(name)

    def factory() -> tuple[Any, tuple[Any, ...]]:
        import torch

        torch.manual_seed(0)
        return OPERATORS[op].build(shape)

    return factory


def _sizes(text: str, count: int) -> list[int]:
    sizes = [int(x) for x in text.split("x")]
    if len(sizes) != count or min(sizes) < 1:
        raise ValueError(text)
    return sizes
