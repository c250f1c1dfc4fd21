"""Which contenders there are: every model with every variant and every peer."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tvmopt.errors import UsageError
from tvmopt.options import BuildOptions

VARIANTS = ("original", "manual", "auto")
PEER = "peer:"


@dataclass(frozen=True)
class Case:
    """One contender: `contender` is a variant's name or "peer:" and a peer's, `spec` the model's (None: built in).

    `options.threads` is set: every contender has the same number. `label` is what progress calls it, where one model's
    variants are measured under several options.
    """

    spec: str | None
    contender: str
    options: BuildOptions
    label: str = ""

    @property
    def name(self) -> str:
        """What people read."""
        return self.label or self.contender

    @property
    def peer(self) -> str | None:
        """The peer's name, None for a variant of ours."""
        return self.contender[len(PEER) :] if self.contender.startswith(PEER) else None

    @property
    def threads(self) -> int:
        """Threads of this contender."""
        assert self.options.threads is not None
        return self.options.threads

    def to_json(self) -> dict[str, Any]:
        """For the pipe to the worker."""
        options = {
            name: str(value) if isinstance(value, Path) else value
            for name, value in dataclasses.asdict(self.options).items()
        }
        return {"spec": self.spec, "contender": self.contender, "options": options}

    @staticmethod
    def from_json(data: dict[str, Any]) -> Case:
        """What `to_json` made."""
        options = dict(data["options"])
        for name in ("schedules_dir", "log_dir", "dump_dir"):
            options[name] = None if options[name] is None else Path(options[name])
        if options["input_shape"] is not None:
            options["input_shape"] = tuple(options["input_shape"])
        return Case(data["spec"], data["contender"], BuildOptions(**options))


def contenders(
    specs: Sequence[str | None], variants: Sequence[str], peers: Sequence[str], options: BuildOptions
) -> dict[str | None, list[Case]]:
    """Spec -> its cases, variants first, in the order given; raises UsageError where nothing is to be compared."""
    for variant in variants:
        if variant not in VARIANTS:
            raise UsageError(f"--variants {variant}: unknown; choose from {', '.join(VARIANTS)}")
    names = [*variants, *(PEER + peer for peer in peers)]
    if not names:
        raise UsageError("nothing to measure: --variants and --peers are both empty, or no peer is installed")
    return {spec: [Case(spec, name, options) for name in names] for spec in specs}
