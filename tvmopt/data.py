"""Data sets and their preprocessing: what accuracy is measured on, and what the training loop is fed.

A data set is read whole, as the tensors a model takes. Nothing is downloaded: a missing set is an error that says
where it was looked for and what belongs there. `digits` needs no files, it ships inside scikit-learn.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvmopt.errors import DataError, one_line
from tvmopt.image_archive import find_archive, read_archive
from tvmopt.image_folder import evenly_spaced, find_folder, read_folder

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from tvmopt.model import Model

DATA_DIR_VARIABLE = "TVMOPT_DATA_DIR"
# Held back from the training of digits_cnn: every fifth image of each class, by a seeded permutation.
_DIGITS_HELD_BACK = 0.2
# A data set is held in memory as float32; beyond this, --limit has to be given.
_MAX_BYTES = 4 << 30
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True)
class _Source:
    """One named data set: its class in torchvision.datasets, its files under the data directory, its statistics."""

    torchvision_class: str
    files: str
    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]


SOURCES = {
    "digits": _Source("", "", (1, 8, 8), (0.3053,), (0.3760,)),
    "mnist": _Source("MNIST", "MNIST/raw/*-ubyte (the four unpacked IDX files)", (1, 28, 28), (0.1307,), (0.3081,)),
    "fashionmnist": _Source(
        "FashionMNIST", "FashionMNIST/raw/*-ubyte (the four unpacked IDX files)", (1, 28, 28), (0.2860,), (0.3530,)
    ),
    "cifar10": _Source(
        "CIFAR10", "cifar-10-batches-py/ (the unpacked Python archive)", (3, 32, 32),
        (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616),
    ),
    "cifar100": _Source(
        "CIFAR100", "cifar-100-python/ (the unpacked Python archive)", (3, 32, 32),
        (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762),
    ),
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images as a model takes them, and what is on them.

    images: float32 (N, C, H, W), normalised. labels: int64 (N,), in range(len(classes)). classes: their names.
    """

    name: str
    split: str
    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return int(self.labels.shape[0])


def default_dataset(model: Model) -> str | None:
    """The data set a built-in model is measured on: "digits" or "mnist", by its input shape; None for other models."""
    if model.spec not in ("digits_cnn", "mnist_cnn"):
        return None
    return "mnist" if model.input_shape[-1] == 28 else "digits"


def data_directory(data_dir: str | os.PathLike[str] | None = None) -> Path:
    """Where data sets are looked for: `data_dir`, else $TVMOPT_DATA_DIR, else ./data."""
    return Path(data_dir or os.environ.get(DATA_DIR_VARIABLE) or "data")


def load_dataset(
    name: str,
    data_dir: str | os.PathLike[str] | None = None,
    split: str = "test",
    limit: int | None = None,
    input_shape: Sequence[int] | None = None,
) -> Dataset:
    """Reads one split of a data set and turns it into what a model with `input_shape` takes.

    name: digits, mnist, fashionmnist, cifar10, cifar100 (in any case), or the path of an image folder (itself or
        under `data_dir`): one directory per class, below `train/` and `test/` (or `val/`) where there are two splits;
        or of a tar archive of such a folder, which is not unpacked. Large ones are decoded once (image_cache.py).
    split: "train" or "test". limit: at most so many images, evenly spaced, so that a sorted folder keeps its classes.
    input_shape: (C, H, W), or (N, C, H, W) of which N is ignored; default: the data set's own. Images are resized
        (a folder's: shorter side to 8/7 of the shape, then the centre), gray is repeated to 3 channels, colour
        weighted to gray.

    Errors: `DataError` for an unknown name, missing or damaged files, and a set too large for memory.
    """
    if split not in ("train", "test"):
        raise DataError(f"unknown split {split!r}: choose train or test")
    if limit is not None and limit < 1:
        raise DataError(f"the limit of images must be at least 1, not {limit}")
    shape = _check_shape(input_shape)
    root = data_directory(data_dir)
    key = name.lower().replace("-", "").replace("_", "")
    if key not in SOURCES:
        folder, archive = find_folder(name, root), find_archive(name, root)
        if archive is not None:
            shape = shape or (3, 224, 224)
            pixels, labels, classes = read_archive(archive, split, shape)
            keep = evenly_spaced(len(labels), limit)
            check_size(name, len(keep), shape)
            return _finish(name, split, pixels[keep], labels[keep], classes, shape, *_IMAGENET)
        if folder is None:
            near = difflib.get_close_matches(key, SOURCES, 1, 0.5)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise DataError(
                f"unknown data set {name!r}: choose one of {', '.join(SOURCES)}, or the path of an image folder.{hint}"
            )
        shape = shape or (3, 224, 224)
        pixels, labels, classes = read_folder(folder, split, limit, shape, lambda n: check_size(name, n, shape))
        return _finish(name, split, pixels, labels, classes, shape, *_IMAGENET)
    source = SOURCES[key]
    shape = shape or source.shape
    arrays, targets, classes = _read_digits(split) if key == "digits" else _read_torchvision(key, source, root, split)
    keep = evenly_spaced(len(targets), limit)
    check_size(key, len(keep), shape)
    return _finish(key, split, arrays[keep], targets[keep], classes, shape, source.mean, source.std)


def check_size(name: str, count: int, shape: tuple[int, int, int] | None) -> None:
    """Raises `DataError` where `count` float32 images of `shape` do not fit in the memory set aside for a data set."""
    channels, height, width = shape or (3, 224, 224)
    size = 4 * count * channels * height * width
    if size > _MAX_BYTES:
        raise DataError(
            f"{count} images of {name} at {channels}x{height}x{width} take {size / 2**30:.0f} GiB: "
            f"give --limit {_MAX_BYTES // (size // count)} or less"
        )


def _check_shape(input_shape: Sequence[int] | None) -> tuple[int, int, int] | None:
    if input_shape is None:
        return None
    shape = tuple(int(size) for size in input_shape[-3:])
    if len(input_shape) not in (3, 4) or shape[0] not in (1, 3) or min(shape) < 1:
        raise DataError(f"images cannot be brought to the shape {tuple(input_shape)}: expected (C, H, W) with C 1 or 3")
    return shape  # type: ignore[return-value]


def _read_digits(split: str) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    import numpy as np

    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError("the digits data set ships inside scikit-learn: pip install scikit-learn") from error
    digits = load_digits()
    images = (digits.images / 16.0).astype(np.float32)[:, None]
    labels = digits.target.astype(np.int64)
    # RandomState's stream is frozen by numpy, so the split is the same everywhere and for ever.
    random, chosen = np.random.RandomState(0), []
    for label in range(10):
        order = random.permutation(np.flatnonzero(labels == label))
        held_back = round(len(order) * _DIGITS_HELD_BACK)
        chosen.append(order[:held_back] if split == "test" else order[held_back:])
    keep = np.sort(np.concatenate(chosen))
    return images[keep], labels[keep], tuple(str(label) for label in range(10))


def _read_torchvision(
    name: str, source: _Source, root: Path, split: str
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    import numpy as np

    from tvmopt.torchvision_compat import torchvision

    torchvision()
    import importlib

    datasets: Any = importlib.import_module("torchvision.datasets")
    expected = f"expected {source.files} under {root.resolve()}"
    if not root.is_dir():
        raise DataError(f"{name}: no such directory; {expected} (--data-dir, or {DATA_DIR_VARIABLE}, says another)")
    try:
        data = getattr(datasets, source.torchvision_class)(str(root), train=split == "train", download=False)
    except RuntimeError as error:
        raise DataError(f"{name} is not there or not whole: {expected} (--data-dir says another directory)") from error
    except Exception as error:
        raise DataError(f"{name} is damaged ({type(error).__name__}: {one_line(error, 120)}): {expected}") from error
    pixels = np.asarray(data.data)
    labels = np.asarray(data.targets, dtype=np.int64)
    images = pixels[:, None] if pixels.ndim == 3 else pixels.transpose(0, 3, 1, 2)
    if len(images) != len(labels):
        raise DataError(f"{name} is damaged: {len(images)} images and {len(labels)} labels; {expected}")
    return images, labels, tuple(data.classes)


def _finish(
    name: str,
    split: str,
    pixels: np.ndarray,
    labels: np.ndarray,
    classes: tuple[str, ...],
    shape: tuple[int, int, int],
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Dataset:
    """uint8 (0 to 255) or float32 (0 to 1) pixels (N, C, H, W) to a `Dataset` of `shape`."""
    import torch
    from torch.nn.functional import interpolate

    images = torch.from_numpy(pixels.copy()).float()
    if pixels.dtype.kind == "u":
        images /= 255.0
    images = (images - torch.tensor(mean).view(1, -1, 1, 1)) / torch.tensor(std).view(1, -1, 1, 1)
    if tuple(images.shape[2:]) != shape[1:]:
        images = interpolate(images, size=shape[1:], mode="bilinear", align_corners=False, antialias=True)
    if images.shape[1] == 1 and shape[0] == 3:
        images = images.repeat(1, 3, 1, 1)
    elif images.shape[1] == 3 and shape[0] == 1:
        images = (images * torch.tensor((0.299, 0.587, 0.114)).view(1, 3, 1, 1)).sum(1, keepdim=True)
    return Dataset(name, split, images.contiguous(), torch.from_numpy(labels.copy()), classes)
