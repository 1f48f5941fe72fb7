"""Everything that decides the weights a training run ends with."""

import math
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Discriminator, Field, Tag, model_validator

from atdiff_core.config import Config
from atdiff_core.data.corruption import Clean, Corruption
from atdiff_core.networks import UNet
from atdiff_core.objectives import Objective
from atdiff_core.objectives.denoising import Denoising
from atdiff_core.optimization import Optimization
from atdiff_core.perturbations import Perturbation
from atdiff_core.text_networks import TextUNet

SCRATCH = "scratch"
NO_TEACHER = "none"
NO_PROMPTS = "none"
Precision = Literal["float32", "bf16", "fp16"]
DTYPES: dict[Precision, torch.dtype] = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def _network_kind(value: Any) -> str:
    """``text`` or ``image``: the latter has no field that says so."""
    kind = value.get("kind", "image") if isinstance(value, dict) else getattr(value, "kind", "image")
    return str(kind)


Network = Annotated[Annotated[UNet, Tag("image")] | Annotated[TextUNet, Tag("text")], Discriminator(_network_kind)]


class StrengthWarmup(Config):
    """How the perturbation grows at the start of a run.

    Trained from scratch, a network under a full perturbation learns slowly at first (Wang et al.,
    arXiv:2502.17099, Appendix G.2); the remedy is ours.

    Attributes:
        kind: ``constant``: full strength at once. ``linear`` and ``cosine``: from zero.
        kpass: Thousand passes until full strength.
    """

    kind: Literal["constant", "linear", "cosine"] = "constant"
    kpass: Annotated[float, Field(ge=0)] = 0.0

    def factor(self, kpass: float) -> float:
        """Factor of every amplitude once ``kpass`` thousand passes are done, in [0, 1]."""
        if self.kind == "constant" or kpass >= self.kpass:
            return 1.0
        share = kpass / self.kpass
        return share if self.kind == "linear" else (1 - math.cos(math.pi * share)) / 2


class TrainConfig(Config):
    """Everything that decides the weights a training run ends with.

    Attributes:
        network: Shape of the U-Net: ``UNet``, or ``TextUNet`` for one that attends to prompts.
        objective: The loss.
        perturbation: How its input is perturbed.
        strength: How the perturbation grows at the start.
        optimization: Optimizer and schedules.
        precision: Of the network's arithmetic. Parameters, losses and perturbations stay float32;
            with fp16 the gradients are scaled, those of the perturbation scaled back.
        dataset: Fingerprint of the shards, a sha256 of their index.
        corruption: Of the data that the network sees; it is judged against clean data.
        flip: Whether every other sample is mirrored, at random.
        prompts: ``none``, or the fingerprint of the folder of prompts' embeddings; given exactly if
            the network attends to prompts.
        prompt_dropout: Probability that a sample's prompt is the empty one, which classifier-free
            guidance needs (Ho & Salimans, arXiv:2207.12598); Stable Diffusion had 0.1.
        start_from: ``scratch``, or the key of the snapshot whose weights are fine-tuned. As in
            AT_Diff the optimizer starts afresh; network and average both start at the snapshot.
        teacher: ``none``, or the key of the snapshot that teaches; given exactly if the objective
            needs a teacher.
        batch_size: Images a minibatch, over all ranks.
        budget_kpass: Passes to spend, in thousands: images through one forward-backward.
        seed: Seed of the initial weights, the order of the data and all noise.
    """

    network: Network
    objective: Objective = Denoising()
    perturbation: Perturbation
    strength: StrengthWarmup = StrengthWarmup()
    optimization: Optimization = Optimization()
    precision: Precision = "float32"
    dataset: str
    corruption: Corruption = Clean()
    flip: bool = False
    prompts: str = Field(NO_PROMPTS, exclude_if=lambda prompts: prompts == NO_PROMPTS)
    prompt_dropout: float = Field(0.0, ge=0, le=1, exclude_if=lambda dropout: dropout == 0)
    start_from: str = SCRATCH
    teacher: str = NO_TEACHER
    batch_size: Annotated[int, Field(ge=1)] = 64
    budget_kpass: Annotated[float, Field(gt=0)]
    seed: int = 0

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.perturbation.climbs_what_it_descends and not self.objective.attack_is_loss:
            raise ValueError(
                f"perturbation {self.perturbation.kind} climbs what it descends, but objective "
                f"{self.objective.kind} attacks another function; choose PGD"
            )
        if self.network.learned_variance != self.objective.learns_variance:
            raise ValueError(
                f"network.learned_variance={self.network.learned_variance} does not fit objective.variance="
                f"{'learned' if self.objective.learns_variance else 'fixed'!r}; both or neither must learn it"
            )
        if self.objective.needs_teacher == (self.teacher == NO_TEACHER):
            needs = "a teacher" if self.objective.needs_teacher else "no teacher"
            raise ValueError(f"objective {self.objective.kind} needs {needs}, got {self.teacher[:12]!r}")
        return self

    @model_validator(mode="after")
    def _prompts_fit(self) -> Self:
        reads = isinstance(self.network, TextUNet)
        if reads == (self.prompts == NO_PROMPTS):
            wanted = "embeddings of prompts" if reads else "no prompts"
            raise ValueError(f"a network of kind {_network_kind(self.network)} is told {wanted}, got {self.prompts!r}")
        if self.prompt_dropout and not reads:
            raise ValueError(f"prompt_dropout needs a network that attends to prompts, got {self.prompt_dropout}")
        guided = isinstance(self.network, TextUNet) and self.network.guidance_width > 0
        if guided != self.objective.embeds_guidance:
            width = self.network.guidance_width if isinstance(self.network, TextUNet) else 0
            wanted = "more than 0" if self.objective.embeds_guidance else "0"
            raise ValueError(
                f"network.guidance_width must be {wanted} for objective {self.objective.kind}, got {width}"
            )
        if isinstance(self.network, TextUNet) and self.network.lora_rank and self.start_from == SCRATCH:
            raise ValueError(f"LoRA adapts weights that are there: lora_rank={self.network.lora_rank} needs a start")
        return self

    @property
    def passes_per_step(self) -> float:
        """Forward-backwards per sample and optimizer step (forward 1/3, backward 2/3).

        What drawing a minibatch costs is shared by the steps that are made with it.
        """
        objective, scheme = self.objective, self.perturbation
        climbs = scheme.climbs_per_step * objective.passes_per_climb
        shared = scheme.shared_climbs_per_step * objective.passes_per_shared_climb
        return objective.passes_per_draw / scheme.steps_per_minibatch + objective.passes_per_descent + climbs + shared

    @property
    def kpass_per_step(self) -> float:
        return self.batch_size * self.passes_per_step / 1000

    @property
    def kpass_per_minibatch(self) -> float:
        return self.kpass_per_step * self.perturbation.steps_per_minibatch

    @property
    def minibatches(self) -> int:
        """Distinct minibatches the budget pays for, at least one."""
        return max(1, round(self.budget_kpass / self.kpass_per_minibatch))

    def budget_check(self) -> None:
        """Refuse a budget that does not pay for a single minibatch."""
        if self.budget_kpass < self.kpass_per_minibatch:
            raise ValueError(
                f"budget_kpass must pay for one minibatch of {self.kpass_per_minibatch:g} kpass, "
                f"got {self.budget_kpass:g}; raise the budget or lower batch_size"
            )
