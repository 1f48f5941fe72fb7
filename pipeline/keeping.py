"""Where the resumable state of a running trial is kept."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from atdiff_core.checkpoints import has_checkpoint, load_checkpoint, save_checkpoint
from atdiff_core.objectives.objective import Teacher
from atdiff_core.train_config import TrainConfig
from atdiff_core.train_state import Execution, TrainState


class Keeper(Protocol):
    """Keeps states of one trial. All ranks of the trial call it, in the same order."""

    def load(self, config: TrainConfig, execution: Execution, teacher: Teacher | None) -> TrainState | None:
        """The newest state that is safely kept, if there is one."""
        ...

    def keep(self, state: TrainState, config: TrainConfig) -> None:
        """Keep a state; it may be on its way for a while after."""
        ...

    @property
    def ready(self) -> bool:
        """Whether the last one has arrived; rank 0 knows."""
        ...

    @property
    def stopped(self) -> bool:
        """Whether the trial shall end here, as it is; rank 0 knows."""
        ...


@dataclass(frozen=True)
class FolderKeeper:
    """The newest state in a folder, written at once: for a trial in one process."""

    folder: Path

    def load(self, config: TrainConfig, execution: Execution, teacher: Teacher | None) -> TrainState | None:
        return load_checkpoint(config, self.folder, execution, teacher) if has_checkpoint(self.folder) else None

    def keep(self, state: TrainState, config: TrainConfig) -> None:
        save_checkpoint(state, config, self.folder)

    @property
    def ready(self) -> bool:
        return True

    @property
    def stopped(self) -> bool:
        return False
