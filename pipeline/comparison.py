"""A comparison of arms: the base model, then every arm with every seed."""

from pathlib import Path

from rich.console import Console

from atdiff_core.data.prompts import load_prompts
from atdiff_core.hub import local_folder
from atdiff_core.snapshots import load_snapshot
from atdiff_core.text_snapshots import Surroundings, check_belongs
from atdiff_core.train_config import SCRATCH
from pipeline.comparison_results import ComparisonResult, load_comparison_result
from pipeline.driver import Rung, driving, open_rung
from pipeline.records import Assignment
from pipeline.workspace import Workspace
from search_spaces.comparison import UNKNOWN_TEACHER, Comparison, Pretrained
from search_spaces.space import StudentPhase, TrialConfig


def run_comparison(
    comparison: Comparison,
    root: Path,
    *,
    cpus: int | None = None,
    console: Console | None = None,
    tracking: str | None = None,
) -> ComparisonResult:
    """Run a comparison, or continue it: the same call after any interruption.

    Args:
        root: Folder that holds comparisons and sweeps, and the MLflow database.
        cpus: CPUs to use on this machine, all of them where ``None``.
        tracking: Address of an MLflow; the root's own file where ``None``.

    Raises:
        ValueError: Missing shards, the name belongs to another configuration, or MLflow does not answer.
        Interrupted: Ctrl-C.
    """
    workspace = Workspace(root, comparison.name, tracking)
    rung = rung_of(comparison)
    teacher = load_snapshot(rung.teacher).key if rung.teacher else UNKNOWN_TEACHER
    with driving(comparison, [rung], workspace, cpus=cpus, console=console or Console()) as driver:
        if comparison.trains_base:
            driver.run_bases()
        driver.run_all(assignments(comparison, rung.base, teacher), "arms")
        driver.require_complete(comparison.resolution, "arm")
    return load_comparison_result(workspace)


def rung_of(comparison: Comparison) -> Rung:
    """Data, base model and teacher; models that exist already are opened and checked."""
    start = _existing(comparison.pretraining)
    teacher = None if comparison.teacher == "base" else _existing(comparison.teacher)
    start_key = SCRATCH
    if start is not None:
        snapshot = load_snapshot(start)
        snapshot.check_fits(comparison.network)
        start_key = snapshot.key
    teacher_key = UNKNOWN_TEACHER
    if teacher is not None:
        taught = load_snapshot(teacher)
        for arm in comparison.arms:
            if arm.objective.needs_teacher:
                arm.objective.check_teacher(taught.noise)
        teacher_key = taught.key
        if isinstance(comparison.pretraining, StudentPhase):
            taught.check_fits(comparison.network)
            comparison.objective.check_start(taught.noise)

    def base_config(dataset: str, prompts: str) -> TrialConfig:
        return comparison.base_config(dataset, start_key, teacher_key, prompts)

    rung = open_rung(comparison.shards, comparison.network, base_config, start, teacher, comparison.prompts)
    texts = load_prompts(rung.prompts) if rung.prompts else None
    for folder in filter(None, {start, teacher}):
        check_belongs(folder, Surroundings(rung.shards.index.latents, texts))
    return rung


def _existing(origin: object) -> Path | None:
    return local_folder(origin.snapshot) if isinstance(origin, Pretrained) else None


def assignments(comparison: Comparison, base: TrialConfig, teacher: str = UNKNOWN_TEACHER) -> list[Assignment]:
    """Seed by seed, so that what an interruption leaves can be compared.

    Args:
        teacher: Key of the teacher, where that is not the base model.
    """
    return [
        Assignment(comparison.trial_config(base, arm, seed, teacher), "arm", of=arm.name)
        for seed in comparison.seed_numbers
        for arm in comparison.arms
    ]
