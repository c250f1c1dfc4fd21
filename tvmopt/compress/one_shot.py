"""A network pruned at once, without training: the same one from the same few words.

`bench --sparsity` measures such networks and `tune --sparsity` tunes them. Each writes the network into a folder that
goes away, and loads it from there; the tuning log is found again because the file's name is made of those words. The
file says in its record (saved.py) how it was made, so that a log can be replayed and the bench can say how to tune.
"""

from __future__ import annotations

import re
import shlex
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvmopt.options import sparsities

if TYPE_CHECKING:
    from argparse import _ActionsContainer

    from tvmopt.model import Model
    from tvmopt.options import BuildOptions


def add_options(group: _ActionsContainer, what: str, more: str) -> None:
    """Adds --sparsity and --method to a command that does `what` with the pruned networks; `more` ends the help."""
    group.add_argument("--sparsity", type=sparsities, default=(), metavar="S,...",
                       help=f"{what} the network at shares of zeros like 0,0.5,0.9, pruned in one shot{more}")
    group.add_argument("--method", default="block", metavar="M", help="how it is pruned, as in tvmopt.prune")


@dataclass(frozen=True)
class OneShot:
    """What is pruned, how, and to which share of zeros; `batch`, `input_shape` and `weights` are `BuildOptions`'."""

    spec: str
    method: str
    sparsity: float
    batch: int | None = None
    input_shape: tuple[int, ...] | None = None
    weights: str | None = None

    @staticmethod
    def of(spec: str | None, method: str, sparsity: float, options: BuildOptions) -> OneShot:
        """The network of `spec` (None: the default) in the options' batch, shape and weights.

        Raises:
            UsageError: a method that is not one, or a sparsity that it cannot have.
        """
        from tvmopt.compress.methods import check_sparsity, method_of
        from tvmopt.model import DEFAULT_SPEC

        chosen = method_of(method)
        check_sparsity(chosen, sparsity)
        spec = (spec or DEFAULT_SPEC).strip()
        return OneShot(spec, chosen.name, sparsity, options.batch, options.input_shape, options.weights)

    @staticmethod
    def of_model(model: Model) -> OneShot | None:
        """What `model` was made from, where it was pruned here; None for other models."""
        from tvmopt.compress.saved import read

        record = read(model.extra)
        return OneShot.from_json(record.one_shot) if record is not None and record.one_shot is not None else None

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> OneShot:
        """What `to_json` made; ModelError for something else."""
        from tvmopt.errors import ModelError

        try:
            shape = data["input_shape"]
            return OneShot(**{**data, "input_shape": None if shape is None else tuple(shape)})
        except (TypeError, KeyError) as error:
            raise ModelError(f"what says how it was pruned is damaged ({error}): prune the model anew") from None

    def to_json(self) -> dict[str, Any]:
        """The fields, as JSON has them."""
        return asdict(self)

    @property
    def arguments(self) -> str:
        """What to give tune or bench for this network."""
        shape = ",".join(map(str, self.input_shape or ()))
        given = {
            "--batch": self.batch, "--input-shape": shape or None, "--weights": self.weights,
            "--sparsity": f"{self.sparsity:g}", "--method": self.method,
        }  # fmt: skip
        said = [text for name, value in given.items() if value is not None for text in (name, str(value))]
        return shlex.join([self.spec, *said])

    def write(self, model: Model, folder: Path) -> Path:
        """Prunes `model`, which is `spec`'s and whose weights this changes, and writes it into `folder`.

        Raises:
            UsageError: the method allows no layer. ModelError: an exported program, or one that cannot be exported.
        """
        from tvmopt.compress.pruning import prune
        from tvmopt.compress.saved import record_of, save
        from tvmopt.compress.size import size_of
        from tvmopt.errors import ModelError

        if model.exported is not None:
            raise ModelError(f"{self.spec} is an exported program, which cannot be pruned: leave --sparsity out")
        params = size_of(model.module).params
        prune(model.module, self.method, self.sparsity, model.example_inputs)
        record = record_of(model.module, self.method, self.sparsity, {}, params)
        # The name is that of the tuning log, too.
        name = re.sub(r"[^A-Za-z0-9_.-]", "_", model.name)
        path = folder / f"{name}-{self.method.replace(':', '_')}-{self.sparsity:g}.pt2"
        save(model.module, model.example_inputs, path, replace(record, one_shot=self.to_json()))
        return path

    def load(self, dtype: str = "float32") -> Model:
        """The pruned network, computing in `dtype`; its spec is `arguments`.

        Raises:
            UsageError, ModelError: as `write`, and what loading `spec` raises.
        """
        from tvmopt.model import load_model

        whole = load_model(self.spec, batch=self.batch, input_shape=self.input_shape, weights=self.weights)
        with tempfile.TemporaryDirectory(prefix="tvmopt-pruned-") as folder:
            model = load_model(str(self.write(whole, Path(folder))), dtype=dtype)
        return replace(model, spec=self.arguments)
