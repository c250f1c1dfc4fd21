"""tvmopt: makes a PyTorch model fast with Apache TVM, and proves it.

The public names are imported when first used, so that `import tvmopt` costs nothing.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "compile": "tvmopt.api",
    "load": "tvmopt.api",
    "TvmoptError": "tvmopt.errors",
}
__all__ = ["TvmoptError", "compile", "load"]

# In a checkout `schedules/` and `bench/` stand beside this package; in a wheel they are inside it. Either way
# they are `tvmopt.schedules` and `tvmopt.bench`.
_here = Path(__file__).resolve().parent
if not (_here / "schedules").is_dir() and (_here.parent / "schedules" / "__init__.py").is_file():
    __path__.append(str(_here.parent))


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'tvmopt' has no attribute {name!r}")
