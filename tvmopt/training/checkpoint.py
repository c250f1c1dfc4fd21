"""Where a training stands: what an interrupted one needs to go on as if nothing had happened, and its best epoch."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvmopt.errors import DataError, OutputError, one_line

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from tvmopt.training.loop import Epoch


@dataclass
class State:
    """A training after its last whole epoch; `best` is the state dict of the epoch that validated best so far,
    from epoch `best_from` on (None: none is kept)."""

    module: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    generator: torch.Generator
    best_from: int | None
    history: list[Epoch] = field(default_factory=list)
    best: dict[str, Tensor] | None = None
    settings: str = ""

    def ended(self, epoch: Epoch) -> None:
        """Takes note of an epoch, and of the module where it is the best."""
        score = epoch.validation or 0.0
        before = [one.validation or 0.0 for one in self.history if one.number >= (self.best_from or 1)]
        self.history.append(epoch)
        if self.best_from is not None and epoch.number >= self.best_from and score > max(before, default=-1.0):
            self.best = {name: value.clone() for name, value in self.module.state_dict().items()}

    def restore_best(self) -> None:
        """Puts the best epoch's weights back into the module."""
        assert self.best is not None
        self.module.load_state_dict(self.best)

    def save(self, path: Path) -> None:
        """Writes the whole state, or nothing; raises OutputError where that cannot be done."""
        import torch

        content = {
            "settings": self.settings,
            "module": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": {key: value for key, value in self.schedule.state_dict().items() if not callable(value)},
            "generators": [self.generator.get_state(), torch.get_rng_state()],
            "history": [dataclasses.asdict(epoch) for epoch in self.history],
            "best": self.best,
        }
        partial = path.with_name(path.name + ".part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save(content, partial)
            os.replace(partial, path)
        except (OSError, RuntimeError) as error:
            raise OutputError(f"checkpoint {path} cannot be written: {one_line(error)}") from error

    def resume(self, path: Path, settings: str) -> None:
        """Goes back to what `path` holds, if there is such a file; `settings` says what it must have been made with.

        Errors: `DataError` for a file that is no checkpoint, or one of another training.
        """
        import torch

        from tvmopt.training.loop import Epoch

        self.settings = settings
        if not path.is_file():
            return
        try:
            content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            if content["settings"] != settings:
                raise DataError(f"checkpoint {path} is of {content['settings']}, not {settings}: remove it")
            self.module.load_state_dict(content["module"])
            self.optimizer.load_state_dict(content["optimizer"])
            self.schedule.load_state_dict(content["schedule"])
            self.generator.set_state(content["generators"][0])
            torch.set_rng_state(content["generators"][1])
            self.history = [Epoch(**epoch) for epoch in content["history"]]
            self.best = content["best"]
        except DataError:
            raise
        except Exception as error:
            raise DataError(
                f"checkpoint {path} does not fit this model or is damaged ({one_line(error, 120)}): remove it"
            ) from error
