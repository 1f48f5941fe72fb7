"""The stock search: Ray Tune's own ``OptunaSearch`` and ASHA, driven in this process or by a real Tuner."""

import math
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
from ray import tune
from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler
from ray.tune.search.optuna import OptunaSearch

from benchmarks.response_family import Bench, Family
from benchmarks.traces import Trace


def stock(bench: Bench, seed: int, *, family: Family, budget: float, keep: float) -> Trace:
    """One trial at a time until the budget is spent; its eta* is that of the best trial so far.

    Tune's classes are called as its loop calls them: suggest, a result at half and at the whole budget, complete.
    """
    searcher, scheduler = _searcher(seed, family), _scheduler(keep)
    told, spent, number = _Told(bench), 0.0, 0
    while spent < budget:
        name, number = f"{number}", number + 1
        config = searcher.suggest(name)
        trial: Any = SimpleNamespace(trial_id=name)
        scheduler.on_trial_add(None, trial)
        results = _results(bench, config)
        searcher.on_trial_result(name, results[0])
        stopped = scheduler.on_trial_result(None, trial, results[0]) == TrialScheduler.STOP
        if not stopped:
            searcher.on_trial_result(name, results[1])
            scheduler.on_trial_result(None, trial, results[1])
        searcher.on_trial_complete(name, results[0 if stopped else 1])
        spent += 0.5 if stopped else 1.0
        told.end(config, results[0 if stopped else 1]["metric"], spent)
    return told.trace


def through_tuner(bench: Bench, seed: int, *, family: Family, trials: int, keep: float) -> Trace:
    """The same through ``tune.Tuner`` on a Ray of its own, one trial at a time."""

    def train(config: dict[str, float]) -> None:
        for result in _results(bench, config):
            tune.report({name: value for name, value in result.items() if name != "training_iteration"})

    with tempfile.TemporaryDirectory() as folder:
        tuner = tune.Tuner(
            train,
            tune_config=tune.TuneConfig(
                search_alg=_searcher(seed, family),
                scheduler=_scheduler(keep),
                num_samples=trials,
                max_concurrent_trials=1,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(storage_path=str(Path(folder).resolve()), verbose=0),
        )
        results = list(tuner.fit())
    told, spent = _Told(bench), 0.0
    for result in results:  # In the order in which they were suggested.
        spent += float(result.metrics["kpass"])
        told.end(result.config, result.metrics["metric"], spent)
    return told.trace


class _Told:
    """The best trial so far, as ``get_best_result`` gives it: by the last metric of each."""

    def __init__(self, bench: Bench) -> None:
        self._truth, self._best, self.trace = bench.response.log_best, (math.inf, math.nan), Trace()

    def end(self, config: dict[str, float], metric: float, spent: float) -> None:
        self._best = min(self._best, (metric, math.log(config["eta"])))
        self.trace.state(spent, self._best[1] - self._truth)


def _results(bench: Bench, config: dict[str, float]) -> list[dict[str, float]]:
    curve = bench.trial(math.log(config["eta"]), seed=0, setting=int(config["reach"] > 1))
    pairs = ((0.5, curve.half), (1.0, curve.full))
    return [
        {"kpass": kpass, "metric": math.exp(log_metric), "training_iteration": number}
        for number, (kpass, log_metric) in enumerate(pairs, start=1)
    ]


def _searcher(seed: int, family: Family) -> OptunaSearch:
    etas = optuna.distributions.FloatDistribution(math.exp(family.log_low), math.exp(family.log_high), log=True)
    reaches = optuna.distributions.CategoricalDistribution([1.0, 2.0])
    return OptunaSearch({"eta": etas, "reach": reaches}, metric="metric", mode="min", seed=seed)


def _scheduler(keep: float) -> AsyncHyperBandScheduler:
    return AsyncHyperBandScheduler(
        time_attr="kpass",
        metric="metric",
        mode="min",
        max_t=2,  # The trial ends itself.
        grace_period=0.5,  # type: ignore[arg-type]
        reduction_factor=1 / keep,
    )
