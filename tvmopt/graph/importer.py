"""torch.export -> Relax: a module with weights as constants and one function, `main`, of the model's inputs."""

from __future__ import annotations

import re
import warnings
from typing import TYPE_CHECKING

from tvmopt.errors import ModelError, TvmoptError, UnsupportedOperatorError, one_line

if TYPE_CHECKING:
    import torch
    import tvm

    from tvmopt.model import Model


def export_program(model: Model) -> torch.export.ExportedProgram:
    """The model's exported program: its own where it came from an archive, else traced from its example inputs.

    Raises:
        ModelError: torch.export cannot trace the module.
    """
    import torch

    if model.exported is not None:
        return model.exported
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            return torch.export.export(model.module, model.example_inputs)
    except TvmoptError:
        raise
    except Exception as error:
        raise ModelError(f"torch.export cannot trace {model.name}: {one_line(error)}") from error


def import_program(program: torch.export.ExportedProgram, name: str) -> tvm.IRModule:
    """Import an exported program into Relax; `main` takes the inputs and returns a tuple, weights are constants.

    Raises:
        UnsupportedOperatorError: names the PyTorch operator the importer has no converter for.
        ModelError: the program cannot be imported for another reason.
    """
    from tvm.relax.frontend.torch import from_exported_program

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return from_exported_program(program, keep_params_as_input=False)
    except Exception as error:
        found = re.search(r"Unsupported function types? (.*)", str(error))
        if found:
            names = ", ".join(re.findall(r"[\w.]+", found.group(1)))
            raise UnsupportedOperatorError(
                f"{name} uses {names}, which TVM's PyTorch importer does not know; replace it in the model"
            ) from error
        raise ModelError(f"{name} cannot be imported: {one_line(error)}") from error
