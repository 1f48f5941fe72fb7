"""Training schemes against each other from one base model, as one frozen declaration."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError, model_validator

from atdiff_core.config import Config
from atdiff_core.data.corruption import Clean, GaussianNoise
from atdiff_core.metrics.evaluation import EvaluationConfig
from atdiff_core.objectives import Objective
from atdiff_core.perturbations import Perturbation, Unperturbed
from atdiff_core.train_config import (
    NO_PROMPTS,
    NO_TEACHER,
    SCRATCH,
    Network,
    Precision,
    StrengthWarmup,
    TrainConfig,
)
from search_spaces.loading import load_declared
from search_spaces.resources import Resources, Workers, check_workers
from search_spaces.space import Phase, StudentPhase, TrialConfig

PLAIN = "plain"
BASE_SEED = 0
_TOLD = "prompts"
UNKNOWN_TEACHER = "unknown"
"""In place of a teacher's key while a declaration is only looked at."""
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]


class Pretrained(Config):
    """A base model that exists already: an imported checkpoint, or any snapshot.

    Attributes:
        snapshot: Its folder.
    """

    snapshot: str


class Scratch(Config):
    """No base model: every trial starts from random weights, which are a function of its seed."""

    random_weights: Literal[True] = True


class Arm(Config):
    """One training scheme of a comparison.

    Attributes:
        name: What it is called in tables and figures.
        objective: The loss.
        perturbation: How its input is perturbed.
        strength: How the perturbation grows at the start.
        reference: Name of the arm that lacks only what this one tests: the replay control for
            Free-AT and the random control, plain training for a scheme without replays. Every arm
            is compared with ``plain`` as well.
    """

    name: Name
    objective: Objective
    perturbation: Perturbation
    strength: StrengthWarmup = StrengthWarmup()
    reference: str = PLAIN


class Comparison(Config):
    """Arms that fine-tune one base model at equal passes, each with the same seeds.

    Arms of one seed share minibatches, noise and latents, so their differences are far less noisy
    than their values. The seeds repeat the fine-tuning, not the base model: what a comparison finds
    is found for this base.

    Attributes:
        name: Names the comparison; one name, one configuration.
        shards: Folder, or address, of ``<resolution>px`` shard sets. Not part of any trial's key:
            the fingerprint of the shards is.
        network: The U-Net, resolution included.
        objective: The loss of the base model.
        pretraining: From random weights to the base model, or from the teacher's (``StudentPhase``);
            or where the base model lies; or ``Scratch()``. A base that still improves hides every
            effect behind plain fine-tuning, which sees the most distinct images: let it converge.
        teacher: What teaches the arms whose objective needs a teacher: the ``base`` model, or a
            snapshot that exists already.
        finetuning: From the base model to the end of a trial, for every arm.
        batch_size: Images a minibatch.
        precision: Of the network's arithmetic.
        corruption: Noise on the data that the networks see; they are judged against clean data.
        flip: Whether every other sample is mirrored.
        prompts: Folder of the embeddings of the shards' captions, where the network attends to prompts.
        prompt_dropout: Share of prompts that diffusion models are not told while they train.
        arms: What is compared; one of them is ``plain``.
        seeds: Trials of each arm, with the seeds 1, 2, …; the base model has seed 0.
        evaluation: How networks are judged: every sampler judges every trial, the first gives the
            trial metric.
        workers: Ranks of each trial: a number, or the least and the most while nodes come and go.
        resources: What each rank gets, and how trials survive the loss of one. No part of any key.
    """

    name: Name
    shards: str
    network: Network
    objective: Objective
    pretraining: Phase | StudentPhase | Pretrained | Scratch
    teacher: Pretrained | Literal["base"] = "base"
    finetuning: Phase
    batch_size: Annotated[int, Field(ge=1)] = 64
    precision: Precision = "float32"
    corruption: Annotated[Clean | GaussianNoise, Field(discriminator="kind")] = Clean()
    flip: bool = False
    prompts: str = Field("", exclude_if=lambda folder: not folder)
    prompt_dropout: float = Field(0.0, ge=0, le=1, exclude_if=lambda share: share == 0)
    arms: Annotated[tuple[Arm, ...], Field(min_length=2)]
    seeds: Annotated[int, Field(ge=1)] = 3
    evaluation: EvaluationConfig
    workers: Workers = 1
    resources: Resources = Resources()

    @model_validator(mode="after")
    def _arms_fit(self) -> Self:
        names = [arm.name for arm in self.arms]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"arms must have different names, got {twice[0]!r} twice")
        if PLAIN not in names or self.arm(PLAIN).perturbation != Unperturbed():
            raise ValueError(f"one arm must be called {PLAIN!r} and be Unperturbed(), got {', '.join(names)}")
        for arm in self.arms:
            others = [name for name in names if name != arm.name]
            if arm.name != PLAIN and arm.reference not in others:
                raise ValueError(
                    f"reference of arm {arm.name!r} must be one of {', '.join(others)}, got {arm.reference!r}"
                )
            with _told_of(f"arm {arm.name!r}"):
                self._check_origin(arm.objective)
        return self

    def _check_origin(self, objective: Objective) -> None:
        """Base model and teacher must be what the objective can start from and learn from."""
        if self.teacher == "base" and self.objective.needs_teacher:
            raise ValueError(f"{self.objective.kind} cannot teach itself: give teacher=Pretrained(...)")
        if isinstance(self.pretraining, StudentPhase) and not self.objective.needs_teacher:
            raise ValueError(f"{self.objective.kind} has no teacher to begin at: give pretraining=Phase(...)")
        if not isinstance(self.pretraining, Scratch):
            objective.check_start(self.objective.noise)
        if objective.needs_teacher and self.teacher == "base":
            if isinstance(self.pretraining, Scratch):
                raise ValueError(f"{objective.kind} needs a teacher, there is no base: give teacher=Pretrained(...)")
            objective.check_teacher(self.objective.noise)

    @property
    def identity(self) -> str:
        """sha256 of all that decides what is compared."""
        return self.but(shards="", prompts=_TOLD if self.prompts else "", resources=Resources()).key

    @model_validator(mode="after")
    def _trials_fit(self) -> Self:
        check_workers(self.workers, self.batch_size)
        samplers = self.evaluation.samplers
        repeated = [sampler for place, sampler in enumerate(samplers) if sampler in samplers[:place]]
        if repeated:
            raise ValueError(f"evaluation.samplers must differ, got {repeated[0]} twice")
        with _told_of("base model"):
            base = self.base_config(dataset="")
            base.train.budget_check()
            if self.trains_base:
                base.check()
        same: dict[str, str] = {}
        for arm in self.arms:
            with _told_of(f"arm {arm.name!r}"):
                trial = self.trial_config(base, arm, seed=BASE_SEED)
                trial.check()
                if trial.evaluation != self.trial_evaluation:
                    raise ValueError(f"it must be judged by the samplers of {PLAIN!r}; compare one kind of network")
            if trial.key in same:
                raise ValueError(f"arms {same[trial.key]!r} and {arm.name!r} are the same training; drop one")
            same[trial.key] = arm.name
        return self

    @property
    def resolution(self) -> int:
        return self.network.resolution

    @property
    def seed_numbers(self) -> range:
        """Seeds of the fine-tuning; none is the base model's, whose minibatches would come again."""
        return range(BASE_SEED + 1, BASE_SEED + 1 + self.seeds)

    @property
    def trial_evaluation(self) -> EvaluationConfig:
        """How the trials of every arm are judged."""
        return self.evaluation.fitting(self.arm(PLAIN).objective.noise)

    def arm(self, name: str) -> Arm:
        return next(arm for arm in self.arms if arm.name == name)

    @property
    def trains_base(self) -> bool:
        """Whether the base model is a trial of the comparison's own."""
        return isinstance(self.pretraining, Phase)

    def base_config(
        self, dataset: str, start_from: str = SCRATCH, teacher: str = UNKNOWN_TEACHER, prompts: str = ""
    ) -> TrialConfig:
        """The base model, trained once and fine-tuned by every trial.

        Args:
            start_from: Key of the base model where it exists already; this is then only the
                pattern that the trials are made after.
            teacher: Key of the teacher, where that is not the base model.
            prompts: Fingerprint of the prompts' embeddings; empty while a declaration is only looked at.
        """
        guided = self.objective.embeds_guidance
        phase = self.pretraining if isinstance(self.pretraining, Phase) else self.finetuning
        if isinstance(self.pretraining, StudentPhase):
            start_from = teacher
        train = TrainConfig(
            network=self.network.fitting(embeds_guidance=guided, adapts=start_from != SCRATCH),
            objective=self.objective,
            perturbation=Unperturbed(),
            optimization=phase.optimization,
            precision=self.precision,
            dataset=dataset,
            corruption=self.corruption,
            flip=self.flip,
            prompts=prompts or (self.prompts or NO_PROMPTS),
            prompt_dropout=0 if guided else self.prompt_dropout,
            start_from=start_from,
            teacher=teacher if self.objective.needs_teacher else NO_TEACHER,
            batch_size=self.batch_size,
            budget_kpass=phase.budget_kpass,
            seed=BASE_SEED,
        )
        evaluation = self.evaluation.fitting(self.objective.noise) if self.trains_base else self.evaluation
        return TrialConfig(train=train, evaluation=evaluation, workers=self.workers)

    def trial_config(self, base: TrialConfig, arm: Arm, seed: int, teacher: str = UNKNOWN_TEACHER) -> TrialConfig:
        """Fine-tuning of the base model by one arm.

        Args:
            teacher: Key of the teacher, where that is not the base model.
        """
        start = base.train.key if self.trains_base else base.train.start_from
        if self.teacher == "base":
            teacher = start
        guided = arm.objective.embeds_guidance
        train = base.train.but(
            network=self.network.fitting(embeds_guidance=guided, adapts=start != SCRATCH),
            prompt_dropout=0 if guided else self.prompt_dropout,
            objective=arm.objective,
            perturbation=arm.perturbation,
            strength=arm.strength,
            optimization=self.finetuning.optimization,
            start_from=start,
            teacher=teacher if arm.objective.needs_teacher else NO_TEACHER,
            budget_kpass=self.finetuning.budget_kpass,
            seed=seed,
        )
        evaluation = self.evaluation.fitting(arm.objective.noise)
        return TrialConfig(train=train, evaluation=evaluation, workers=self.workers)


@contextmanager
def _told_of(what: str) -> Iterator[None]:
    """Says in one line what cannot be trained, and why."""
    try:
        yield
    except ValidationError as error:
        said = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise ValueError(f"{what}: {said}") from None
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from None


def load_comparison(path: Path) -> Comparison:
    """The ``comparison`` of a Python file; raises ``ValueError`` where there is none."""
    return load_declared(path, "comparison", Comparison)
