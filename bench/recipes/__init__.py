"""Published experiments, each in a file of its own with a `run(settings) -> int`, which prints its tables."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tvmopt.options import BuildOptions

# Recipe -> its module in this package, and what it shows.
RECIPES: dict[str, tuple[str, str]] = {
    "conv-vs-gemm": (
        "conv_vs_gemm",
        "a small CNN on MNIST, its convolutions by the convolution and by the GEMM method, each original, manual, auto",
    ),
    "sparse-kernels": (
        "sparse_kernels",
        "block-sparse convolutions and products over ResNet-50's layers, at 30% to 95% of zeros, against dense ones",
    ),
    "unstructured-kernels": (
        "unstructured_kernels",
        "convolutions and products of which single weights are zero, 70% to 99% of them, against dense ones",
    ),
    "resnet18-sparse": (
        "resnet18_sparse",
        "ResNet-18 at 224 x 224 with blocks of zeros, end to end, against its dense self, direct and as planned",
    ),
    "mnist-prune": (
        "mnist_prune",
        "a small CNN on MNIST, weights and filters pruned to 99%, before and after one and two epochs of fine-tuning",
    ),
    "mnist-units": (
        "mnist_units",
        "a dense network on MNIST, weights against whole units pruned, without fine-tuning, and where it fails",
    ),
    "cifar-resnet20": (
        "cifar_resnet20",
        "the public ResNet-20 on CIFAR-10, fine-tuned dense, block-sparse and with half its filters: accuracy and time",
    ),
}


@dataclass(frozen=True)
class Settings:
    """What a recipe is run with.

    options: what is built, and for what; its `log_dir` is where tuning logs are kept if `keep_logs`, else a temporary
    directory is taken. data_dir: where the data sets are; None: conv-vs-gemm takes scikit-learn's digits.
    epochs, trials, limit: passes over the training images, candidates of a search, test images; None for the recipe's
    own. time_budget_s: of one search.
    work_dir: where trained networks are kept and gone on from; None: nowhere.
    command: what the results are recorded to have been made with.
    """

    options: BuildOptions
    quick: bool = False
    data_dir: str | None = None
    epochs: int | None = None
    trials: int | None = None
    time_budget_s: float = 120.0
    limit: int | None = None
    samples: int = 30
    time_limit_s: float = 5.0
    keep_logs: bool = False
    markdown: bool = False
    json: Path | None = None
    command: str | None = None
    work_dir: Path | None = None
