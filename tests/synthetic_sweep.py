"""A sweep on disk whose optimum and law are known, written through the real records."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from atdiff_core.controls import random_control, replay_control
from atdiff_core.files import write_json
from atdiff_core.perturbations import Perturbation
from atdiff_core.pictures import save_grid
from pipeline.records import RESULT, SAMPLES, Assignment, append_curve, declare, set_status
from pipeline.workspace import Workspace
from search_spaces.demo_norms import space as demo_norms
from search_spaces.space import Space, TrialConfig

SEC = 4.0


@dataclass(frozen=True)
class Truth:
    """What the synthetic trials obey.

    Attributes:
        eta_at_64: Best strength for 64 elements.
        exponent: Of D.
        depth: Size of the effect at the optimum; zero makes the response flat.
        width: Distance in log eta from the optimum at which the effect is back to zero.
        noise: Standard deviation of the log metric of one trial.
    """

    eta_at_64: float = 0.04
    exponent: float = -0.4
    depth: float = 0.12
    width: float = 1.5
    noise: float = 0.006

    def best_eta(self, dimension: int) -> float:
        return self.eta_at_64 * (dimension / 64) ** self.exponent

    def effect(self, perturbation: Perturbation, dimension: int) -> float:
        """Expected log(metric / metric of the replay control)."""
        match perturbation.kind:
            case "free_at":
                distance = math.log(perturbation.ball.radius / self.best_eta(dimension)) / self.width
                return self.depth * (distance**2 - 1)
            case "random":
                return -0.1 * self.depth
            case _:
                return 0.0 if perturbation.steps_per_minibatch > 1 else 0.3 * self.depth


class SyntheticSweep:
    """Writes the folders of a sweep whose trials nobody had to train."""

    def __init__(self, root: Path, truth: Truth, space: Space) -> None:
        self.workspace = Workspace(root, space.name)
        self.workspace.claim(space)
        self._truth, self._space = truth, space
        self._rng = np.random.default_rng(0)

    def write_base(self, resolution: int) -> TrialConfig:
        base = self._space.base_config(resolution, dataset="0" * 64)
        self._finish(self._declared(Assignment(base, "base")), base, metric=20.0)
        return base

    def write_study(self, resolution: int) -> None:
        """A whole study: controls, search with two pruned trials, two leaders with every seed."""
        base = self.write_base(resolution)
        self._write(base, replay_control(1), "plain")
        searched = [self._space.at(base, point) for point in self._points()]
        for replays in self._space.domains.replay_counts():
            self._write(base, replay_control(replays), "replay")
        stopped = {searched[3].key, searched[8].key}
        metrics = {config.key: self._run(config, "search", pruned=config.key in stopped) for config in searched}
        complete = [config for config in searched if config.key not in stopped]
        leaders = sorted(complete, key=lambda config: metrics[config.key])[: self._space.replication.leaders]
        for seed in range(self._space.replication.seeds):
            for leader in leaders:
                self._write_leader(base, leader, seed)

    def write_running(self, resolution: int, count: int) -> None:
        """Search trials that were declared and began, and whose end nobody has seen."""
        base = self.write_base(resolution)
        for point in self._points()[:count]:
            config = self._space.at(base, point)
            append_curve(self._declared(Assignment(config, "search")), 1.0, {"train/loss": 0.3})

    def _write_leader(self, base: TrialConfig, leader: TrialConfig, seed: int) -> None:
        perturbation = leader.train.perturbation
        if seed:
            self._run(self._space.trial_config(base, perturbation, seed), "repeat", of=leader.key)
        for role, replays in (("replay", perturbation.steps_per_minibatch), ("plain", 1)):
            self._write(base, replay_control(replays), role, seed)
        self._run(self._space.trial_config(base, random_control(perturbation), seed), "random", of=leader.key)

    def _points(self) -> list[dict[str, float | int | str]]:
        low, high = self._space.domains.eta_range()
        return [
            {"eta": eta, "num_replays": 2 + n % 2, "reach": 1.0 + n // 2 % 2, "norm": "l2" if n % 6 == 5 else "linf"}
            for n, eta in enumerate(np.geomspace(low, high, self._space.trials).tolist())
        ]

    def _write(self, base: TrialConfig, control: Perturbation, role: str, seed: int = 0) -> None:
        config = self._space.trial_config(base, control, seed)
        if not (self.workspace.trial(config.key) / RESULT).is_file():
            self._run(config, role)

    def _run(self, config: TrialConfig, role: str, *, of: str = "", pruned: bool = False) -> float:
        folder = self._declared(Assignment(config, role, of))
        train = config.train
        effect = self._truth.effect(train.perturbation, train.network.dimension)
        metric = 20 * math.exp(effect + self._truth.noise * self._rng.standard_normal())
        budget = train.minibatches * train.kpass_per_minibatch
        rung = max(1, round(train.minibatches * config.rung)) * train.kpass_per_minibatch
        append_curve(folder, rung, _training(train.perturbation))
        append_curve(folder, rung, {"eval/metric": metric * 1.1})
        if pruned:
            set_status(folder, "pruned")
        else:
            append_curve(folder, budget, _training(train.perturbation))
            self._finish(folder, config, metric)
        return metric

    def _declared(self, assignment: Assignment) -> Path:
        folder = self.workspace.trial(assignment.key)
        folder.mkdir(parents=True, exist_ok=True)
        declare(folder, assignment)
        return folder

    def _finish(self, folder: Path, config: TrialConfig, metric: float) -> None:
        values = {"metric": metric}
        for sampler in config.evaluation.samplers:
            values[f"{config.evaluation.metric_name}/{sampler.name}"] = metric * (1 + 4 / sampler.nfe)
        budget = config.train.minibatches * config.train.kpass_per_minibatch
        append_curve(folder, budget, {f"eval/{name}": value for name, value in values.items()})
        resolution = config.train.network.resolution
        pictures = torch.from_numpy(self._rng.uniform(-1, 1, (16, 1, resolution, resolution)))
        save_grid(pictures, folder / SAMPLES, columns=4)
        write_json(folder / RESULT, {"kpass": budget, "values": values, "sec": SEC})


def write_sweep(root: Path, truth: Truth = Truth(), **changes: object) -> Workspace:
    """A finished sweep of the demo's space, with ``changes`` to the space."""
    sweep = SyntheticSweep(root, truth, demo_norms.but(name="synthetic", trials=12, **changes))
    for resolution in sweep.workspace.space().ladder:
        sweep.write_study(resolution)
    return sweep.workspace


def _training(perturbation: Perturbation) -> dict[str, float]:
    values = {"train/loss": 0.2, "train/attack_gain": 1.0, "train/boundary_fraction": 0.0}
    if perturbation.kind == "free_at":
        radius = perturbation.ball.radius
        values |= {"train/attack_gain": 1 + 2 * radius, "train/boundary_fraction": min(1.0, perturbation.reach / 2)}
    if perturbation.kind == "random":
        values["train/attack_gain"] = 1 + 0.1 * perturbation.ball.radius
    return values
