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
    iterative    in `rounds` rounds the same share of what is left is pruned, and trained; the last begins at `end` of
                 all steps (Han et al., 2015)

    end: in (0, 1]; None is 0.5 for polynomial, and for iterative what makes all rounds equally long.
    """

    kind: str = "one-shot"
    every: int = 50
    end: float | None = None
    rounds: int = 3

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UsageError(f"unknown schedule {self.kind!r}: choose one of {', '.join(KINDS)}")
        if self.every < 1 or self.rounds < 1 or not (self.end is None or 0 < self.end <= 1):
            raise UsageError("a schedule's interval and rounds must be at least 1, and its end in (0, 1]")

    @property
    def grows(self) -> bool:
        """Whether the sparsity grows while training, so that early epochs have another one than late ones."""
        return self.kind in ("polynomial", "iterative")

    @property
    def settled(self) -> float:
        """The share of all steps after which the sparsity is the final one."""
        if not self.grows:
            return 0.0
        if self.end is not None:
            return self.end
        return 0.5 if self.kind == "polynomial" else (self.rounds - 1) / self.rounds

    def sparsity(self, final: float, step: int, steps: int) -> float | None:
        """The sparsity to choose masks for before `step` of `steps`; None: the masks stay as they are."""
        if self.kind == "one-shot":
            return final if step == 0 else None
        if self.kind == "constant":
            return final if step % self.every == 0 else None
        if self.kind == "iterative":
            part = self.settled / max(self.rounds - 1, 1)
            begun = [number for number in range(self.rounds) if self._step_at(number * part, steps) == step]
            return 1 - (1 - final) ** ((begun[-1] + 1) / self.rounds) if begun else None
        last = self._step_at(self.settled, steps)
        if step == last:
            return final
        return None if step > last or step % self.every else final * (1 - (1 - step / last) ** 3)

    @staticmethod
    def _step_at(share: float, steps: int) -> int:
        """The step before which `share` of all is done; at the end the last one, so that no sparsity comes too late."""
        return min(round(share * steps), steps - 1)
