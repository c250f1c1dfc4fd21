"""Trains the built-in `digits_cnn` on scikit-learn's digits and writes its weights.

python -m tvmopt.training.train_digits                 the committed weights, from nothing, in about a minute
python -m tvmopt.training.train_digits --epochs 5 -o digits.pt
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tvmopt.errors import OutputError, TvmoptError, UsageError, one_line

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_OUTPUT = Path(__file__).resolve().parent.parent / "models" / "digits_cnn.pt"


def shift(images: Tensor, generator: torch.Generator) -> Tensor:
    """Moves each image by up to one pixel either way, the border repeated; same shape and dtype."""
    import torch
    from torch.nn.functional import pad

    count, _, height, width = images.shape
    padded = pad(images, (1, 1, 1, 1), mode="replicate")
    down, right = torch.randint(0, 3, (2, count, 1), generator=generator)
    rows = (down + torch.arange(height)).view(count, 1, height, 1)
    columns = (right + torch.arange(width)).view(count, 1, 1, width)
    picked = torch.arange(count).view(count, 1, 1, 1)
    return padded[picked, torch.arange(images.shape[1]).view(1, -1, 1, 1), rows, columns]


def train_digits(output: Path, *, epochs: int = 40, seed: int = 0, quiet: bool = False) -> float:
    """Trains, writes the state dict to `output` and returns the top-1 accuracy on the held-back digits.

    Errors: `OutputError` where `output` cannot be written. The file appears whole, or not at all.
    """
    import torch

    from tvmopt.data import load_dataset
    from tvmopt.models.digits_cnn import digits_cnn
    from tvmopt.training.loop import Epoch, evaluate, train

    def show(epoch: Epoch) -> None:
        if not quiet and (epoch.number % 5 == 0 or epoch.number == epochs):
            print(f"epoch {epoch.number:3d}  loss {epoch.loss:.4f}  top-1 in training {epoch.accuracy:.2%}")

    # Known now, not after a minute of training.
    if not os.access(output.parent, os.W_OK):
        raise OutputError(f"{output} cannot be written: {output.parent} is not a directory one can write to")
    training, held_back = load_dataset("digits", split="train"), load_dataset("digits", split="test")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = digits_cnn()
    # The held-back digits take no part: not in the weights, not in the choice of an epoch.
    train(module, training, epochs=epochs, lr=4e-3, seed=seed, augment=shift, progress=show)
    accuracy = evaluate(module, held_back)
    partial = output.with_name(output.name + ".part")
    try:
        torch.save(module.state_dict(), partial)
        os.replace(partial, output)
    except (OSError, RuntimeError) as error:
        raise OutputError(f"{output} cannot be written: {one_line(error)}") from error
    if not quiet:
        size = output.stat().st_size / 1024
        print(f"{output}: {size:.0f} KiB, top-1 {accuracy:.2%} on {len(held_back)} held-back digits")
    return accuracy


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tvmopt.training.train_digits",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--epochs", type=int, default=40, help="passes over the digits (default 40)")
    parser.add_argument("--seed", type=int, default=0, help="of the first weights and the order (default 0)")
    parser.add_argument("-o", "--output", type=Path, default=_OUTPUT, help="default: the built-in weights")
    options = parser.parse_args(argv)
    try:
        if options.epochs < 1:
            raise UsageError(f"--epochs must be at least 1, not {options.epochs}")
        train_digits(options.output, epochs=options.epochs, seed=options.seed)
    except TvmoptError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
