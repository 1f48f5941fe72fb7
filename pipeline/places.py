"""Where a trial finds its inputs and leaves its outputs."""

from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from atdiff_core.data.addresses import Address
from atdiff_core.data.prompts import Prompts, load_prompts
from atdiff_core.train_state import Execution
from search_spaces.resources import Resources

STATES = "states"


@dataclass(frozen=True)
class Places:
    """Where a trial finds its inputs and leaves its outputs; not part of what it computes.

    Attributes:
        shards: Shard set of its resolution.
        folder: The trial's own.
        start: Snapshot that it fine-tunes; ignored by a trial that starts from scratch.
        cache: Reference features.
        threads: CPU threads of the process.
        execution: Device, memory layout and slicing.
        teacher: Snapshot that teaches it; ignored by a trial without a teacher.
        outliers: Shard set that the config's corruption takes outliers from, where it takes some.
        resources: Of each rank, and how its state is kept.
        prompts: Folder of the prompts' embeddings, for a network that attends to prompts.
    """

    shards: Address
    folder: Path
    start: Path
    cache: Path
    threads: int = 1
    execution: Execution = field(default_factory=Execution)
    teacher: Path = Path()
    outliers: Address | None = None
    resources: Resources = field(default_factory=Resources)
    prompts: Path | None = None

    @property
    def texts(self) -> Prompts | None:
        """The embeddings, opened once a process."""
        return None if self.prompts is None else _prompts(self.prompts)

    @property
    def states(self) -> tuple[str, str]:
        """Where a trial of several ranks keeps its resumable states: a folder or address, and the name below it."""
        if not self.resources.checkpoints:
            return str(self.folder.resolve()), STATES
        address, mark, options = self.resources.checkpoints.partition("?")
        return f"{address.rstrip('/')}/{self.folder.parent.parent.name}{mark}{options}", self.folder.name


@lru_cache(maxsize=8)
def _prompts(folder: Path) -> Prompts:
    return load_prompts(folder)
