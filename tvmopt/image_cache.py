"""Decoded images, kept: a large image folder or an archive of one is decoded once and then read as arrays.

The cache is one .npz file of uint8 pixels a set, split and shape, in $TVMOPT_CACHE_DIR (else ~/.cache/tvmopt). Its name
holds a digest of what was decoded, so that changed files are decoded anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    Images = tuple[np.ndarray, np.ndarray, tuple[str, ...]]

_log = logging.getLogger(__name__)

CACHE_DIR_VARIABLE = "TVMOPT_CACHE_DIR"
# Below this many images decoding takes about a second, and a cache would only take up space.
FEWEST = 2000


def cache_directory() -> Path:
    """Where decoded sets are kept."""
    chosen = os.environ.get(CACHE_DIR_VARIABLE)
    return Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tvmopt"


def cached(name: str, facts: Iterable[object], read: Callable[[], Images]) -> Images:
    """What `read` gives: pixels uint8 (N, 3, H, W), labels int64 (N,), class names; from the cache where it is there.

    facts: all that the pixels depend on (files with sizes and times, split, shape). A cache that cannot be read or
    written costs time and nothing else.
    """
    import numpy as np

    digest = hashlib.sha256("\n".join(map(str, facts)).encode()).hexdigest()[:16]
    path = cache_directory() / f"{name}-{digest}.npz"
    # Of several kinds: a torn zip file, a missing array, a value of another type.
    with contextlib.suppress(Exception), np.load(path, allow_pickle=False) as kept:
        return kept["pixels"], kept["labels"], tuple(str(text) for text in kept["classes"])
    pixels, labels, classes = read()
    if len(labels) >= FEWEST:
        partial = path.with_name(f".{path.stem}.{os.getpid()}.npz")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            np.savez(partial, pixels=pixels, labels=labels, classes=np.array(classes))
            partial.replace(path)
            _log.info("%d images of %s decoded, kept as %s", len(labels), name, path)
        except OSError as error:
            _log.warning("decoded images cannot be kept in %s (%s)", path.parent, error.strerror or error)
    return pixels, labels, classes
