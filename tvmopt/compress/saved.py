"""A pruned network as an exported program (.pt2) that says how it was pruned.

Beside the program, the archive holds one JSON text, `tvmopt_pruning.json`: method, sparsity, each layer's share of
zeros, the masks (bits, deflated, base64), and the accuracies that were measured. All records of the archive are
deflated, so that zeros take next to no place on disk; torch.export.load reads them as it does those that are not.
"""

from __future__ import annotations

import base64
import io
import json
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvmopt.compress.layers import layers_with_weights
from tvmopt.compress.size import layer_sizes, size_of
from tvmopt.errors import ModelError, OutputError, one_line

if TYPE_CHECKING:
    from torch import Tensor, nn

FILE = "tvmopt_pruning.json"
_FORMAT = 1


@dataclass(frozen=True)
class Record:
    """How a network was pruned.

    method: its full name. sparsity: what was asked for, in 0..1: of the layers that were pruned, or the share of
    filters removed. overall: share of zeros among all parameters. layers: name -> its share of zeros, what was left
    alone included (size.py). masks: name -> bool tensor of the weight's shape, True where a weight stays; of a batch
    norm (outputs,), True where it gives more than zeros. accuracy: top-1 in 0..1, "before" any pruning and "after" all
    of it. dense_params: how many parameters there were before. one_shot: what it can be made from again (one_shot.py),
    where it can.
    """

    method: str
    sparsity: float
    overall: float
    layers: dict[str, float]
    masks: dict[str, Tensor] = field(default_factory=dict)
    accuracy: dict[str, float] = field(default_factory=dict)
    dense_params: int | None = None
    one_shot: dict[str, Any] | None = None


def record_of(
    module: nn.Module, method: str, sparsity: float, accuracy: Mapping[str, float], dense_params: int
) -> Record:
    """The record of a pruned `module` without masks on it; its zeros are the masks."""
    from torch import nn

    masks = {
        name: layer.weight.detach() != 0
        for name, layer in layers_with_weights(module).items()
        if not bool((layer.weight != 0).all())
    }
    for name, part in module.named_modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.weight is not None:
            stays = (part.weight.detach() != 0) | (part.bias.detach() != 0)
            if not bool(stays.all()):
                masks[name] = stays
    layers = {layer.name: layer.sparsity for layer in layer_sizes(module)}
    return Record(method, sparsity, size_of(module).sparsity, layers, masks, dict(accuracy), dense_params)


def save(module: nn.Module, inputs: Sequence[Tensor], path: Path, record: Record) -> None:
    """Exports the module and writes it with its record.

    Errors: `ModelError` where torch.export cannot export it, `OutputError` where `path` cannot be written.
    """
    import os

    import torch

    content = {
        "format": _FORMAT, "method": record.method, "sparsity": record.sparsity, "overall_sparsity": record.overall,
        "layers": record.layers, "accuracy": record.accuracy, "dense_params": record.dense_params,
        "one_shot": record.one_shot,
        "masks": {name: _pack(mask) for name, mask in record.masks.items()},
    }  # fmt: skip
    try:
        with torch.no_grad():
            program = torch.export.export(module.eval(), tuple(inputs))
    except Exception as error:
        raise ModelError(f"torch.export does not take the pruned model ({one_line(error, 150)})") from error
    partial = path.with_name(f".{path.stem}.{os.getpid()}.pt2")
    archive = io.BytesIO()
    torch.export.save(program, archive, extra_files={FILE: json.dumps(content)})
    try:
        _deflate(archive, partial)
        partial.replace(path)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {one_line(error, 150)}") from error
    finally:
        partial.unlink(missing_ok=True)


def _deflate(archive: io.BytesIO, path: Path) -> None:
    """Writes the archive, whose records torch stores as they are, with each of them deflated."""
    with zipfile.ZipFile(archive) as stored, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as deflated:
        for name in stored.namelist():
            # An entry made by its name alone has no time: the same network gives the same file.
            entry = zipfile.ZipInfo(name)
            entry.compress_type = zipfile.ZIP_DEFLATED
            deflated.writestr(entry, stored.read(name))


def read(extra: Mapping[str, Any]) -> Record | None:
    """The record among the texts beside a program (`Model.extra`); None for a program that was not pruned here.

    Errors: `ModelError` for a record that is damaged or of a later format.
    """
    text = extra.get(FILE)
    if text is None:
        return None
    try:
        content = json.loads(text)
        if content["format"] != _FORMAT:
            raise ModelError(f"its {FILE} has format {content['format']}, this version reads {_FORMAT}")
        masks = {str(name): _unpack(packed) for name, packed in content["masks"].items()}
        return Record(
            str(content["method"]), float(content["sparsity"]), float(content["overall_sparsity"]),
            {str(name): float(share) for name, share in content["layers"].items()}, masks,
            dict(content["accuracy"]), content["dense_params"], content.get("one_shot"),
        )  # fmt: skip
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"its {FILE} is damaged ({one_line(error, 100)}): prune the model anew") from error


def _pack(mask: Tensor) -> dict[str, Any]:
    import numpy as np

    bits = np.packbits(mask.cpu().numpy().reshape(-1))
    return {"shape": list(mask.shape), "bits": base64.b64encode(zlib.compress(bits.tobytes(), 9)).decode()}


def _unpack(packed: Mapping[str, Any]) -> Tensor:
    import numpy as np
    import torch

    shape = tuple(int(size) for size in packed["shape"])
    bits = np.frombuffer(zlib.decompress(base64.b64decode(packed["bits"])), np.uint8)
    values = np.unpackbits(bits, count=int(np.prod(shape))).reshape(shape)
    return torch.from_numpy(values.astype(np.bool_))
