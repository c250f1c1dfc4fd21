"""What to prune and how, and what of that does not go together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tvmopt.compress.methods import Method, check_sparsity, method_of
from tvmopt.compress.schedule import Schedule
from tvmopt.errors import UsageError


@dataclass(frozen=True)
class Settings:
    """The options of `tvmopt.prune`, most under their own names.

    sparsity: None for an N:M pattern, or for a scan alone. rounds, prune_until, prune_every: of the schedule, None for
    its own. output: None writes nothing.
    """

    method: str
    sparsity: float | None = None
    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    schedule: str = "one-shot"
    epochs: int = 0
    lr: float = 1e-3
    seed: int = 0
    dataset: str | None = None
    data_dir: str | None = None
    limit: int | None = None
    sensitivity: bool = False
    allocation: str = "uniform"
    bfloat16: bool = False
    distill: bool = False
    output: Path | None = None
    rounds: int | None = None
    prune_until: float | None = None
    prune_every: int | None = None

    @property
    def scan_alone(self) -> bool:
        """Whether nothing is pruned in the end."""
        return self.sensitivity and self.sparsity is None and self.output is None

    def when(self) -> Schedule:
        """The schedule."""
        default = Schedule(self.schedule)
        return Schedule(
            self.schedule, every=default.every if self.prune_every is None else self.prune_every,
            end=self.prune_until, rounds=default.rounds if self.rounds is None else self.rounds,
        )  # fmt: skip


def check(settings: Settings) -> Method:
    """The method. Raises `UsageError` for what can be told to be wrong without the model."""
    method = method_of(settings.method)
    if settings.epochs < 0 or not settings.lr > 0:
        raise UsageError("--finetune-epochs must not be negative, and --lr must be positive")
    _check_schedule(settings, method)
    if settings.distill and not settings.epochs:
        raise UsageError("--distill is a way to fine-tune: give --finetune-epochs")
    if settings.allocation != "uniform" and (settings.sensitivity or settings.sparsity is None):
        how = settings.allocation
        raise UsageError(f"--allocation {how} spreads --sparsity over the layers: give one, and no scan")
    if settings.sensitivity and settings.sparsity is None and method.fixed_sparsity is None:
        if settings.output is not None:
            raise UsageError(f"--sensitivity alone writes no {settings.output}: give --sparsity too, or leave -o out")
    else:
        check_sparsity(method, settings.sparsity)
    _check_allocation(settings, method)
    return method


def _check_schedule(settings: Settings, method: Method) -> None:
    kind = settings.schedule
    # Each option with the schedules that read it.
    for option, value, kinds in (
        ("--rounds", settings.rounds, ("iterative",)),
        ("--prune-until", settings.prune_until, ("polynomial", "iterative")),
        ("--prune-every", settings.prune_every, ("constant", "polynomial")),
    ):
        if value is not None and kind not in kinds:
            raise UsageError(f"{option} is for --schedule {' or '.join(kinds)}, not {kind}")
    if settings.prune_until is not None and not 0 < settings.prune_until <= 1:
        raise UsageError(f"--prune-until {settings.prune_until:g}: a share of training, more than 0 and at most 1")
    if settings.when().grows and not settings.epochs:
        raise UsageError(f"--schedule {kind} prunes while training: give --finetune-epochs")
    if method.kind == "structural" and kind != "one-shot":
        raise UsageError(f"--schedule {kind} moves masks, and {method.name} cuts at once: take filter-l2, or one-shot")


def _check_allocation(settings: Settings, method: Method) -> None:
    """Refuses sparsities layer by layer where the method does not take them."""
    by_scan = settings.sensitivity and settings.sparsity is not None
    if not by_scan and settings.allocation == "uniform":
        return
    option = "--sensitivity with --sparsity" if by_scan else f"--allocation {settings.allocation}"
    if method.name == "unstructured-global":
        raise UsageError(
            f"{option} gives every layer a share of its own, and {method.name} has one threshold for all: "
            "take --method unstructured"
        )
    if method.fixed_sparsity is not None and not by_scan:
        raise UsageError(f"{option}: {method.name} is always {method.fixed_sparsity:g}; leave it out")
