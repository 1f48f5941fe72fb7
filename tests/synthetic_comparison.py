"""The folders of a comparison whose trials nobody had to train, with planted effects."""

import math
from pathlib import Path

import numpy as np

from atdiff_core.files import write_json
from pipeline.comparison import assignments
from pipeline.records import RESULT, Assignment, append_curve, declare
from pipeline.workspace import Workspace
from search_spaces.comparison import Comparison

OWN_NOISE = 0.02
"""Spread of the log metric that each trial has alone."""


def write_comparison_folders(
    root: Path, comparison: Comparison, effects: dict[str, float], *, seeds: int, shared_noise: float = 0.3
) -> Workspace:
    """A comparison in which the metric of an arm is exp(effect) times that of an arm without one.

    Args:
        effects: By name of the arm; zero for those not named.
        seeds: Trials of each arm that are complete.
        shared_noise: Spread of the log metric that all arms of a seed share.
    """
    workspace = Workspace(root, comparison.name)
    workspace.claim(comparison)
    base = comparison.base_config("0" * 64)
    _write(workspace, Assignment(base, "base"), 0.0, gain=1.0)
    noise = np.random.default_rng(0)
    shared = {seed: shared_noise * noise.standard_normal() for seed in comparison.seed_numbers}
    for assignment in assignments(comparison, base):
        seed = assignment.config.train.seed
        own = OWN_NOISE * noise.standard_normal(len(comparison.evaluation.samplers))
        effect = effects.get(assignment.of, 0.0)
        if seed in comparison.seed_numbers[:seeds]:
            _write(workspace, assignment, effect + shared[seed] + own, gain=1 + abs(effect))
    return workspace


def _write(workspace: Workspace, assignment: Assignment, log_factor: np.ndarray | float, *, gain: float) -> None:
    folder, config = workspace.trial(assignment.key), assignment.config
    folder.mkdir(parents=True)
    declare(folder, assignment)
    budget = config.train.minibatches * config.train.kpass_per_minibatch
    for share in (0.25, 0.5, 0.75, 1.0):
        grown = 1 + (gain - 1) * (1 + share) / 2 * (1 + 0.1 * config.train.seed)
        append_curve(folder, share * budget, {"train/loss": 0.2, "train/attack_gain": grown})
    samplers = config.evaluation.samplers
    factors = np.broadcast_to(log_factor, len(samplers))
    metrics = [500 / sampler.nfe * math.exp(factor) for sampler, factor in zip(samplers, factors, strict=True)]
    named = {f"{config.evaluation.metric_name}/{s.name}": value for s, value in zip(samplers, metrics, strict=True)}
    named |= {attack.name: gain * (1 + attack.ball.radius) for attack in config.evaluation.attacks}
    write_json(folder / RESULT, {"kpass": budget, "values": {"metric": metrics[0], **named}, "sec": 1.0})
