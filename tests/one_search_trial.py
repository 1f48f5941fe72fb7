"""A study of a single search trial of several ranks: the driver that tests start, kill and start again.

``python one_search_trial.py ROOT SHARDS``: joins the cluster at RAY_ADDRESS. The same arguments continue it.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from sweep_helpers import tiny_space

from atdiff_core.data.stream import open_shards
from pipeline.cluster import ray_session
from pipeline.places import Places
from pipeline.records import SNAPSHOT, Assignment, declare
from pipeline.running import run_programme
from pipeline.study import StudyProgramme
from pipeline.trial import run_trial
from pipeline.tuning import tune_trials
from search_spaces.resources import Resources
from search_spaces.space import Phase, Space, TrialConfig

BATCH_SIZE, REPLAYS = 12, 2


class SearchOnly(StudyProgramme):
    """The search of a study, without its controls."""

    def _controls(self, seed: int) -> Iterator[Assignment]:
        return iter(())

    def _repetitions(self) -> Iterator[Assignment]:
        return iter(())


class Setting:
    """Where the study lies and what its one trial is."""

    def __init__(self, root: Path, shards: Path) -> None:
        self.root, self.shards = root, shards / "8px"
        given = json.loads((root / "setting.json").read_text())
        space = tiny_space(shards, trials=1, batch_size=BATCH_SIZE, workers=given["workers"])
        budget = given["minibatches"] * BATCH_SIZE * REPLAYS / 1000
        optimization = space.finetuning.optimization
        self.space: Space = space.but(
            finetuning=Phase(budget_kpass=budget, optimization=optimization),
            domains=space.domains.but(num_replays=space.domains.num_replays.but(values=(REPLAYS,))),
            resources=Resources.model_validate(given["resources"]),
        )

    def base(self) -> TrialConfig:
        return self.space.base_config(8, open_shards(self.shards).fingerprint)

    @property
    def storage(self) -> str:
        return f"sqlite:///{self.root / 'study.db'}"

    @property
    def trials(self) -> list[Path]:
        return [file.parent for file in (self.root / "tiny" / "trials").glob("*/trial.json")]

    def places(self, folder: Path) -> Places:
        base = self.root / "base"
        return Places(self.shards, folder, base / SNAPSHOT, self.root / "cache", resources=self.space.resources)


def main(root: Path, shards: Path) -> None:
    setting = Setting(root, shards)
    base = setting.base()
    alone = Assignment(base.but(workers=1), "base")
    declare(root / "base", alone)
    list(run_trial(alone, setting.places(root / "base")))  # At once, the second time.
    programme = SearchOnly(setting.space, base, setting.storage)
    with ray_session() as cpus:
        run_programme(
            programme,
            lambda assignment: setting.places(root / "tiny" / "trials" / assignment.key[:16]),
            lambda keeper: tune_trials(
                keeper,
                title="study",
                storage=root / "ray",
                cpus=cpus,
                workers=setting.space.workers,
                resources=setting.space.resources,
            ),
            title="study",
            on_change=lambda folder: None,
            console=Console(quiet=True),
        )


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
