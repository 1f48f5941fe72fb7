"""A trial of several workers, under Ray Train."""

from collections.abc import Iterator
from typing import Any

import ray.train
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from atdiff_core.files import read_json
from pipeline.records import RESULT, Assignment
from pipeline.trial import Judged, Places, run_trial

MAX_FAILURES = 2


def run_distributed(assignment: Assignment, places: Places) -> Iterator[Judged]:
    """Train with as many ranks as the config asks for; yields the final judgement.

    The run's name is the trial's key, so that starting it again resumes it. All ranks see the
    trial's folder, which must lie on storage that every node can reach.
    """
    trainer = TorchTrainer(
        _train_on_worker,
        train_loop_config={"assignment": assignment, "places": places},
        scaling_config=ScalingConfig(num_workers=assignment.config.workers, use_gpu=torch.cuda.is_available()),
        torch_config=TorchConfig(timeout_s=300),
        run_config=RunConfig(
            name=assignment.key[:16],
            storage_path=str((places.folder.parent / "ray_train").resolve()),
            failure_config=FailureConfig(max_failures=MAX_FAILURES),
        ),
    )
    trainer.fit()
    recorded = read_json(places.folder / RESULT)
    yield Judged(recorded["kpass"], recorded["values"]["metric"], final=True)


def _train_on_worker(config: dict[str, Any]) -> None:
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    for _ in run_trial(config["assignment"], config["places"], rank=rank, world_size=world_size):
        pass
    torch.distributed.barrier()
