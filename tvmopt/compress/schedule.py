"""When to prune: how much of its final sparsity a layer has at each step of training."""

from __future__ import annotations

from dataclasses import dataclass

from tvmopt.errors import UsageError

KINDS = ("one-shot", "constant", "polynomial", "iterative")


@dataclass(frozen=True)
class Schedule:
    """kind:

    one-shot     all at once before the first step, and the masks stay
    constant     all at once, and every `every` steps the masks are chosen anew
    polynomial   s (1 - (1 - t/T)^3), chosen anew every `every` steps until T, `end` of all steps; then the masks stay
                 (Zhu and Gupta, 2017, "To prune, or not to prune", from sparsity 0)
    iterative    in `rounds` equal rounds the same share of what is left is pruned, and trained (Han et al., 2015)
    """

    kind: str = "one-shot"
    every: int = 50
    end: float = 0.5
    rounds: int = 3

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UsageError(f"unknown schedule {self.kind!r}: choose one of {', '.join(KINDS)}")
        if self.every < 1 or self.rounds < 1 or not 0 < self.end <= 1:
            raise UsageError("a schedule's interval and rounds must be at least 1, and its end in (0, 1]")

    @property
    def grows(self) -> bool:
        """Whether the sparsity grows while training, so that early epochs have another one than late ones."""
        return self.kind in ("polynomial", "iterative")

    @property
    def settled(self) -> float:
        """The share of all steps after which the sparsity is the final one."""
        return {"polynomial": self.end, "iterative": (self.rounds - 1) / self.rounds}.get(self.kind, 0.0)

    def sparsity(self, final: float, step: int, steps: int) -> float | None:
        """The sparsity to choose masks for before `step` of `steps`; None: the masks stay as they are."""
        if self.kind == "one-shot":
            return final if step == 0 else None
        if self.kind == "constant":
            return final if step % self.every == 0 else None
        if self.kind == "iterative":
            rounds = min(self.rounds, steps)
            number = step * rounds // steps
            if step and (step - 1) * rounds // steps == number:
                return None
            return 1 - (1 - final) ** ((number + 1) / rounds)
        last = max(1, round(self.end * steps))
        if step > last or (step % self.every and step != last):
            return None
        return final * (1 - (1 - step / last) ** 3)
