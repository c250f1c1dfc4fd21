"""Reads checkpoints: state dicts, by `weights_only=True` and nothing else."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvmopt.errors import ModelError, one_line

if TYPE_CHECKING:
    from torch import nn

_SUFFIXES = (".pt", ".pth", ".th", ".bin", ".ckpt")


def is_file_name(weights: str) -> bool:
    """Whether `weights` names a file and not one of torchvision's sets of weights."""
    return weights.lower().endswith(_SUFFIXES) or "/" in weights or Path(weights).is_file()


def load_state_dict(module: nn.Module, path: str) -> None:
    """Loads the state dict at `path` into `module`, every name matched (batch norms' counts of batches may lack).

    Taken as it is, or from below `state_dict`, `model` or `model_state_dict` of a checkpoint; the prefix `module.` that
    DataParallel puts before each name is taken off.
    Errors: `ModelError` for a missing file, one that weights_only=True refuses, names or shapes that do not fit.
    """
    import torch

    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ModelError(f"weights {path} cannot be read: {error.strerror or error}") from error
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"weights {path} refused: it is not a plain state dict, and loading anything else could run code; "
            "save it with torch.save(module.state_dict(), path)"
        ) from error
    except Exception as error:
        raise ModelError(f"weights {path} are not a whole PyTorch file ({one_line(error, 120)})") from error
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise ModelError(f"weights {path} hold no state dict: save it with torch.save(module.state_dict(), path)")
    state = dict(content)
    if state and all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    own = module.state_dict()
    # PyTorch before 0.4.1 did not save how many batches a batch norm has seen, which no output depends on.
    state = {**{name: value for name, value in own.items() if name.endswith(".num_batches_tracked")}, **state}
    missing = [name for name in own if name not in state]
    unexpected = [name for name in state if name not in own]
    misshaped = [name for name in own if name in state and own[name].shape != state[name].shape]
    parts = [
        f"{len(names)} {what} (first: {names[0]})"
        for names, what in ((missing, "missing"), (unexpected, "unknown"), (misshaped, "of another shape"))
        if names
    ]
    if parts:
        raise ModelError(f"weights {path} are of another model: {', '.join(parts)}")
    module.load_state_dict(state)
