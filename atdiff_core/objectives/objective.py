"""What every objective says of itself, with the answers of an ordinary one."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor, nn

from atdiff_core.config import Config
from atdiff_core.karras import PREDICTS, Noise
from atdiff_core.objectives.drawing import Denoiser, Draw
from atdiff_core.randomness import Randomness
from atdiff_core.timesteps import LossHistory


@dataclass(frozen=True)
class Teacher:
    """A trained network that is asked and never changed.

    Attributes:
        network: In evaluation mode; its parameters require no gradient.
        noise: What it was trained on, and what its output means.
    """

    network: nn.Module
    noise: Noise

    def __post_init__(self) -> None:
        self.network.eval().requires_grad_(False)


@dataclass(frozen=True)
class Companions:
    """The networks beside the one that is trained, where the objective asks for them.

    Attributes:
        teacher: For an objective that ``needs_teacher``.
        target: Average of the trained network that it is compared with, for an objective that
            ``keeps_target``.
        untold: What a network is told where it is told nothing, by the name of its argument, say the
            empty prompt; each ``[1, ...]``. For one that ``embeds_guidance``.
    """

    teacher: Teacher | None = None
    target: nn.Module | None = None
    untold: Mapping[str, Tensor] = field(default_factory=dict)


class LiveObjective(Protocol):
    """An objective at work: it draws a minibatch's randomness, then tells the loss at a perturbation."""

    def draw(
        self,
        images: Tensor,
        randomness: Randomness,
        *,
        condition: Mapping[str, Tensor] | None = None,
        history: LossHistory | None = None,
    ) -> Draw:
        """All randomness of a minibatch of images ``[batch, channels, height, width]``.

        Args:
            condition: What the network is told beside the image and the level, by the name of its
                argument: labels, prompts. Each ``[batch, ...]``.
            history: Losses seen so far, where the objective remembers them.
        """

    def loss(self, network: Denoiser, draw: Draw, delta: Tensor) -> Tensor:
        """What is descended, ``[batch]``."""

    def attack(self, network: Denoiser, draw: Draw, delta: Tensor) -> Tensor:
        """What an ascent of its own climbs, ``[batch]``."""


class ObjectiveConfig(Config):
    """Base of the objectives: frozen declarations, which ``beside`` puts to work."""

    noise: Noise

    @property
    def attack_is_loss(self) -> bool:
        """Whether what is climbed is what is descended, so that one backward serves both."""
        return True

    @property
    def passes_per_draw(self) -> float:
        """Forward-backwards per sample that drawing a minibatch costs, however often it is replayed."""
        return 0.0

    @property
    def passes_per_descent(self) -> float:
        """Forward-backwards per sample and optimizer step."""
        return 1.0

    @property
    def passes_per_climb(self) -> float:
        """Of an ascent step of its own: forward 1/3, backward to the input 1/3."""
        return 2 / 3

    @property
    def passes_per_shared_climb(self) -> float:
        """What an ascent step adds to the descent whose backward serves both."""
        return 0.0

    @property
    def learns_variance(self) -> bool:
        """Whether the network has twice the channels: the noise, and its variance."""
        return False

    @property
    def needs_teacher(self) -> bool:
        return False

    @property
    def embeds_guidance(self) -> bool:
        """Whether the network is told a guidance scale, and its teacher guided by one."""
        return False

    @property
    def keeps_target(self) -> bool:
        """Whether the trained network is compared with an average of itself."""
        return False

    def target_decay(self, progress: float) -> float:
        """Decay of the target's average at an optimizer step.

        Args:
            progress: Share of the budget spent, in [0, 1].
        """
        raise NotImplementedError(f"{type(self).__name__} keeps no target")

    def settings(self) -> dict[str, bool | float | str]:
        """What tells runs of this objective apart, for tables and records."""
        return {}

    def history(self) -> LossHistory | None:
        """An empty memory of losses, where the drawing of levels learns from them."""
        return None

    def beside(self, companions: Companions, *, progress: float) -> LiveObjective:
        """The objective at work on one minibatch, with the other networks at hand.

        Args:
            progress: Share of the budget spent, in [0, 1].
        """
        raise NotImplementedError

    def check_start(self, noise: Noise) -> None:
        """Refuse to start from weights trained on another noise."""
        if noise != self.noise:
            raise ValueError(
                f"the weights to start from were trained with the noise {noise}, the objective has {self.noise}; "
                "give the objective theirs, or start from scratch"
            )

    def check_teacher(self, noise: Noise) -> None:
        """Refuse a teacher that cannot teach this."""
        if not self.needs_teacher:
            raise ValueError(f"an objective without a teacher was given one that {PREDICTS[noise.kind]}")
