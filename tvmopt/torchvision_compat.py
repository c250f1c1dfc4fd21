"""Imports torchvision also where its compiled part does not load.

The torchvision wheel of the package index is built against CUDA torch. Beside a CPU-only torch its `_C.so` does
not load and `import torchvision` raises "operator torchvision::nms does not exist". Models, transforms and
datasets are pure Python: once the two operators that are registered at import are *declared*, all of them work.
Only the detection operators (nms, roi_align, ...) stay unavailable.
"""

from __future__ import annotations

import functools
import importlib
import logging
import sys
from types import ModuleType
from typing import Any

from tvmopt.errors import TvmoptError, one_line

_log = logging.getLogger(__name__)

# Schemas as torchvision's C++ declares them; nothing is implemented, so calling one still raises.
_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
# A Library object that is collected takes its operators with it.
_libraries: list[Any] = []


def _declare_missing_operators() -> None:
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")
    for name, schema in _SCHEMAS.items():
        if not hasattr(torch.ops.torchvision, name):
            library.define(schema)
    _libraries.append(library)


@functools.cache
def torchvision() -> ModuleType:
    """Returns the imported torchvision package.

    Errors: `TvmoptError` where torchvision is not installed or fails for another reason than a missing operator.
    """
    try:
        return importlib.import_module("torchvision")
    except ModuleNotFoundError as error:
        raise TvmoptError(f"torchvision cannot be imported ({one_line(error)}): pip install torchvision") from error
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            raise TvmoptError(f"torchvision cannot be imported: {one_line(error)}") from error
        reason = one_line(error)
    # What was imported before the failure is half done; the second import starts clean.
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    _declare_missing_operators()
    try:
        module = importlib.import_module("torchvision")
    except Exception as error:
        raise TvmoptError(f"torchvision does not fit this torch ({one_line(error)}): install a matching one") from error
    _log.info(
        "torchvision's compiled part does not load beside this torch (%s): detection operators such as nms are "
        "not available; models, transforms and datasets are.",
        reason,
    )
    return module
