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
}


@dataclass(frozen=True)
class Settings:
    """What a recipe is run with.

    options: what is built, and for what; its `log_dir` is where tuning logs are kept if `keep_logs`, else a temporary
    directory is taken. data_dir: where MNIST is; None for scikit-learn's digits. epochs, trials, limit: passes over
    the training images, candidates of a search, test images; None for the recipe's own. time_budget_s: of one search.
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
