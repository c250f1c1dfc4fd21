"""The networks that come with tvmopt, by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvmopt.models.weights import load_state_dict

if TYPE_CHECKING:
    from torch import nn

NAMES = ("digits_cnn", "mnist_cnn", "resnet20")


def build(
    name: str, shape: tuple[int, int, int] | None, weights: str | None, seed: int
) -> tuple[nn.Module, tuple[int, int, int], bool]:
    """Returns the network, the (C, H, W) it was made for, and whether its weights are trained ones.

    weights: a file with a state dict; None: digits_cnn's own, or drawn by `seed`. shape: of the images it is to take.
    Errors: `ModelError` for weights that cannot be read or are another network's.
    """
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name == "digits_cnn":
            from tvmopt.models import digits_cnn

            module: nn.Module = digits_cnn.digits_cnn()
            default = digits_cnn.INPUT_SHAPE
            weights = str(digits_cnn.WEIGHTS) if weights in (None, "DEFAULT") else weights
        elif name == "mnist_cnn":
            from tvmopt.models import mnist_cnn

            default = mnist_cnn.INPUT_SHAPE
            module = mnist_cnn.mnist_cnn((shape or default)[1])
        else:
            from tvmopt.models import resnet20

            module, default = resnet20.resnet20(), resnet20.INPUT_SHAPE
    if weights is not None:
        load_state_dict(module, weights)
    return module, default, weights is not None
