"""Reads any folder of images, one directory per class, as the arrays a data set is made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from tvmopt.errors import DataError, one_line
from tvmopt.image_cache import FEWEST, cached

if TYPE_CHECKING:
    import numpy as np

SPLITS = {"train": ("train",), "test": ("test", "val", "valid", "validation")}
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
# ImageNet's evaluation takes the central 224 of 256.
_CROP = 224 / 256


def evenly_spaced(count: int, limit: int | None) -> np.ndarray:
    """Indices (int64) of at most `limit` of `count` items, evenly spaced."""
    import numpy as np

    kept = count if limit is None else min(limit, count)
    return np.arange(kept, dtype=np.int64) * count // max(kept, 1)


def find_folder(name: str, root: Path) -> Path | None:
    """The directory `name` means: itself (with or without the prefix "folder:"), or under `root`; else None."""
    name = name.removeprefix("folder:")
    return next((path for path in (Path(name), root / name) if name and path.is_dir()), None)


def read_folder(
    folder: Path, split: str, limit: int | None, shape: tuple[int, int, int], check: Callable[[int], None]
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Returns uint8 (N, 3, H, W) pixels, int64 (N,) labels and the class names (sorted, which gives the labels).

    Where the folder has no directory of the split's name, it is one set, used for both splits. `check` is called with
    the number of images before they are read. Errors: `DataError` for no classes, no images, an unreadable image.
    """
    base = next((folder / name for name in SPLITS[split] if (folder / name).is_dir()), folder)
    if base == folder and any((folder / name).is_dir() for names in SPLITS.values() for name in names):
        raise DataError(f"{folder} has no {split} split: expected the directory {folder / SPLITS[split][0]}")
    classes = tuple(sorted(entry.name for entry in base.iterdir() if entry.is_dir()))
    files = [
        (path, label)
        for label, name in enumerate(classes)
        for path in sorted((base / name).rglob("*"))
        if path.suffix.lower() in SUFFIXES
    ]
    if not files:
        raise DataError(f"no images in {base}: expected one directory per class, with images ({', '.join(SUFFIXES)})")
    keep = evenly_spaced(len(files), limit)
    check(len(keep))
    if len(keep) < FEWEST or len(keep) < len(files):
        return _decode([files[index] for index in keep], classes, shape)
    stats = [(path, path.stat()) for path, _ in files]
    facts = (base.resolve(), shape, *(f"{path} {stat.st_size} {stat.st_mtime_ns}" for path, stat in stats))
    return cached(folder.resolve().name, facts, lambda: _decode(files, classes, shape))


def _decode(
    files: Sequence[tuple[Path, int]], classes: tuple[str, ...], shape: tuple[int, int, int]
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    import numpy as np

    pixels = np.empty((len(files), 3, *shape[1:]), np.uint8)
    labels = np.empty(len(files), np.int64)
    for row, (path, label) in enumerate(files):
        labels[row] = label
        try:
            pixels[row] = read_image(path, shape[1], shape[2])
        except Exception as error:
            raise DataError(f"{path} is not a readable image ({one_line(error, 120)}): remove or replace it") from error
    return pixels, labels, classes


def read_image(file: Path | IO[bytes], height: int, width: int) -> Any:
    """uint8 (3, height, width): scaled so that the shape is the central 7/8 of the image, then cropped."""
    import numpy as np
    from PIL import Image

    with Image.open(file) as opened:
        image = opened.convert("RGB")
    scale = max(height / image.height, width / image.width)
    # An image already of the wanted shape (CIFAR-sized ones) is taken whole.
    if image.size != (width, height):
        scale /= _CROP
        size = max(width, round(image.width * scale)), max(height, round(image.height * scale))
        image = image.resize(size, Image.Resampling.BILINEAR)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return np.asarray(image.crop((left, top, left + width, top + height))).transpose(2, 0, 1)
