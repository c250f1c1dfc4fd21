"""Reads an image folder that is still packed as a tar archive, without unpacking it."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from tvmopt.errors import DataError, one_line
from tvmopt.image_cache import cached
from tvmopt.image_folder import SPLITS, SUFFIXES, read_image

if TYPE_CHECKING:
    import numpy as np

_ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


def find_archive(name: str, root: Path) -> Path | None:
    """The archive `name` means: itself or under `root`; else None."""
    if not name.lower().endswith(_ARCHIVES):
        return None
    return next((path for path in (Path(name), root / name) if path.is_file()), None)


def read_archive(
    path: Path, split: str, shape: tuple[int, int, int]
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """The images below `train/` or `test/` in the archive, as `read_folder` gives those of a folder; decoded once.

    Errors: `DataError` for a damaged archive, no images of that split, an unreadable image.
    """
    stat = path.stat()
    facts = (path.resolve(), stat.st_size, stat.st_mtime_ns, split, shape)
    return cached(path.name.partition(".")[0], facts, lambda: _decode(path, split, shape))


def _decode(path: Path, split: str, shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    import numpy as np

    images: dict[tuple[str, str], Any] = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                place = _place(member.name, split)
                if place is None or not member.isfile():
                    continue
                content = archive.extractfile(member)
                assert content is not None
                try:
                    images[place] = read_image(io.BytesIO(content.read()), shape[1], shape[2])
                except tarfile.TarError:
                    raise
                except Exception as error:
                    raise DataError(f"{member.name} in {path} is not a readable image ({one_line(error)})") from error
    except DataError:
        raise
    # Of several kinds, one for each compression.
    except Exception as error:
        raise DataError(f"{path} is not a whole tar archive ({one_line(error, 120)})") from error
    if not images:
        raise DataError(f"{path} has no images of the {split} split: expected {SPLITS[split][0]}/CLASS/*.jpg in it")
    classes = tuple(sorted({name for name, _ in images}))
    order = sorted(images)
    labels = np.array([classes.index(name) for name, _ in order], np.int64)
    return np.stack([images[place] for place in order]), labels, classes


def _place(name: str, split: str) -> tuple[str, str] | None:
    """(class, path below it) of an image of the split; None for others."""
    parts = PurePosixPath(name).parts
    start = next((index for index, part in enumerate(parts) if part in SPLITS[split]), None)
    if start is None or len(parts) < start + 3 or not name.lower().endswith(SUFFIXES):
        return None
    return parts[start + 1], "/".join(parts[start + 2 :])
