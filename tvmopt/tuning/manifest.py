"""`manifest.json` of a tuning log: what was tuned, where, with what, and the plan that came of it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvmopt.errors import LogError
from tvmopt.plan import Plan
from tvmopt.tuning.lines import MANIFEST

if TYPE_CHECKING:
    from tvmopt.machine import AnyMachine
    from tvmopt.model import Model

FORMAT = 1


@dataclass(frozen=True)
class Manifest:
    """The manifest's fields.

    `model`: spec, name, digest of the weights' shapes, dtype, input shapes. `target`: TVM's, as a dict. `machine`:
    the `AnyMachine`'s fields. `versions`: of tvm and tvmopt. `status`: `running`, `interrupted` or `finished`;
    `ended_by`: the limit that ended the run. `trials`: candidates measured in all runs together. `network`: the
    medians of the whole network, in milliseconds, manual's and auto's, and which was `kept`; empty if not measured.
    """

    model: dict[str, Any]
    target: dict[str, Any]
    machine: dict[str, Any]
    versions: dict[str, str]
    strategies: dict[str, str] = field(default_factory=dict)
    search: str = "template"
    seed: int = 0
    trials: int = 0
    tuning_s: float = 0.0
    status: str = "running"
    ended_by: str = ""
    network: dict[str, Any] = field(default_factory=dict)
    plan: Plan = field(default_factory=Plan)
    format: int = FORMAT

    def with_plan(self, plan: Plan) -> Manifest:
        """The same with another plan."""
        return replace(self, plan=plan)

    def write(self, path: Path) -> None:
        """Writes `manifest.json` into the log directory `path`, in one step."""
        from tvmopt.tuning.log import write_atomically

        data = {item.name: getattr(self, item.name) for item in fields(self)}
        data = {"format": data.pop("format"), **data, "plan": self.plan.to_json()}
        write_atomically(path / MANIFEST, json.dumps(data, indent=1) + "\n")


def read_manifest(path: Path) -> Manifest:
    """The manifest in the log directory `path`.

    Raises:
        LogError: missing, damaged, or in a format of another tvmopt.
    """
    file = path / MANIFEST
    if not file.is_file():
        raise LogError(f"{path}: no tuning log here: it has no {MANIFEST} (tune first: python -m tvmopt.tune)")
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise LogError(f"{file}: not JSON: damaged; restore it, or tune again with --fresh") from None
    if not isinstance(data, dict):
        raise LogError(f"{file}: not a manifest; restore it, or tune again with --fresh")
    if data.get("format") != FORMAT:
        raise LogError(
            f"{file}: format {data.get('format')!r}, this tvmopt reads {FORMAT}: use the tvmopt it was made with, "
            "or tune again with --fresh"
        )
    try:
        manifest = Manifest(**{**data, "plan": Plan.from_json(data.get("plan"))})
    except (TypeError, ValueError) as error:
        raise LogError(f"{file}: damaged ({error}); restore it, or tune again with --fresh") from None
    for name, keys in (("model", ("spec", "name", "digest")), ("target", ("kind",)), ("versions", ("tvm",))):
        value = getattr(manifest, name)
        if not isinstance(value, dict) or not all(isinstance(value.get(key), str) for key in keys):
            raise LogError(f"{file}: its {name!r} is damaged; restore it, or tune again with --fresh")
    return manifest


def describe_model(model: Model) -> dict[str, Any]:
    """What a manifest says about its model; `one_shot` is there for one that was pruned for the search."""
    from tvmopt.compress.one_shot import OneShot

    made = OneShot.of_model(model)
    return {
        "spec": model.spec,
        **({"one_shot": made.to_json()} if made is not None else {}),
        "name": model.name,
        "digest": model.digest,
        "dtype": model.dtype,
        "from_file": model.from_file,
        "inputs": [list(tensor.shape) for tensor in model.example_inputs],
    }


def new_manifest(model: Model, machine: AnyMachine, strategies: dict[str, str], search: str, seed: int) -> Manifest:
    """A manifest for a search that begins."""
    return Manifest(
        model=describe_model(model),
        target=target_dict(machine),
        machine=_compared(machine),
        versions=versions(),
        strategies=dict(strategies),
        search=search,
        seed=seed,
    )


def _compared(machine: AnyMachine) -> dict[str, Any]:
    """The fields that tell machines apart."""
    kept = {item.name for item in fields(machine) if item.compare}
    return {name: value for name, value in asdict(machine).items() if name in kept}


def target_dict(machine: AnyMachine) -> dict[str, Any]:
    """TVM's target as plain JSON."""
    exported = dict(machine.target().export())
    return {str(k): v if isinstance(v, (int, float, bool)) else str(v) for k, v in exported.items() if k != "keys"}


def versions() -> dict[str, str]:
    """Of the two packages that decide what a schedule means."""
    from importlib.metadata import version

    import tvmopt

    return {"tvm": version("apache-tvm"), "tvmopt": tvmopt.__version__}


def check_manifest(manifest: Manifest, path: Path, machine: AnyMachine, model: Model | None = None) -> list[str]:
    """Compares a log with what is to be built from it; returns differences of the machine, one line each.

    Raises:
        LogError: another model's log, another kind of target, another version of TVM.
    """
    if model is not None and manifest.model["digest"] != model.digest:
        raise LogError(
            f"{path}: a log of {manifest.model['name']} with other weights (shapes' digest {manifest.model['digest']}, "
            f"{model.name} has {model.digest}); choose the model's own log, or tune again with --fresh"
        )
    kind = target_dict(machine)["kind"]
    if manifest.target["kind"] != kind:
        raise LogError(f"{path}: a log for target {manifest.target['kind']}, not {kind}; tune for {kind}")
    ours = versions()["tvm"]
    if manifest.versions["tvm"] != ours:
        raise LogError(
            f"{path}: made with TVM {manifest.versions['tvm']}, this is {ours}: install that version, or tune again "
            "with --fresh"
        )
    here = _compared(machine)
    return [
        f"{name}: {manifest.machine.get(name)} in the log, {value} here"
        for name, value in here.items()
        if manifest.machine.get(name) != value
    ]
