"""How noisy a study is, from the trials that were repeated with several seeds."""

import math

from atdiff_core.variance import NoiseBudget, noise_budget
from pipeline.records import TrialRecord
from pipeline.results import StudyResult


def study_noise(study: StudyResult) -> NoiseBudget | None:
    """Seed, training and evaluation apart; ``None`` where fewer than two arms share two seeds.

    The arms are plain training, the replay control of every K, the leaders and their random controls. An arm
    with a single seed says nothing about noise and is left out.
    """
    arms: dict[str, dict[int, float]] = {}
    errors: dict[str, float] = {}
    for trial in study.trials:
        metric = trial.result.get("metric", math.nan)
        if trial.status == "complete" and metric > 0:
            arms.setdefault(_arm(trial), {})[trial.seed] = math.log(metric)
            errors[trial.key] = evaluation_error(trial) / metric
    repeated = {name: by_seed for name, by_seed in arms.items() if len(by_seed) > 1}
    most = max((len(by_seed) for by_seed in repeated.values()), default=0)
    whole = {name: by_seed for name, by_seed in repeated.items() if len(by_seed) == most}
    try:
        return noise_budget(whole if len(whole) > 1 else repeated, errors)
    except ValueError:
        return None


def evaluation_error(trial: TrialRecord) -> float:
    """Standard error of the trial metric over other samples of the same network; NaN where it was not measured."""
    evaluation = trial.assignment.config.evaluation
    return trial.result.get(f"{evaluation.metric_name}_se/{evaluation.samplers[0].name}", math.nan)


def _arm(trial: TrialRecord) -> str:
    role, of = trial.assignment.role, trial.assignment.of
    match role:
        case "search":
            return f"attack {trial.key}"
        case "repeat":
            return f"attack {of}"
        case "replay":
            return f"replay {trial.assignment.config.train.perturbation.steps_per_minibatch}"
        case _:
            return f"{role} {of}"
