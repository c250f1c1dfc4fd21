"""What the recipes that train share: the data, a dense network trained once and kept, tables, results."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvmopt.errors import DataError

from .. import environment, results
from . import Settings

if TYPE_CHECKING:
    from torch import nn

    from tvmopt.data import Dataset
    from tvmopt.machine import Machine


def say(line: str) -> None:
    """A line on how it goes."""
    print(line, file=sys.stderr, flush=True)


@contextmanager
def work_directory(settings: Settings) -> Iterator[Path]:
    """Where trained networks are kept: `settings.work_dir`, else a directory that goes away."""
    if settings.work_dir is None:
        with tempfile.TemporaryDirectory(prefix="tvmopt-recipe-") as folder:
            yield Path(folder)
    else:
        settings.work_dir.mkdir(parents=True, exist_ok=True)
        yield settings.work_dir


def mnist(settings: Settings) -> tuple[Dataset, Dataset]:
    """(training, test) images of MNIST; few of them with --quick. `DataError` where it is not there."""
    from tvmopt.data import load_dataset

    limit = settings.limit or (500 if settings.quick else None)
    training = load_dataset("mnist", settings.data_dir, "train", 2000 if settings.quick else None)
    return training, load_dataset("mnist", settings.data_dir, "test", limit)


def trained(module: nn.Module, path: Path, training: Dataset, *, epochs: int, lr: float, bfloat16: bool) -> None:
    """Trains `module` in place; `path` keeps its epochs, so that an interrupted run, or another, goes on from there."""
    from tvmopt.training.loop import Epoch, train

    def show(epoch: Epoch) -> None:
        say(f"epoch {epoch.number} of {epochs}: loss {epoch.loss:.4f}, top-1 in training {epoch.accuracy:.2%}")

    train(
        module, training, epochs=epochs, lr=lr, batch=128, checkpoint=path, bfloat16=bfloat16, progress=show
    )  # fmt: skip


def seeded(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """A network with weights drawn by `seed`; the global generator is left alone."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def mixes_precision() -> bool:
    """Whether this CPU multiplies bfloat16 by itself: there, mixed precision trains about three times as fast."""
    import torch

    return bool(getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)())


class Cells:
    """Figures that took long, kept one by one in a JSON file: what is there is not computed again."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._known: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
        except ValueError as error:
            raise DataError(f"{path} is damaged ({error}): remove it to start anew") from error

    def get(self, name: str, compute: Callable[[], Any]) -> Any:
        """The figure called `name`, computed where it is not known yet."""
        if name not in self._known:
            self._known[name] = compute()
            results.write_text(self._path, json.dumps(self._known, indent=1) + "\n")
        return self._known[name]


def document(settings: Settings, machine: Machine, recipe: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Writes the results to `settings.json`, where one is named."""
    described = environment.describe(machine, machine.cores)
    described["command"] = settings.command
    described["recipe"] = recipe
    if settings.json is not None:
        results.write(results.document(described, rows), settings.json)


def show(lines: Sequence[Sequence[str]], markdown: bool) -> None:
    """Prints a table, its first line the header."""
    print()
    if markdown:
        texts = ["| " + " | ".join(line) + " |" for line in lines]
        print("\n".join([texts[0], "|---|" + "---:|" * (len(lines[0]) - 1), *texts[1:]]))
        return
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        rest = [text.rjust(width) for text, width in zip(line[1:], widths[1:], strict=True)]
        print("  ".join([line[0].ljust(widths[0]), *rest]).rstrip())
