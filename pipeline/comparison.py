"""A comparison of arms: the base model, then every arm with every seed."""

from pathlib import Path

from rich.console import Console

from atdiff_core.snapshots import load_snapshot
from pipeline.comparison_results import ComparisonResult, load_comparison_result
from pipeline.driver import Rung, driving, open_rung
from pipeline.records import Assignment
from pipeline.workspace import Workspace
from search_spaces.comparison import Comparison, Pretrained
from search_spaces.space import TrialConfig


def run_comparison(
    comparison: Comparison, root: Path, *, cpus: int | None = None, console: Console | None = None
) -> ComparisonResult:
    """Run a comparison, or continue it: the same call after any interruption.

    Args:
        root: Folder that holds comparisons and sweeps, and the MLflow database.
        cpus: CPUs to use on this machine, all of them where ``None``.

    Raises:
        ValueError: Missing shards, or the name belongs to another configuration.
        Interrupted: Ctrl-C.
    """
    workspace = Workspace(root, comparison.name)
    rung = rung_of(comparison)
    with driving(comparison, [rung], workspace, cpus=cpus, console=console or Console()) as driver:
        if comparison.trains_base:
            driver.run_bases()
        driver.run_all(assignments(comparison, rung.base), "arms")
        driver.require_complete(comparison.resolution, "arm")
    return load_comparison_result(workspace)


def rung_of(comparison: Comparison) -> Rung:
    """Data and base model; a base model that exists already is opened and checked."""
    if not isinstance(comparison.pretraining, Pretrained):
        return open_rung(comparison.shards, comparison.network, comparison.base_config)
    start = Path(comparison.pretraining.snapshot)
    snapshot = load_snapshot(start)
    snapshot.check_fits(comparison.network)
    return open_rung(
        comparison.shards, comparison.network, lambda dataset: comparison.base_config(dataset, snapshot.key), start
    )


def assignments(comparison: Comparison, base: TrialConfig) -> list[Assignment]:
    """Seed by seed, so that what an interruption leaves can be compared."""
    return [
        Assignment(comparison.trial_config(base, arm, seed), "arm", of=arm.name)
        for seed in comparison.seed_numbers
        for arm in comparison.arms
    ]
