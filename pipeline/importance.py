"""How much each searched name matters for the effect, with what a bootstrap makes of it."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.trial import FrozenTrial, create_trial

from atdiff_core.perturbations import FreeAT
from pipeline.quantities import QUANTITIES
from pipeline.results import StudyResult
from search_spaces.space import Space

BOOTSTRAPS = 100
MIN_TRIALS = 6
BEST = 1 / 3  # Of a few dozen trials; the evaluator's own tenth would be two or three of them.
Params = dict[str, float | str]


@dataclass(frozen=True)
class Importance:
    """Share of what sets the best third of the trials apart that goes with a name (PED-ANOVA); shares add up to 1.

    Attributes:
        low, high: 95 % interval over resampled trials.
    """

    name: str
    share: float
    low: float
    high: float


def searched_params(study: StudyResult) -> list[tuple[Params, float]]:
    """Values of every search trial of all norms, as amplitudes, with its effect against its replay control."""
    known = []
    for trial in study.of_role("search"):
        scheme, effect = trial.assignment.config.train.perturbation, study.effect(trial)
        if isinstance(scheme, FreeAT) and effect is not None:
            params: Params = {name: value(scheme) for name, value in QUANTITIES.items()}
            known.append((params | {"norm": scheme.ball.norm}, effect))
    return known


def optuna_study(space: Space, rows: Sequence[tuple[Params, float]]) -> optuna.Study:
    """A study in memory with the names that vary, whose value is the effect; for Optuna's analyses and figures."""
    study = optuna.create_study(direction="minimize", study_name=f"{space.name}: effect against replay")
    study.add_trials(_trials(rows))
    return study


def importances(rows: Sequence[tuple[Params, float]], *, seed: int = 0) -> list[Importance]:
    """Importance of the names that vary, the largest first; empty with fewer than 6 trials or a single name."""
    trials = _trials(rows)
    if len(trials) < MIN_TRIALS or len(trials[0].params) < 2:
        return []
    shares = _shares(trials)
    rng = np.random.default_rng(seed)
    resampled = []
    for _ in range(BOOTSTRAPS):
        drawn = _shares([trials[place] for place in rng.integers(len(trials), size=len(trials))])
        if drawn:
            resampled.append([drawn.get(name, 0.0) for name in shares])
    limits = np.quantile(resampled, [0.025, 0.975], axis=0) if resampled else np.full((2, len(shares)), np.nan)
    found = [
        Importance(name, share, float(low), float(high))
        for (name, share), low, high in zip(shares.items(), *limits, strict=True)
    ]
    return sorted(found, key=lambda each: -each.share)


def _shares(trials: Sequence[FrozenTrial]) -> dict[str, float]:
    """Empty where resampling left nothing that varies."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="minimize")
    study.add_trials(trials)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = optuna.importance.get_param_importances(
                study, evaluator=PedAnovaImportanceEvaluator(target_quantile=BEST)
            )
        except (ValueError, RuntimeError, ZeroDivisionError):
            return {}
    return {name: float(share) for name, share in found.items() if np.isfinite(share)}


def _trials(rows: Sequence[tuple[Params, float]]) -> list[FrozenTrial]:
    """The rows as finished trials over the names that take more than one value."""
    seen = {name: [params[name] for params, _ in rows] for name in (rows[0][0] if rows else {})}
    distributions = {name: _distribution(values) for name, values in seen.items() if len(set(values)) > 1}
    return [
        create_trial(params={name: params[name] for name in distributions}, distributions=distributions, value=effect)
        for params, effect in rows
    ]


def _distribution(values: Sequence[float | str]) -> BaseDistribution:
    numbers = [value for value in values if isinstance(value, float)]
    if len(numbers) < len(values) or len(set(values)) <= 3:
        return CategoricalDistribution(sorted(set(values), key=str))
    return FloatDistribution(min(numbers), max(numbers), log=True)
