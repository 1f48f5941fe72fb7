"""A study of AT strength along a ladder of resolutions, as one frozen declaration."""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from atdiff_core.config import Config
from atdiff_core.data.corruption import Clean, GaussianNoise
from atdiff_core.metrics.evaluation import EvaluationConfig
from atdiff_core.objectives import Objective
from atdiff_core.objectives.denoising import Denoising
from atdiff_core.optimization import Optimization
from atdiff_core.perturbations import Perturbation, Unperturbed
from atdiff_core.train_config import NO_PROMPTS, NO_TEACHER, Network, Precision, TrainConfig
from search_spaces.branches import Domains
from search_spaces.domains import Point
from search_spaces.loading import load_declared
from search_spaces.operation import GP_TRIALS, Budget, Constraints, Price, SearcherName
from search_spaces.resources import Resources, Workers, check_workers

OPERATIONAL = ("shards", "prompts", "resources", "retries", "price", "budget")
"""Fields that may change whenever a sweep continues: no trial depends on them."""
EXTENDABLE = ("trials", "ladder", "predict_at", "replication")
"""Fields that may grow when a sweep is extended: the trials before stay what they were."""


class Phase(Config):
    """A stretch of training.

    Attributes:
        budget_kpass: Thousand passes.
        optimization: Optimizer and schedules over them.
    """

    budget_kpass: Annotated[float, Field(gt=0)]
    optimization: Optimization


class TeacherPhase(Phase):
    """A stretch that makes a teacher: a base model with an objective of its own.

    Attributes:
        objective: Its loss.
    """

    objective: Objective


class StudentPhase(Phase):
    """A stretch that makes a student: the base model of a comparison that begins at its teacher's weights."""

    begins_at: Literal["teacher"] = "teacher"


class Stopping(Config):
    """Early stopping of search trials by ASHA, on ``kpass``; controls are never stopped.

    Attributes:
        rung: Fraction of the budget after which a trial is judged; 1 switches it off.
        keep: Fraction of trials kept at the rung. The law needs the shape of the response, not
            only its best point: keep most of them.
    """

    rung: Annotated[float, Field(gt=0, le=1)] = 0.5
    keep: Annotated[float, Field(gt=0, lt=1)] = 0.75


class Replication(Config):
    """Repetition of the leading trials, each with its controls.

    Attributes:
        leaders: How many of the best trials are repeated.
        seeds: Seeds the last two of them have in the end, the search's own included. With more than two
            leaders the worst are rejected on the way, one after the other.
    """

    leaders: Annotated[int, Field(ge=1)] = 2
    seeds: Annotated[int, Field(ge=1)] = 2


class TrialConfig(Config):
    """One training run and how it is judged: the unit of a sweep.

    Attributes:
        train: Everything that decides the weights.
        evaluation: Everything that decides the figures.
        rung: Fraction of the budget at which it is judged for the first time.
        workers: Ranks, or the least and the most of them. With one the trial runs in Tune's own
            actor, otherwise under Ray Train.
    """

    train: TrainConfig
    evaluation: EvaluationConfig
    rung: Annotated[float, Field(gt=0, le=1)] = 1.0
    workers: Workers = 1

    def check(self) -> None:
        """Refuse what would fail only after hours."""
        self.train.budget_check()
        self.evaluation.check_fits(self.train.objective.noise)


class Space(Config):
    """What is searched, on which ladder, with which budget.

    Attributes:
        name: Names the sweep; one name, one configuration.
        shards: Folder, or address, of ``<resolution>px`` shard sets. Not part of any trial's key:
            the fingerprint of the shards is.
        ladder: Resolutions, in pixels, ascending.
        predict_at: Resolution whose eta* is predicted, not searched.
        network: The U-Net; its resolution is replaced by each of the ladder's.
        objective: The loss.
        pretraining: From random weights to the base model of each resolution; a ``TeacherPhase``
            where the base model has another loss and, if the objective needs one, is the teacher.
        finetuning: From the base model to a trial.
        batch_size: Images a minibatch.
        precision: Of the network's arithmetic.
        corruption: Noise on the data that the networks see; they are judged against clean data.
        flip: Whether every other sample is mirrored.
        prompts: Folder of the embeddings of the shards' captions, where the network attends to prompts. Not
            part of any trial's key: the fingerprint of the prompts is.
        prompt_dropout: Share of prompts that diffusion models are not told while they train.
        domains: What varies.
        evaluation: How networks are judged; its first sampler gives the trial metric, the
            distance (Fréchet) of its samples to the dataset.
        trials: Search trials at each resolution.
        stopping: Early stopping of search trials.
        replication: Repetition of the leaders.
        workers: Ranks of each trial: a number, or the least and the most while nodes come and go.
        resources: What each rank gets, and how trials survive the loss of one. No part of any key.
        searcher: Who proposes search trials. ``gp``: a Gaussian process, ``tpe``: tree-structured
            Parzen estimators, both after points that are spread evenly; ``random`` and ``sobol``
            learn nothing and are there to compare with. ``auto``: the process for up to 100
            trials of a space without branches, the estimators otherwise.
        transfer: Whether finished resolutions tell the next, larger one where to search. A sweep that is to
            test the law should not: every resolution is then searched for itself.
        side_by_side: Whether all resolutions are searched at once, so that no worker waits; none can then
            teach another.
        constraints: Points that are drawn again.
        retries: Attempts after the first one, where a trial crashes or its loss is not a number.
        price: Of a device's hour.
        budget: Where the sweep stops.
        seed: Seed of the search; trials of the search itself all train with seed 0.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
    shards: str
    ladder: Annotated[tuple[int, ...], Field(min_length=1)]
    predict_at: int
    network: Network
    objective: Objective = Denoising()
    pretraining: TeacherPhase | Phase
    finetuning: Phase
    batch_size: Annotated[int, Field(ge=1)] = 64
    precision: Precision = "float32"
    corruption: Annotated[Clean | GaussianNoise, Field(discriminator="kind")] = Clean()
    flip: bool = False
    prompts: str = Field("", exclude_if=lambda folder: not folder)
    prompt_dropout: float = Field(0.0, ge=0, le=1, exclude_if=lambda share: share == 0)
    domains: Domains
    evaluation: EvaluationConfig = EvaluationConfig()
    trials: Annotated[int, Field(ge=1)] = 12
    stopping: Stopping = Stopping()
    replication: Replication = Replication()
    workers: Workers = 1
    resources: Resources = Resources()
    searcher: SearcherName = "auto"
    transfer: bool = True
    side_by_side: bool = False
    constraints: Constraints = Constraints()
    retries: Annotated[int, Field(ge=0)] = 1
    price: Price = Price()
    budget: Budget = Budget()
    seed: int = 0

    @model_validator(mode="after")
    def _order_fits(self) -> Self:
        if self.side_by_side and self.transfer:
            raise ValueError("resolutions that are searched side by side teach each other nothing; set transfer=False")
        return self

    @model_validator(mode="after")
    def _searcher_fits(self) -> Self:
        if self.searcher == "gp" and self.domains.conditional:
            raise ValueError("a Gaussian process has no branches; searcher must be auto or tpe here, got 'gp'")
        return self

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if list(self.ladder) != sorted(set(self.ladder)):
            raise ValueError(f"ladder must ascend without repetition, got {self.ladder}")
        for resolution in (*self.ladder, self.predict_at):
            self.network.at(resolution)
        if not self.objective.attack_is_loss:
            raise ValueError(
                "a space searches Free-AT, which climbs what it descends; the attack of this objective "
                f"({self.objective.kind}) is another function"
            )
        if isinstance(self.pretraining, StudentPhase):
            raise ValueError("a sweep trains its own teacher: give pretraining=TeacherPhase(...), not StudentPhase")
        if self.base_objective.needs_teacher:
            raise ValueError(f"{self.objective.kind} needs a teacher: make it by pretraining=TeacherPhase(...)")
        self.objective.check_start(self.base_objective.noise)
        if self.objective.needs_teacher:
            self.objective.check_teacher(self.base_objective.noise)
        base = self.base_config(self.ladder[0], dataset="")  # What does not fit must not wait for the first trial.
        base.check()
        check_workers(self.workers, self.batch_size)
        for replays in self.domains.replay_counts():
            trial = self.trial_config(base, Unperturbed(num_replays=replays))
            trial.evaluation.check_fits(self.objective.noise)
            minibatch = trial.train.kpass_per_minibatch
            if self.finetuning.budget_kpass * self.stopping.rung < minibatch:
                raise ValueError(
                    f"finetuning.budget_kpass up to the rung must pay for a minibatch of K = {replays} replays "
                    f"({minibatch:g} kpass), got {self.finetuning.budget_kpass} x {self.stopping.rung}"
                )
        return self

    @property
    def identity(self) -> str:
        """sha256 of all that stays the same while a sweep is continued and extended."""
        kept = self.model_dump(mode="json", exclude={*OPERATIONAL, *EXTENDABLE})
        return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()

    @property
    def chosen_searcher(self) -> SearcherName:
        """Who proposes, once ``auto`` has been decided."""
        if self.searcher != "auto":
            return self.searcher
        return "tpe" if self.domains.conditional or self.trials > GP_TRIALS else "gp"

    @property
    def transfers(self) -> bool:
        """Whether finished resolutions guide the next; searchers that learn nothing are not guided either."""
        return self.transfer and self.chosen_searcher in ("gp", "tpe")

    def dimension(self, resolution: int) -> int:
        """Elements of one image, D."""
        return self.network.image_channels * resolution**2

    @property
    def base_objective(self) -> Objective:
        """The loss of the base models."""
        return self.pretraining.objective if isinstance(self.pretraining, TeacherPhase) else self.objective

    @property
    def trial_evaluation(self) -> EvaluationConfig:
        """How trials are judged."""
        return self.evaluation.fitting(self.objective.noise)

    def base_config(self, resolution: int, dataset: str, prompts: str = "") -> TrialConfig:
        """The base model of a resolution, trained once and fine-tuned by every trial.

        Args:
            dataset: Fingerprint of the shards.
            prompts: Of the prompts' embeddings; empty while a declaration is only looked at.
        """
        guided = self.base_objective.embeds_guidance
        train = TrainConfig(
            network=self.network.at(resolution).fitting(embeds_guidance=guided, adapts=False),
            objective=self.base_objective,
            perturbation=Unperturbed(),
            optimization=self.pretraining.optimization,
            precision=self.precision,
            dataset=dataset,
            corruption=self.corruption,
            flip=self.flip,
            prompts=prompts or (self.prompts or NO_PROMPTS),
            prompt_dropout=0 if guided else self.prompt_dropout,
            batch_size=self.batch_size,
            budget_kpass=self.pretraining.budget_kpass,
        )
        evaluation = self.evaluation.fitting(self.base_objective.noise)
        return TrialConfig(train=train, evaluation=evaluation, workers=self.workers)

    def trial_config(self, base: TrialConfig, perturbation: Perturbation, seed: int = 0) -> TrialConfig:
        """Fine-tuning of the base model under a perturbation."""
        guided = self.objective.embeds_guidance
        network = self.network.at(base.train.network.resolution)
        train = base.train.but(
            network=network.fitting(embeds_guidance=guided, adapts=True),
            objective=self.objective,
            perturbation=perturbation,
            prompt_dropout=0 if guided else self.prompt_dropout,
            optimization=self.finetuning.optimization,
            start_from=base.train.key,
            teacher=base.train.key if self.objective.needs_teacher else NO_TEACHER,
            budget_kpass=self.finetuning.budget_kpass,
            seed=seed,
        )
        rung = self.stopping.rung
        return TrialConfig(train=train, evaluation=self.trial_evaluation, rung=rung, workers=self.workers)

    def at(self, base: TrialConfig, point: Point, seed: int = 0) -> TrialConfig:
        """The trial at a sampled point."""
        return self.trial_config(base, self.domains.perturbation(point, base.train.network.dimension), seed)


def load_space(path: Path) -> Space:
    """The ``space`` of a Python file; raises ``ValueError`` where there is none."""
    return load_declared(path, "space", Space)
