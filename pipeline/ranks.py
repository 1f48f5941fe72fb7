"""What runs on each rank of a trial under Ray Train."""

import tempfile
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import ray.train
import ray.train.torch
import torch
from ray.train import Checkpoint, CheckpointUploadMode

from atdiff_core.checkpoints import load_checkpoint, save_checkpoint
from atdiff_core.objectives.objective import Teacher
from atdiff_core.sharding import is_sharded
from atdiff_core.team import Team
from atdiff_core.train_config import TrainConfig
from atdiff_core.train_state import Execution, TrainState
from pipeline.places import Places
from pipeline.records import STOP
from pipeline.trial import run_trial


def train_on_rank(config: dict[str, Any]) -> None:
    """Run the trial ``config["assignment"]`` at ``config["places"]`` as one of its ranks."""
    context = ray.train.get_context()
    team = Team(context.get_world_rank(), context.get_world_size())
    places: Places = config["places"]
    if places.execution.device != "cpu":
        places = replace(places, execution=replace(places.execution, device=str(ray.train.torch.get_device())))
    for _ in run_trial(config["assignment"], places, team=team, keeper=TrainKeeper(team, places.folder)):
        pass
    torch.distributed.barrier()


class TrainKeeper:
    """States in Ray Train's storage, uploaded while training goes on.

    Rank 0 writes to its own disk; the upload and the commit to Ray Train's list happen behind. A state
    counts as kept once it is in that list, which is also what a restarted or resized group starts from.
    """

    def __init__(self, team: Team, folder: Path) -> None:
        """Takes the trial's folder, where a request to stop is left."""
        self._team, self._folder = team, folder
        self._last = ""

    def load(self, config: TrainConfig, execution: Execution, teacher: Teacher | None) -> TrainState | None:
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return None
        with checkpoint.as_directory() as folder:
            return load_checkpoint(config, Path(folder), execution, teacher)

    def keep(self, state: TrainState, config: TrainConfig) -> None:
        self._last = f"minibatch-{state.minibatches:09d}"
        folder = Path(tempfile.mkdtemp(prefix="atdiff-state-")) if self._team.leads else None
        if folder is not None or is_sharded(state.network):
            save_checkpoint(state, config, folder)
        ray.train.report(
            {"minibatches": state.minibatches},
            checkpoint=None if folder is None else Checkpoint.from_directory(str(folder)),
            checkpoint_dir_name=self._last,
            checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
            delete_local_checkpoint_after_upload=True,
        )

    @property
    def ready(self) -> bool:
        kept = ray.train.get_checkpoint()
        return not self._last or (kept is not None and PurePosixPath(kept.path).name == self._last)

    @property
    def stopped(self) -> bool:
        return (self._folder / STOP).is_file()
