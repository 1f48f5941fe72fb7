"""How fast this machine trains and judges, measured for a moment on the real networks and shards."""

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from atdiff_core.costs import network_costs
from atdiff_core.karras import Noise
from atdiff_core.metrics.evaluation import Evaluated, Evaluator
from atdiff_core.perturbations import Perturbation
from atdiff_core.samplers import Sampler
from atdiff_core.snapshots import save_snapshot
from atdiff_core.train_config import SCRATCH
from atdiff_core.train_state import Execution, TrainState
from atdiff_core.trainer import train
from pipeline.driver import Rung
from search_spaces.space import Space

TRAIN_SEC = 1.5
PROBE_IMAGES, PROBE_NFE = 64, 2


@dataclass(frozen=True)
class Rates:
    """Of one device at one resolution.

    Attributes:
        sec_per_kpass: Training, data loading included.
        sec_per_knfe: A thousand network evaluations of one image each while sampling.
        sec_per_kimage: Features of a thousand samples, and their distance to the dataset.
        sec_per_trial: Opening the start and the data, writing the snapshot.
    """

    sec_per_kpass: float
    sec_per_knfe: float
    sec_per_kimage: float
    sec_per_trial: float

    def judging_sec(self, samples: int, samplers: tuple[Sampler, ...]) -> float:
        """One judgement by all of the samplers."""
        evaluations = sum(sampler.nfe for sampler in samplers) * samples / 1000
        return evaluations * self.sec_per_knfe + len(samplers) * samples / 1000 * self.sec_per_kimage


def sustained(space: Space, resolution: int, tflops: float) -> Rates:
    """Rates of a device that sustains so many 10^12 operations a second; its features cost nothing."""
    costs = network_costs(space.network.at(resolution))
    per_kflop = 1000 / (tflops * 1e12)
    return Rates(costs.pass_flops * per_kflop, costs.forward_flops * per_kflop, 0.0, 0.0)


def calibrate(rung: Rung, perturbation: Perturbation, cache: Path, execution: Execution, threads: int = 1) -> Rates:
    """Train and judge for about two seconds each, with the threads that a trial has.

    Reference features are computed where the cache lacks them; the sweep needs them in any case.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return _calibrated(rung, perturbation, cache, execution)
    finally:
        torch.set_num_threads(before)


def _calibrated(rung: Rung, perturbation: Perturbation, cache: Path, execution: Execution) -> Rates:
    evaluation = rung.base.evaluation
    probe = evaluation.but(samples=min(PROBE_IMAGES, evaluation.samples), full=False)
    evaluator = Evaluator(probe, rung.shards, cache, device=execution.device)
    config = rung.base.train.but(start_from=SCRATCH, perturbation=perturbation)
    config = config.but(budget_kpass=1_000_000 * config.kpass_per_minibatch)
    began = time.monotonic()
    state = TrainState.fresh(config, execution=execution)
    opening = time.monotonic() - began
    events = train(config, state, rung.shards, report_every_kpass=config.kpass_per_minibatch, execution=execution)
    next(events)  # The first one pays for what is paid once.
    first = began = time.monotonic()
    minibatches = 0
    while minibatches < 2 or time.monotonic() - first < TRAIN_SEC:
        next(events)
        minibatches += 1
    training = (time.monotonic() - began) / (minibatches * config.kpass_per_minibatch)
    noise, sampler = config.objective.noise, evaluation.samplers[0]
    few, many = (_judging_sec(evaluator, state, noise, sampler.but(nfe=nfe)) for nfe in (PROBE_NFE, 2 * PROBE_NFE))
    per_knfe = max(many - few, 0.0) / (PROBE_NFE * probe.samples / 1000)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        save_snapshot(state, config, Path(scratch) / "snapshot")
    writing = time.monotonic() - began
    per_kimage = max(few / (probe.samples / 1000) - PROBE_NFE * per_knfe, 0.0)
    return Rates(training, per_knfe, per_kimage, opening + writing)


def _judging_sec(evaluator: Evaluator, state: TrainState, noise: Noise, sampler: Sampler) -> float:
    """The faster of two judgements."""
    seconds = []
    for _ in range(2):
        began = time.monotonic()
        for event in evaluator.judge(state.averaged, noise, sampler):
            if isinstance(event, Evaluated):
                break
        seconds.append(time.monotonic() - began)
    return min(seconds)
