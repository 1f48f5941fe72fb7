"""The training loop, as an iterator of progress: the only place objective meets perturbation."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Annotated, cast

import torch
import torch.distributed as dist
from pydantic import Field
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from atdiff_core.config import Config
from atdiff_core.data.stream import ShardSet
from atdiff_core.networks import NoisePredictor, UNet
from atdiff_core.objectives.denoising import Denoising
from atdiff_core.optimization import Optimization
from atdiff_core.perturbations import Perturbation, Replay
from atdiff_core.randomness import Randomness

SCRATCH = "scratch"


class TrainConfig(Config):
    """Everything that decides the weights a training run ends with.

    Attributes:
        network: Shape of the U-Net.
        objective: The loss.
        perturbation: How its input is perturbed.
        optimization: Optimizer and schedules.
        dataset: Fingerprint of the shards, a sha256 of their index.
        start_from: ``scratch``, or the key of the snapshot whose weights are fine-tuned. As in
            AT_Diff the optimizer starts afresh; network and average both start at the snapshot.
        batch_size: Images a minibatch, over all ranks.
        budget_kpass: Passes to spend, in thousands: images through one forward-backward.
        seed: Seed of the initial weights, the order of the data and all noise.
    """

    network: UNet
    objective: Denoising = Denoising()
    perturbation: Perturbation
    optimization: Optimization = Optimization()
    dataset: str
    start_from: str = SCRATCH
    batch_size: Annotated[int, Field(ge=1)] = 64
    budget_kpass: Annotated[float, Field(gt=0)]
    seed: int = 0

    @property
    def kpass_per_minibatch(self) -> float:
        return self.batch_size * self.perturbation.passes_per_minibatch / 1000

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


@dataclass
class TrainState:
    """What training changes: resumable at any minibatch because nothing else is remembered."""

    network: NoisePredictor
    average: AveragedModel
    optimizer: torch.optim.Optimizer
    minibatches: int = 0

    @property
    def averaged(self) -> NoisePredictor:
        """The network with averaged weights, which is what is judged and kept."""
        return cast(NoisePredictor, self.average.module)

    @classmethod
    def fresh(cls, config: TrainConfig, start: nn.Module | None = None, device: str = "cpu") -> "TrainState":
        """The state before the first step: random weights, or those of the network to fine-tune."""
        if (start is None) != (config.start_from == SCRATCH):
            raise ValueError(f"the config starts from {config.start_from!r}, but start is {start and type(start)}")
        network = config.network.build(seed=config.seed)
        if start is not None:
            network.load_state_dict(start.state_dict())
        network.to(device)
        kpass_per_step = config.batch_size * config.perturbation.passes_per_step / 1000
        return cls(
            network=network,
            average=config.optimization.averaged(network, kpass_per_step=kpass_per_step),
            optimizer=config.optimization.optimizer(network),
        )


@dataclass(frozen=True)
class Progress:
    """What training reports: where it is, and means over the minibatches since the last report.

    Attributes:
        kpass: Thousand passes done.
        images: Distinct images drawn so far, counting epochs.
        loss: Mean loss at the perturbation of the last replay.
        attack_gain: Ratio of that loss to the loss of the same draws at delta = 0.
        boundary_fraction: Share of samples whose perturbation the ball stopped, in [0, 1].
        learning_rate: At the last step.
        done: Whether the budget is spent.
    """

    kpass: float
    images: int
    loss: float
    attack_gain: float
    boundary_fraction: float
    learning_rate: float
    done: bool

    @property
    def metrics(self) -> dict[str, float]:
        return {
            "train/loss": self.loss,
            "train/attack_gain": self.attack_gain,
            "train/boundary_fraction": self.boundary_fraction,
            "train/learning_rate": self.learning_rate,
            "train/kimg": self.images / 1000,
        }


def train(
    config: TrainConfig,
    state: TrainState,
    shards: ShardSet,
    *,
    report_every_kpass: float = 1.0,
    stop_at: Collection[int] = (),
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[Progress]:
    """Train ``state`` in place until the budget is spent, reporting as it goes.

    At every yield the state is whole: it may be checkpointed, evaluated, or left for good. With
    several ranks a gloo or nccl process group must exist; the result is that of one rank, to
    float rounding.

    Args:
        report_every_kpass: Thousand passes between reports; the end is always reported.
        stop_at: Numbers of minibatches after which to report as well, so that the caller can
            judge or checkpoint exactly there.
    """
    config.budget_check()
    _check_shards(config, shards)
    device = next(state.network.parameters()).device
    network = DistributedDataParallel(state.network) if world_size > 1 else state.network
    meter = _Meter(world_size)
    batches = shards.batches(
        seed=config.seed, batch_size=config.batch_size, first=state.minibatches, rank=rank, world_size=world_size
    )
    next_report = _next_multiple(state.minibatches * config.kpass_per_minibatch, report_every_kpass)
    for batch in islice(batches, config.minibatches - state.minibatches):
        randomness = Randomness(config.seed, batch.positions, "train")
        draw = config.objective.draw(batch.images.to(device), randomness)
        state.network.train()  # Whoever evaluated the network since the last report left it in evaluation mode.
        replays = config.perturbation.replays(
            lambda delta, draw=draw: config.objective.loss(network, draw, delta),  # type: ignore[misc]
            like=draw.noisy,
            randomness=randomness,
            attack=lambda delta, draw=draw: config.objective.loss(state.network, draw, delta),  # type: ignore[misc]
        )
        for step, replay in enumerate(replays):  # noqa: B007 (the last replay is measured)
            _set_learning_rate(config, state, step)
            state.optimizer.step()
            state.optimizer.zero_grad(set_to_none=True)
            state.average.update_parameters(state.network)
        state.minibatches += 1
        meter.add(replay, config.perturbation)
        kpass = state.minibatches * config.kpass_per_minibatch
        asked = state.minibatches in stop_at or state.minibatches == config.minibatches
        if asked or kpass >= next_report - 1e-9:
            next_report = _next_multiple(kpass, report_every_kpass)
            yield meter.report(config, state)


def _check_shards(config: TrainConfig, shards: ShardSet) -> None:
    if shards.fingerprint != config.dataset:
        raise ValueError(
            f"the config was made for dataset {config.dataset[:12]}, the shards are {shards.fingerprint[:12]}"
        )
    wanted = (config.network.image_channels, config.network.resolution)
    if (shards.image_channels, shards.resolution) != wanted:
        raise ValueError(
            f"the network takes {wanted[0]} channels at {wanted[1]} px, "
            f"the shards hold {shards.image_channels} at {shards.resolution} px"
        )


def _next_multiple(kpass: float, every: float) -> float:
    return (int(kpass / every + 1e-9) + 1) * every


def _set_learning_rate(config: TrainConfig, state: TrainState, step: int) -> None:
    passes = state.minibatches * config.kpass_per_minibatch
    passes += step * config.batch_size * config.perturbation.passes_per_step / 1000
    rate = config.optimization.learning_rate_at(passes, budget_kpass=config.budget_kpass)
    for group in state.optimizer.param_groups:
        group["lr"] = rate


class _Meter:
    """Sums over the minibatches since the last report, read from the device only when reporting."""

    def __init__(self, world_size: int) -> None:
        self._world_size = world_size
        self._sums: Tensor | None = None

    def add(self, replay: Replay, perturbation: Perturbation) -> None:
        stopped = perturbation.on_boundary(replay.delta)
        count = torch.ones_like(replay.losses)
        sums = torch.stack([replay.losses, replay.clean_losses, stopped.float(), count]).double().sum(dim=1)
        self._sums = sums if self._sums is None else self._sums + sums

    def report(self, config: TrainConfig, state: TrainState) -> Progress:
        sums, self._sums = self._sums, None
        assert sums is not None
        if self._world_size > 1:
            dist.all_reduce(sums)
        loss, clean_loss, stopped, count = sums.tolist()
        return Progress(
            kpass=state.minibatches * config.kpass_per_minibatch,
            images=state.minibatches * config.batch_size,
            loss=loss / count,
            attack_gain=loss / clean_loss,
            boundary_fraction=stopped / count,
            learning_rate=state.optimizer.param_groups[0]["lr"],
            done=state.minibatches == config.minibatches,
        )
