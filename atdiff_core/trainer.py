"""The training loop, as an iterator of progress: the only place objective meets perturbation."""

from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from atdiff_core.data.batch import Batch
from atdiff_core.data.corruption import check_outliers, corrupted
from atdiff_core.data.prompts import Prompts
from atdiff_core.data.stream import ShardSet
from atdiff_core.minibatch import Loss, Minibatch, Slice
from atdiff_core.objectives.drawing import Draw
from atdiff_core.objectives.objective import LiveObjective
from atdiff_core.perturbations import Perturbation, Replay
from atdiff_core.prompting import check_prompts, some_untold, untold
from atdiff_core.randomness import Randomness
from atdiff_core.sharding import gradients_postponed, is_sharded
from atdiff_core.train_config import DTYPES, TrainConfig
from atdiff_core.train_state import Execution, TrainState


@dataclass(frozen=True)
class Progress:
    """What training reports: where it is, and means over the minibatches since the last report.

    Attributes:
        kpass: Thousand passes done.
        images: Distinct images drawn so far, counting epochs.
        loss: Mean loss at the perturbation of the last replay.
        attack_gain: Ratio of the loss at the perturbation to the loss of the same draws at
            delta = 0, over the minibatches where both are known.
        boundary_fraction: Share of samples whose perturbation the ball stopped, in [0, 1].
        learning_rate: At the last step.
        strength: Factor of the perturbation's amplitudes, in [0, 1].
        done: Whether the budget is spent.
    """

    kpass: float
    images: int
    loss: float
    attack_gain: float
    boundary_fraction: float
    learning_rate: float
    strength: float
    done: bool

    @property
    def metrics(self) -> dict[str, float]:
        return {
            "train/loss": self.loss,
            "train/attack_gain": self.attack_gain,
            "train/boundary_fraction": self.boundary_fraction,
            "train/learning_rate": self.learning_rate,
            "train/strength": self.strength,
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
    execution: Execution | None = None,
    outliers: ShardSet | None = None,
    prompts: Prompts | None = None,
) -> Iterator[Progress]:
    """Train ``state`` in place until the budget is spent, reporting as it goes.

    At every yield the state is whole: it may be checkpointed, evaluated, or left for good. With
    several ranks a gloo or nccl process group must exist; the result is that of one rank, to
    float rounding.

    Args:
        report_every_kpass: Thousand passes between reports; the end is always reported.
        stop_at: Numbers of minibatches after which to report as well, so that the caller can
            judge or checkpoint exactly there.
        execution: As given to ``TrainState.fresh``.
        outliers: The set that ``config.corruption`` takes outliers from, where it takes some.
        prompts: Embeddings of the captions, where the network attends to prompts.
    """
    config.budget_check()
    _check_shards(config, shards)
    check_prompts(config, shards, prompts)
    check_outliers(config.corruption, shards, outliers)
    execution = execution or Execution()
    step = _Step(config, state, execution, world_size, outliers, prompts)
    meter = _Meter(world_size)
    stream = shards.batches(
        seed=config.seed,
        batch_size=config.batch_size,
        first=state.minibatches,
        rank=rank,
        world_size=world_size,
        workers=execution.data_workers,
    )
    next_report = _next_multiple(state.minibatches * config.kpass_per_minibatch, report_every_kpass)
    with closing(stream) as batches:
        for batch in islice(batches, config.minibatches - state.minibatches):
            kpass = (state.minibatches + 1) * config.kpass_per_minibatch
            asked = state.minibatches + 1 in stop_at or state.minibatches + 1 == config.minibatches
            due = asked or kpass >= next_report - 1e-9
            perturbation = config.perturbation.at_strength(step.strength)
            meter.add(*step.descend(batch, perturbation, measure_clean=due), perturbation)
            if due:
                next_report = _next_multiple(kpass, report_every_kpass)
                yield meter.report(config, state)


class _Step:
    """Everything between a minibatch of images and the changed weights."""

    def __init__(
        self,
        config: TrainConfig,
        state: TrainState,
        execution: Execution,
        world_size: int,
        outliers: ShardSet | None,
        prompts: Prompts | None,
    ) -> None:
        self._config, self._state, self._execution, self._world_size = config, state, execution, world_size
        self._outliers, self._prompts = outliers, prompts
        self._companions = replace(state.companions, untold=untold(prompts))
        copied = world_size > 1 and not is_sharded(state.network)
        self._network: nn.Module = DistributedDataParallel(state.network) if copied else state.network

    @property
    def strength(self) -> float:
        return self._config.strength.factor(self._state.minibatches * self._config.kpass_per_minibatch)

    def descend(self, batch: Batch, perturbation: Perturbation, *, measure_clean: bool) -> tuple[Replay, Tensor]:
        """All optimizer steps of one minibatch; its last replay and the weights of its samples.

        Args:
            measure_clean: Whether to measure the loss at delta = 0 where the scheme does not.
        """
        config, state = self._config, self._state
        randomness = Randomness(config.seed, batch.positions, "train")
        progress = min(1.0, state.minibatches / config.minibatches)
        objective = config.objective.beside(self._companions, progress=progress)
        draws = self._draws(objective, batch, randomness)
        minibatch = self._minibatch(objective, draws)
        like = torch.cat([draw.noisy for draw in draws])
        state.network.train()  # Whoever evaluated the network since the last report left it in evaluation mode.
        clean = None
        for number, replay in enumerate(perturbation.replays(minibatch, like, randomness)):
            if measure_clean and replay.clean_losses is None and clean is None:
                clean = minibatch.measure(torch.zeros_like(like))
            self._remember(draws, replay)
            _set_learning_rate(config, state, number)
            state.scaler.step(state.optimizer)
            state.scaler.update()
            state.optimizer.zero_grad(set_to_none=True)
            state.average.update_parameters(state.network)
            if config.objective.keeps_target:
                state.average_target(config.objective.target_decay(progress))
        state.minibatches += 1
        known = clean if replay.clean_losses is None else replay.clean_losses
        return Replay(replay.losses, known, replay.delta), minibatch.weights

    def _draws(self, objective: LiveObjective, batch: Batch, randomness: Randomness) -> list[Draw]:
        config, device = self._config, self._execution.device
        images = corrupted(batch, config.corruption, self._outliers)
        images = _flipped(images, randomness) if config.flip else images
        condition = config.network.condition_of(batch, self._prompts)
        condition = some_untold(condition, self._companions.untold, config.prompt_dropout, randomness)
        size = self._execution.slice_size or len(images)
        with self._autocast(device):
            return [
                objective.draw(
                    images[rows].to(device),
                    randomness.rows(rows),
                    condition={name: values[rows].to(device) for name, values in condition.items()},
                    history=self._state.history,
                )
                for rows in (slice(start, start + size) for start in range(0, len(images), size))
            ]

    def _minibatch(self, objective: LiveObjective, draws: list[Draw]) -> Minibatch:
        bare = self._state.network

        def loss(draw: Draw) -> Loss:
            return lambda delta: self._evaluated(objective.loss, self._network, draw, delta)

        def attack(draw: Draw) -> Loss:
            return lambda delta: self._evaluated(objective.attack, bare, draw, delta)

        return Minibatch(
            [Slice(loss(draw), attack(draw), draw.weights) for draw in draws],
            attack_is_loss=self._config.objective.attack_is_loss,
            scaler=self._state.scaler,
            postponed=self._postponed,
        )

    def _evaluated(self, evaluate: Any, network: nn.Module, draw: Draw, delta: Tensor) -> Tensor:
        with self._autocast(draw.noisy.device):
            losses: Tensor = evaluate(network, draw, delta)
        return losses

    def _autocast(self, device: torch.device | str) -> torch.autocast:
        dtype = DTYPES[self._config.precision]
        return torch.autocast(torch.device(device).type, dtype=dtype, enabled=dtype != torch.float32)

    def _postponed(self) -> AbstractContextManager[None]:
        if is_sharded(self._network):
            return gradients_postponed(self._network)
        return self._network.no_sync() if isinstance(self._network, DistributedDataParallel) else nullcontext()

    def _remember(self, draws: list[Draw], replay: Replay) -> None:
        """Add the losses of all ranks, in the order of their samples, to the history."""
        if self._state.history is None:
            return
        timesteps, losses = torch.cat([draw.timesteps for draw in draws]), replay.losses.double()
        if self._world_size > 1:
            timesteps, losses = _gathered(timesteps, self._world_size), _gathered(losses, self._world_size)
        self._state.history.add(timesteps.tolist(), losses.tolist())


def _flipped(images: Tensor, randomness: Randomness) -> Tensor:
    mirrored = randomness.for_("flip").integers(2).bool().view(-1, 1, 1, 1)
    return torch.where(mirrored, images.flip(-1), images)


def _gathered(mine: Tensor, world_size: int) -> Tensor:
    """The values of all ranks in the order of the minibatch, whose rows are dealt to the ranks in turn."""
    pieces = [torch.empty_like(mine) for _ in range(world_size)]
    dist.all_gather(pieces, mine.contiguous())
    return torch.stack(pieces, dim=1).flatten()


def _check_shards(config: TrainConfig, shards: ShardSet) -> None:
    if shards.fingerprint != config.dataset:
        raise ValueError(
            f"the config was made for dataset {config.dataset[:12]}, the shards are {shards.fingerprint[:12]}"
        )
    network = config.network
    wanted = (network.image_channels, network.resolution)
    if (shards.image_channels, shards.resolution) != wanted:
        raise ValueError(
            f"the network takes {wanted[0]} channels at {wanted[1]} px, "
            f"the shards hold {shards.image_channels} at {shards.resolution} px"
        )
    classes = len(shards.index.classes)
    if 0 < network.num_classes < classes:
        raise ValueError(f"the network knows {network.num_classes} classes, the shards have labels up to {classes - 1}")


def _next_multiple(kpass: float, every: float) -> float:
    return (int(kpass / every + 1e-9) + 1) * every


def _set_learning_rate(config: TrainConfig, state: TrainState, step: int) -> None:
    passes = state.minibatches * config.kpass_per_minibatch + step * config.kpass_per_step
    rate = config.optimization.learning_rate_at(passes, budget_kpass=config.budget_kpass)
    for group in state.optimizer.param_groups:
        group["lr"] = rate


class _Meter:
    """Sums over the minibatches since the last report, read from the device only when reporting."""

    def __init__(self, world_size: int) -> None:
        self._world_size = world_size
        self._sums: Tensor | None = None

    def add(self, replay: Replay, weights: Tensor, perturbation: Perturbation) -> None:
        known = replay.clean_losses is not None
        losses = replay.losses * weights
        clean = replay.clean_losses * weights if replay.clean_losses is not None else torch.zeros_like(losses)
        stopped = perturbation.on_boundary(replay.delta)
        rows = [losses, losses * known, clean, stopped.float(), torch.ones_like(losses)]
        sums = torch.stack(rows).double().sum(dim=1)
        self._sums = sums if self._sums is None else self._sums + sums

    def report(self, config: TrainConfig, state: TrainState) -> Progress:
        sums, self._sums = self._sums, None
        assert sums is not None
        if self._world_size > 1:
            dist.all_reduce(sums)
        loss, compared, clean, stopped, count = sums.tolist()
        kpass = state.minibatches * config.kpass_per_minibatch
        return Progress(
            kpass=kpass,
            images=state.minibatches * config.batch_size,
            loss=loss / count,
            attack_gain=compared / clean if clean else 1.0,
            boundary_fraction=stopped / count,
            learning_rate=state.optimizer.param_groups[0]["lr"],
            strength=config.strength.factor(kpass),
            done=state.minibatches == config.minibatches,
        )
