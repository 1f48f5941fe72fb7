"""One loop for all pretraining: a loss on minibatches of the exact stream, reported as it goes."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Protocol, Self

import torch
from pydantic import Field
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from atdiff_core.config import Config
from atdiff_core.data.batch import Batch
from atdiff_core.data.stream import ShardSet
from atdiff_core.files import read_json, sha256_of, write_json
from atdiff_core.randomness import Randomness

STATE = "pretraining.json"
LOSS = "loss"


class Schedule(Config):
    """How long and how fast to learn.

    Attributes:
        steps: Optimizer steps, one a minibatch.
        learning_rate: Peak of AdamW's step size; it falls linearly to zero after the warm-up.
        warmup_steps: Over which it rises from zero.
        dataset: Fingerprint of the shards.
    """

    steps: Annotated[int, Field(ge=1)]
    batch_size: Annotated[int, Field(ge=1)]
    learning_rate: Annotated[float, Field(gt=0)]
    warmup_steps: Annotated[int, Field(ge=0)] = 20
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    seed: int = 0
    dataset: str

    def learning_rate_at(self, step: int) -> float:
        """Of the step with this number, counted from zero."""
        warm = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        return self.learning_rate * warm * (1 - step / self.steps)


class Task(Protocol):
    """What is learned."""

    def losses(self, network: nn.Module, batch: Batch, randomness: Randomness) -> dict[str, Tensor]:
        """Means over a minibatch by name; the one called ``loss`` is descended."""


@dataclass(frozen=True)
class Pretrained:
    """Where pretraining is, with means of the losses since the last report."""

    step: int
    steps: int
    losses: dict[str, float]


@dataclass
class PretrainingState:
    """All that pretraining changes."""

    network: nn.Module
    optimizer: torch.optim.Optimizer
    steps: int = 0

    @classmethod
    def fresh(cls, network: nn.Module, schedule: Schedule) -> Self:
        """Before the first step."""
        decay = schedule.weight_decay
        return cls(network, torch.optim.AdamW(network.parameters(), schedule.learning_rate, weight_decay=decay))


def pretraining(
    task: Task, schedule: Schedule, state: PretrainingState, shards: ShardSet, *, report_every: int = 10
) -> Iterator[Pretrained]:
    """Train ``state`` in place; at every yield it is whole and may be saved or left for good.

    Raises:
        ValueError: If the shards are others than the schedule's.
    """
    if shards.fingerprint != schedule.dataset:
        raise ValueError(f"made for dataset {schedule.dataset[:12]}, the shards are {shards.fingerprint[:12]}")
    stream = shards.batches(seed=schedule.seed, batch_size=schedule.batch_size, first=state.steps)
    sums: dict[str, float] = {}
    since = 0
    with closing(stream) as batches:
        for batch in islice(batches, schedule.steps - state.steps):
            state.network.train()
            losses = task.losses(state.network, batch, Randomness(schedule.seed, batch.positions, "pretraining"))
            losses[LOSS].backward()
            for group in state.optimizer.param_groups:
                group["lr"] = schedule.learning_rate_at(state.steps)
            nn.utils.clip_grad_norm_(state.network.parameters(), 1.0)
            state.optimizer.step()
            state.optimizer.zero_grad(set_to_none=True)
            state.steps += 1
            since += 1
            sums = {name: sums.get(name, 0.0) + float(value.detach()) for name, value in losses.items()}
            if state.steps % report_every == 0 or state.steps == schedule.steps:
                yield Pretrained(state.steps, schedule.steps, {name: total / since for name, total in sums.items()})
                sums, since = {}, 0


def save_state(state: PretrainingState, key: str, folder: Path) -> None:
    """Write the state; a crash at any moment leaves the one before readable."""
    tensors = {f"network.{name}": value for name, value in state.network.state_dict().items()}
    for index, slots in state.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in slots.items()}
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"pretraining-{state.steps:07d}.safetensors"
    save_file({name: value.detach().contiguous().clone() for name, value in tensors.items()}, file)
    write_json(folder / STATE, {"key": key, "steps": state.steps, "file": file.name, "sha256": sha256_of(file)})
    for older in folder.glob("pretraining-*.safetensors"):
        if older != file:
            older.unlink()


def restore_state(state: PretrainingState, key: str, folder: Path) -> None:
    """Go on where a state was saved; nothing happens where none was.

    Raises:
        ValueError: It is of other settings, or damaged.
    """
    if not (folder / STATE).is_file():
        return
    saved = read_json(folder / STATE)
    if saved.get("key") != key:
        raise ValueError(f"{folder}: holds a pretraining with other settings or on other data; choose another --out")
    file = folder / saved["file"]
    if not file.is_file() or sha256_of(file) != saved["sha256"]:
        raise ValueError(f"{file}: missing or damaged; delete {folder} to start again")
    tensors = load_file(file)
    state.network.load_state_dict(_part(tensors, "network."))
    slots: dict[int, dict[str, Any]] = {}
    for name, value in _part(tensors, "optimizer.").items():
        index, slot = name.split(".", 1)
        slots.setdefault(int(index), {})[slot] = value
    groups = state.optimizer.state_dict()["param_groups"]
    state.optimizer.load_state_dict({"state": slots, "param_groups": groups})
    state.steps = int(saved["steps"])


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
